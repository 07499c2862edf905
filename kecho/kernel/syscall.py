# SPDX-License-Identifier: MIT
"""The bpf(2) system call: maps, programs given as instructions, links, and BTF.

Numbers and layouts are those of include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from kecho.kernel import libc

MAP_TYPE_SOCKHASH = 18
MAP_TYPE_SK_STORAGE = 24

PROG_TYPE_SCHED_CLS = 3
PROG_TYPE_SOCK_OPS = 13
PROG_TYPE_SK_SKB = 14
PROG_TYPE_SK_MSG = 16
PROG_TYPE_RAW_TRACEPOINT = 17
PROG_TYPE_TRACING = 26

MSG_INGRESS = 1  # BPF_F_INGRESS

ATTACH_CGROUP_SOCK_OPS = 3
ATTACH_SK_SKB_STREAM_VERDICT = 5
ATTACH_SK_MSG_VERDICT = 7
ATTACH_TRACE_FEXIT = 25
ATTACH_TCX_INGRESS = 46

_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE, _MAP_NEXT_KEY, _PROG_LOAD, _PROG_ATTACH = 0, 1, 2, 3, 4, 5, 8
_INFO_BY_FD, _RAW_TRACEPOINT_OPEN, _BTF_LOAD, _BTF_BY_ID, _MAP_LOOKUP_BATCH, _LINK_CREATE = 15, 17, 18, 19, 24, 28

# The name that `bpftool` shows for the programs and maps of probes, which live for a moment.
_PROBE = "kecho_probe"
_NAME_BYTES = 15  # BPF_OBJ_NAME_LEN, without the NUL
_LOG_BYTES = 4 << 20

_SYSCALL = {"x86_64": 321, "aarch64": 280}


def _bpf(command: int, attr: bytes | ctypes.Array[ctypes.c_char], what: str) -> int:
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise OSError(0, f"kecho does not know the bpf system call of {platform.machine()}")
    buffer = ctypes.create_string_buffer(attr, max(len(attr), 128)) if isinstance(attr, bytes) else attr
    try:
        return libc.call("syscall", number, command, buffer, len(buffer))
    except OSError as e:
        raise OSError(e.errno, f"{what}: {e.strerror}") from None


@dataclass(frozen=True)
class Map:
    """What a map is made with. Sizes are in bytes; `btf_key` and `btf_value` are types of a BTF blob, 0 for none."""

    map_type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int = 0
    name: str = _PROBE
    btf_key: int = 0
    btf_value: int = 0


def map_create(what: Map, btf_fd: int = 0) -> int:
    """A new map's descriptor. Raises OSError."""
    sizes = what.key_size, what.value_size, what.max_entries
    btf = (btf_fd, what.btf_key, what.btf_value) if what.btf_value else (0, 0, 0)
    attr = struct.pack("=7I16sI3I", what.map_type, *sizes, what.flags, 0, 0, what.name.encode(), 0, *btf)
    return _bpf(_MAP_CREATE, attr, f"BPF_MAP_CREATE of {what.name}")


def map_info(map_fd: int) -> tuple[Map, int]:
    """What a map was made with, and the id of its BTF, 0 for none. Raises OSError."""
    info = _info(map_fd, 80)
    map_type, _, key_size, value_size, max_entries, flags, name = struct.unpack_from("=6I16s", info)
    btf_id, btf_key, btf_value = struct.unpack_from("=3I", info, 64)
    sizes = key_size, value_size, max_entries
    return Map(map_type, *sizes, flags, name.rstrip(b"\0").decode(), btf_key, btf_value), btf_id


def _info(fd: int, size: int) -> bytes:
    """struct bpf_map_info or bpf_btf_info, whichever `fd` has; what this kernel does not know of it is 0."""
    info = ctypes.create_string_buffer(size)
    _bpf(_INFO_BY_FD, struct.pack("=IIQ", fd, size, ctypes.addressof(info)), "BPF_OBJ_GET_INFO_BY_FD")
    return info.raw


def btf_load(blob: bytes) -> int:
    """The descriptor of a BTF blob in the kernel. Raises OSError."""
    data = ctypes.create_string_buffer(blob, len(blob))
    return _bpf(_BTF_LOAD, struct.pack("=QQII", ctypes.addressof(data), 0, len(blob), 0), "BPF_BTF_LOAD")


