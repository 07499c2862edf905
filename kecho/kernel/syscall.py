# SPDX-License-Identifier: MIT
"""The bpf(2) system call: maps, links, and programs written as instructions.

Numbers and layouts are those of include/uapi/linux/bpf.h. It does not use bcc, so that `doctor` can probe without it.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import struct
import sys
from collections.abc import Iterator

from kecho.kernel import libc

MAP_TYPE_SOCKHASH = 18

PROG_TYPE_SCHED_CLS = 3
PROG_TYPE_SOCK_OPS = 13
PROG_TYPE_SK_SKB = 14
PROG_TYPE_SK_MSG = 16
PROG_TYPE_RAW_TRACEPOINT = 17

MSG_INGRESS = 1  # BPF_F_INGRESS

ATTACH_CGROUP_SOCK_OPS = 3
ATTACH_SK_SKB_STREAM_VERDICT = 5
ATTACH_SK_MSG_VERDICT = 7
ATTACH_TCX_INGRESS = 46

_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE, _MAP_NEXT_KEY, _PROG_LOAD, _PROG_ATTACH = 0, 1, 2, 3, 4, 5, 8
_MAP_LOOKUP_BATCH, _LINK_CREATE = 24, 28

# The name that `bpftool` shows for programs and maps made here. They are probes and live for a moment.
_NAME = b"kecho_probe"

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


def map_create(map_type: int, key_size: int, value_size: int, max_entries: int) -> int:
    """A new map's descriptor. Raises OSError."""
    attr = struct.pack("=7I16s", map_type, key_size, value_size, max_entries, 0, 0, 0, _NAME)
    return _bpf(_MAP_CREATE, attr, "BPF_MAP_CREATE")


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


def prog_load(prog_type: int, instructions: bytes) -> int:
    """Loads a program and returns its descriptor. Raises OSError if the kernel refuses the type or the program."""
    program = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(b"GPL")
    addresses = (ctypes.addressof(program), ctypes.addressof(licence))
    attr = struct.pack("=IIQQIIQII16s", prog_type, len(instructions) // 8, *addresses, 0, 0, 0, 0, 0, _NAME)
    return _bpf(_PROG_LOAD, attr, "BPF_PROG_LOAD")


def prog_attach(prog_fd: int, target_fd: int, attach_type: int) -> None:
    """Attaches a program to a sockhash for as long as the map lives. Raises OSError."""
    _bpf(_PROG_ATTACH, struct.pack("=IIII", target_fd, prog_fd, attach_type, 0), "BPF_PROG_ATTACH")


def link_create(prog_fd: int, target_fd: int, attach_type: int) -> int:
    """Attaches a program by a link and returns its descriptor. The link ends with the process, even if it is killed.

    The target is a cgroup's descriptor, or for tcx a device's index. Raises OSError.
    """
    return _bpf(_LINK_CREATE, struct.pack("=IIII", prog_fd, target_fd, attach_type, 0), "BPF_LINK_CREATE")


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
