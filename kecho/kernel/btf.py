# SPDX-License-Identifier: MIT
"""The offsets of fields in the running kernel's structures, read from its own BTF.

The format is described in the kernel's Documentation/bpf/btf.rst. Only structures are resolved; other types are parsed
just far enough to step over them. That takes about 0.1 s for a whole kernel, where ``bpftool btf dump`` needs 0.7 s.

The blob's layout section (``struct btf_layout`` of include/uapi/linux/btf.h, from Linux 7.3) gives the length of kinds
that are newer than this file. Without that section the types behind such a kind cannot be found; errors then say so.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterable
from pathlib import Path

from kecho.model.errors import KechoError

VMLINUX = Path("/sys/kernel/btf/vmlinux")

_MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBIIIII")
_HEADER_LAYOUT = struct.Struct("<II")  # layout_off, layout_len; there if hdr_len covers them
_LAYOUT = struct.Struct("<BBH")  # info_sz, elem_sz, flags
_KINDS = 128  # bits 24 to 30 of info; bits 24 to 28 before there was a layout section
_VLEN = 0xFFFFFF  # bits 0 to 23 of info; bits 0 to 15 before
_TYPE = struct.Struct("<III")  # name_off, info, size or type
_MEMBER = struct.Struct("<III")  # name_off, type, offset
_ENUMERATOR = struct.Struct("<II")  # name_off, value

_ARRAY, _STRUCT, _UNION, _ENUM, _TYPEDEF, _VOLATILE, _CONST, _RESTRICT = 3, 4, 5, 6, 8, 9, 10, 11
_FUNC = 12
_TYPE_TAG = 18
# A bound for nested modifiers and anonymous types; no kernel comes near it.
_MAX_DEPTH = 32
_MODIFIERS = frozenset((_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG))

# What follows a type's first 12 bytes: a fixed number of bytes, and a number for each of its `vlen` elements.
_TRAILER = {
    1: (4, 0),  # INT
    2: (0, 0),  # PTR
    _ARRAY: (12, 0),
    _STRUCT: (0, 12),
    _UNION: (0, 12),
    _ENUM: (0, 8),
    7: (0, 0),  # FWD
    _TYPEDEF: (0, 0),
    _VOLATILE: (0, 0),
    _CONST: (0, 0),
    _RESTRICT: (0, 0),
    _FUNC: (0, 0),
    13: (0, 8),  # FUNC_PROTO
    14: (4, 0),  # VAR
    15: (0, 12),  # DATASEC
    16: (0, 0),  # FLOAT
    17: (4, 0),  # DECL_TAG
    _TYPE_TAG: (0, 0),
    19: (0, 12),  # ENUM64
    20: (4, 4),  # LOC_PARAM; the last three are in bpf-next
    21: (0, 4),  # LOC_PROTO
    22: (0, 12),  # LOCSEC
}


class BtfError(KechoError):
    """The BTF is malformed, or has no such structure or field."""


class Btf:
    """One BTF blob. Raises BtfError if it is none."""

    def __init__(self, blob: bytes) -> None:
        self._blob = blob
        try:
            magic, _, _, hdr_len, type_off, type_len, str_off, str_len = _HEADER.unpack_from(blob)
        except struct.error as e:
            raise BtfError("truncated BTF header") from e
        if magic != _MAGIC:
            raise BtfError(f"not little-endian BTF: magic {magic:#06x}")
        self._types = hdr_len + type_off
        self._types_end = self._types + type_len
        self._strings = hdr_len + str_off
        if max(self._types_end, self._strings + str_len) > len(blob):
            raise BtfError("truncated BTF")
        self._unknown = ""  # why the index ends before the types do
        self._positions = self._index(self._trailers(hdr_len))

    @classmethod
    def vmlinux(cls) -> Btf:
        """The running kernel's. Raises OSError if it has none (CONFIG_DEBUG_INFO_BTF)."""
        return cls(VMLINUX.read_bytes())

    def _trailers(self, hdr_len: int) -> list[tuple[int, int] | None]:
        """A table like `_TRAILER`, extended by the kinds that only the blob's layout section describes."""
        trailers = [_TRAILER.get(kind) for kind in range(_KINDS)]
        if hdr_len < _HEADER.size + _HEADER_LAYOUT.size:
            return trailers
        layout_off, layout_len = _HEADER_LAYOUT.unpack_from(self._blob, _HEADER.size)
        start = hdr_len + layout_off
        if start + layout_len > len(self._blob):
            raise BtfError("truncated BTF layout")
        for kind in range(min(layout_len // _LAYOUT.size, _KINDS)):
            if kind and trailers[kind] is None:
                info_bytes, element_bytes, _ = _LAYOUT.unpack_from(self._blob, start + kind * _LAYOUT.size)
                trailers[kind] = info_bytes, element_bytes
        return trailers

    def _index(self, steps: list[tuple[int, int] | None]) -> list[int]:
        """The position of every type, up to the first that cannot be stepped over; type 0 is void."""
        positions = [0]
        append, unpack, blob = positions.append, struct.Struct("<I").unpack_from, self._blob
        at, end = self._types, self._types_end
        try:
            while at < end:
                (info,) = unpack(blob, at + 4)
                step = steps[info >> 24 & 0x7F]
                if step is None:
                    kind = info >> 24 & 0x7F
                    self._unknown = f"; what follows type {len(positions)}, of the unknown kind {kind}, is not read"
                    return positions
                append(at)
                at += 12 + step[0] + step[1] * (info & _VLEN)
        except struct.error as e:
            raise BtfError("truncated BTF type") from e
        if at != end:
            raise BtfError("truncated BTF type")
        return positions

    def _type(self, type_id: int) -> tuple[int, int, int, bool, int]:
        """(position, kind, vlen, kind_flag, size or type) of a type without its modifiers."""
        for _ in range(_MAX_DEPTH):
            if not type_id:
                return 0, 0, 0, False, 0
            try:
                at = self._positions[type_id]
            except IndexError as e:
                raise BtfError(f"no BTF type {type_id}{self._unknown}") from e
            _, info, size_or_type = _TYPE.unpack_from(self._blob, at)
            kind = info >> 24 & 0x7F
            if kind not in _MODIFIERS:
                return at, kind, info & _VLEN, bool(info >> 31), size_or_type
            type_id = size_or_type
        raise BtfError("BTF types in a circle")

    def _name_offset(self, name: str) -> int:
        # The string section starts with an empty name, so that every name has a NUL before it.
        at = self._blob.find(b"\0" + name.encode() + b"\0", self._strings)
        return at + 1 - self._strings if at >= 0 else -1

    def _named(self, kind: int, name: str) -> int:
        """The type of that kind and name; 0 if there is none."""
        wanted = self._name_offset(name)
        if wanted < 0:
            return 0
        # Looks for the bytes of name_off, which may stand elsewhere too, and then whether a type starts there.
        at = self._types - 1
        while (at := self._blob.find(struct.pack("<I", wanted), at + 1, self._types_end)) >= 0:
            type_id = bisect_left(self._positions, at)
            if self._positions[type_id : type_id + 1] == [at] and self._kind(at) == kind:
                return type_id
        return 0

    def _kind(self, at: int) -> int:
        info: int = _TYPE.unpack_from(self._blob, at)[1]
        return info >> 24 & 0x7F

    def _struct(self, name: str) -> int:
        if found := self._named(_STRUCT, name):
            return found
        raise BtfError(f"no struct {name} in the kernel's BTF{self._unknown}")

    def _member(self, type_id: int, name: str, depth: int = 0) -> tuple[int, int] | None:
        """(bit offset, type) of a member, which may be in an anonymous struct or union."""
        if depth > _MAX_DEPTH:
            raise BtfError("BTF types in a circle")
        at, kind, vlen, kind_flag, _ = self._type(type_id)
        if kind not in (_STRUCT, _UNION):
            return None
        for i in range(vlen):
            name_off, member_type, offset = _MEMBER.unpack_from(self._blob, at + 12 + 12 * i)
            bits = offset & 0xFFFFFF if kind_flag else offset
            if name_off == 0:
                inner = self._member(member_type, name, depth + 1)
                if inner:
                    return bits + inner[0], inner[1]
            elif self._string(name_off) == name:
                return bits, member_type
        return None

    def _string(self, offset: int) -> str:
        start = self._strings + offset
        return self._blob[start : self._blob.index(b"\0", start)].decode()

    def function(self, name: str) -> int:
        """The type of a function; 0 if there is none of that name."""
        return self._named(_FUNC, name)

    def offset(self, path: str) -> int:
        """Bytes from the start of a structure to a field: ``offset("sock.sk_backlog.rmem_alloc")``.

        Raises BtfError if there is no such structure or field, or if it is a bit field that starts within a byte.
        """
        try:
            return self._offset(path)
        except (struct.error, ValueError) as e:
            raise BtfError(f"malformed BTF: {e}") from e

    def _offset(self, path: str) -> int:
        name, *fields = path.split(".")
        type_id, bits = self._struct(name), 0
        for field in fields:
            member = self._member(type_id, field)
            if member is None:
                raise BtfError(f"no field {path} in the kernel's BTF")
            bits, type_id = bits + member[0], member[1]
        if bits % 8:
            raise BtfError(f"{path} is a bit field")
        return bits // 8

    def enumerator(self, path: str) -> int:
        """The value of an enumerator: ``enumerator("sock_flags.SOCK_ZEROCOPY")``. Raises BtfError."""
        name, _, member = path.partition(".")
        if found := self._named(_ENUM, name):
            at, _, vlen, _, _ = self._type(found)
            for i in range(vlen):
                member_off, value = _ENUMERATOR.unpack_from(self._blob, at + _TYPE.size + i * _ENUMERATOR.size)
                if self._string(member_off) == member:
                    return int(value)
        raise BtfError(f"no enumerator {path} in the kernel's BTF")

    def offsets(self, paths: Iterable[str]) -> dict[str, int]:
        """`offset` of each path."""
        return {path: self.offset(path) for path in paths}


def btf_of_int() -> bytes:
    """A blob whose only type, 1, is the C type int."""
    strings = b"\0int\0"
    types = _TYPE.pack(1, 1 << 24, 4) + struct.pack("<I", 1 << 24 | 32)  # BTF_KIND_INT; BTF_INT_SIGNED, 32 bits
    header = _HEADER.pack(_MAGIC, 1, 0, _HEADER.size, 0, len(types), len(types), len(strings))
    return header + types + strings