def btf_blob(btf_id: int) -> bytes:
    """The BTF blob of that id. Raises OSError, PermissionError without CAP_SYS_ADMIN."""
    fd = _bpf(_BTF_BY_ID, struct.pack("=I", btf_id), "BPF_BTF_GET_FD_BY_ID")
    try:
        _, size = struct.unpack_from("=QI", _info(fd, 16))
        blob = ctypes.create_string_buffer(size)
        info = ctypes.create_string_buffer(struct.pack("=QII", ctypes.addressof(blob), size, 0), 16)
        _bpf(_INFO_BY_FD, struct.pack("=IIQ", fd, 16, ctypes.addressof(info)), "BPF_OBJ_GET_INFO_BY_FD")
        return blob.raw
    finally:
        os.close(fd)


def map_lookup(map_fd: int, key: bytes, size: int) -> bytes:
    """The value of `key`, of `size` bytes. Raises OSError (ENOENT: no such key).

    A per-CPU map gives the values of all possible CPUs, each padded to 8 bytes.
    """
    key_buffer, value = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(size)
    attr = struct.pack("=IIQQ", map_fd, 0, ctypes.addressof(key_buffer), ctypes.addressof(value))
    _bpf(_MAP_LOOKUP, attr, "BPF_MAP_LOOKUP_ELEM")
    return value.raw


def map_update(map_fd: int, key: bytes, value: bytes) -> None:
    """Sets `key`, new or not. Raises OSError."""
    key_buffer, value_buffer = (
        ctypes.create_string_buffer(key, len(key)),
        ctypes.create_string_buffer(value, len(value)),
    )
    attr = struct.pack("=IIQQQ", map_fd, 0, ctypes.addressof(key_buffer), ctypes.addressof(value_buffer), 0)
    _bpf(_MAP_UPDATE, attr, "BPF_MAP_UPDATE_ELEM")


def map_delete(map_fd: int, key: bytes) -> None:
    """Removes `key`. Raises OSError (ENOENT: no such key)."""
    key_buffer = ctypes.create_string_buffer(key, len(key))
    _bpf(_MAP_DELETE, struct.pack("=IIQ", map_fd, 0, ctypes.addressof(key_buffer)), "BPF_MAP_DELETE_ELEM")


def map_keys(map_fd: int, key_size: int) -> Iterator[bytes]:
    """The keys of a hash map; entries that come or go meanwhile may be missed."""
    key, following = None, ctypes.create_string_buffer(key_size)
    while True:
        previous = ctypes.create_string_buffer(key, key_size) if key is not None else None
        address = ctypes.addressof(previous) if previous is not None else 0
        try:
            _bpf(_MAP_NEXT_KEY, struct.pack("=IIQQ", map_fd, 0, address, ctypes.addressof(following)), "")
        except FileNotFoundError:
            return
        key = following.raw
        yield key


def map_count(map_fd: int, key_size: int, value_size: int, most: int) -> int:
    """The number of entries of a hash map, which has room for `most`. Raises OSError."""
    keys, values = ctypes.create_string_buffer(key_size * most), ctypes.create_string_buffer(value_size * most)
    position = ctypes.create_string_buffer(4)
    # in_batch, out_batch, keys, values, count, map_fd, elem_flags, flags
    addresses = (0, ctypes.addressof(position), ctypes.addressof(keys), ctypes.addressof(values))
    attr = ctypes.create_string_buffer(struct.pack("=QQQQIIQQ", *addresses, most, map_fd, 0, 0))
    with contextlib.suppress(FileNotFoundError):  # ENOENT marks the end of the map
        _bpf(_MAP_LOOKUP_BATCH, attr, "BPF_MAP_LOOKUP_BATCH")
    return int.from_bytes(attr.raw[32:36], sys.byteorder)


@dataclass(frozen=True)
class Program:
    """What a program is loaded with. `attach_btf_id` is the kernel function that a program of type TRACING is for.

    `btf_function` is what BTF calls it, for tools that show it: a type of the blob `btf_fd`; 0 for none.
    """

    prog_type: int
    instructions: bytes
    name: str = _PROBE
    licence: str = "GPL"
    attach_type: int = 0
    attach_btf_id: int = 0
    btf_fd: int = 0
    btf_function: int = 0


class Refused(OSError):
    """The verifier refuses the program. `log` says why, instruction by instruction."""

    log = ""


