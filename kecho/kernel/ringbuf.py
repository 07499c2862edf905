# SPDX-License-Identifier: MIT
"""Reads a BPF ring buffer: Documentation/bpf/ringbuf.rst of the kernel, and its kernel/bpf/ringbuf.c."""

from __future__ import annotations

import mmap
import struct

# Native ("@"), so that a word is read and written as one.
_POSITION = struct.Struct("@Q")
_LENGTH = struct.Struct("@I")  # of the header, whose other word is the kernel's
_HEADER_BYTES = 8
# BPF_RINGBUF_BUSY_BIT and BPF_RINGBUF_DISCARD_BIT of include/uapi/linux/bpf.h
_BUSY, _DISCARDED = 1 << 31, 1 << 30


class RingBuffer:
    """The one reader of a ring buffer, whose descriptor is readable while there are records.

    The positions only grow, modulo 2^64. The data is mapped twice in a row, so that no record is split.
    """

    def __init__(self, map_fd: int, size_bytes: int) -> None:
        """Maps a ring buffer of that size. Raises OSError."""
        self._size = size_bytes
        self._consumed = mmap.mmap(map_fd, mmap.PAGESIZE)
        self._produced = mmap.mmap(map_fd, mmap.PAGESIZE + 2 * size_bytes, prot=mmap.PROT_READ, offset=mmap.PAGESIZE)

    def read(self) -> list[bytes]:
        """The records that are complete, without waiting."""
        records = []
        (at,) = _POSITION.unpack_from(self._consumed)
        while at != _POSITION.unpack_from(self._produced)[0]:
            start = mmap.PAGESIZE + at % self._size
            (length,) = _LENGTH.unpack_from(self._produced, start)
            if length & _BUSY:
                break
            size = length & ~_DISCARDED
            start += _HEADER_BYTES
            if not length & _DISCARDED:
                records.append(self._produced[start : start + size])
            at = (at + _HEADER_BYTES + size + 7 & ~7) % 2**64
            _POSITION.pack_into(self._consumed, 0, at)
        return records

    def close(self) -> None:
        self._consumed.close()
        self._produced.close()