def prog_load(prog_type: int, instructions: bytes) -> int:
    """Loads a program for a probe. Raises OSError if the kernel refuses the type or the program."""
    return _load(Program(prog_type, instructions))


def program_load(program: Program) -> int:
    """Loads a program and returns its descriptor. Raises Refused, with the verifier's log."""
    try:
        return _load(program)
    except OSError as e:
        log = ctypes.create_string_buffer(_LOG_BYTES)
        refused = Refused(e.errno, e.strerror)
        try:  # again, since the log costs time
            return _load(program, log)
        except OSError:
            refused.log = log.value.decode(errors="replace").strip()
        raise refused from e


def _load(program: Program, log: ctypes.Array[ctypes.c_char] | None = None) -> int:
    code = ctypes.create_string_buffer(program.instructions, len(program.instructions))
    licence = ctypes.create_string_buffer(program.licence.encode())
    functions = ctypes.create_string_buffer(struct.pack("=II", 0, program.btf_function))  # struct bpf_func_info
    info = (8, ctypes.addressof(functions), 1) if program.btf_function else (0, 0, 0)
    attr = struct.pack(
        "=IIQQ IIQII 16sIII IQI IQI I",
        *(program.prog_type, len(code) // 8, ctypes.addressof(code), ctypes.addressof(licence)),
        *((1, len(log), ctypes.addressof(log)) if log else (0, 0, 0)),
        *(0, 0),  # kern_version, prog_flags
        *(program.name.encode()[:_NAME_BYTES], 0, program.attach_type, program.btf_fd if program.btf_function else 0),
        *info,
        *(0, 0, 0),  # line_info
        program.attach_btf_id,
    )
    return _bpf(_PROG_LOAD, attr, "BPF_PROG_LOAD")


def prog_attach(prog_fd: int, target_fd: int, attach_type: int) -> None:
    """Attaches a program to a sockhash for as long as the map lives. Raises OSError."""
    _bpf(_PROG_ATTACH, struct.pack("=IIII", target_fd, prog_fd, attach_type, 0), "BPF_PROG_ATTACH")


def link_create(prog_fd: int, target_fd: int, attach_type: int) -> int:
    """Attaches a program by a link and returns its descriptor. The link ends with the process, even if it is killed.

    The target is a cgroup's descriptor, or for tcx a device's index. Raises OSError.
    """
    return _bpf(_LINK_CREATE, struct.pack("=IIII", prog_fd, target_fd, attach_type, 0), "BPF_LINK_CREATE")


def raw_tracepoint_open(prog_fd: int, tracepoint: str = "") -> int:
    """Attaches a program by a link: to a raw tracepoint, or to what one of type TRACING is for. Raises OSError."""
    name = ctypes.create_string_buffer(tracepoint.encode())
    attr = struct.pack("=QII", ctypes.addressof(name) if tracepoint else 0, prog_fd, 0)
    return _bpf(_RAW_TRACEPOINT_OPEN, attr, "BPF_RAW_TRACEPOINT_OPEN")


def instruction(opcode: int, dst: int = 0, src: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    """One instruction in the machine's byte order (little-endian register nibbles)."""
    return struct.pack("=BBhi", opcode, dst | src << 4, offset, immediate)


# r0 = 1; exit
RETURN_ONE = instruction(0xB7, immediate=1) + instruction(0x95)
# Returns TC_ACT_UNSPEC, which is TCX_NEXT: the packet goes on as without the program.
RETURN_UNSPEC = instruction(0xB7, immediate=-1) + instruction(0x95)


def msg_redirect(sockhash_fd: int, flags: int) -> bytes:
    """An sk_msg program: redirects to the egress of the socket with key 0 (u32), by MSG_INGRESS to its ingress."""
    return b"".join(
        (
            instruction(0x62, 10, offset=-4),  # *(u32 *)(fp - 4) = 0
            instruction(0x18, 2, 1, immediate=sockhash_fd),  # r2 = map, 16 bytes
            instruction(0),
            instruction(0xBF, 3, 10),  # r3 = fp - 4
            instruction(0x07, 3, immediate=-4),
            instruction(0xB7, 4, immediate=flags),  # r4 = flags
            instruction(0x85, immediate=71),  # bpf_msg_redirect_hash(msg, map, &key, flags)
            instruction(0x95),
        )
    )
