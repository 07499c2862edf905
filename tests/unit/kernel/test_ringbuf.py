# SPDX-License-Identifier: MIT
"""Reading a ring buffer, in a file laid out as one. That the kernel's are: tests/host/kernel/test_bpf.py."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator

import pytest

from kecho.kernel.ringbuf import RingBuffer

SIZE = mmap.PAGESIZE
BUSY, DISCARDED = 1 << 31, 1 << 30


class Writer:
    """What the kernel does. A file cannot have its data mapped twice in a row, so every byte is written twice."""

    def __init__(self, at: int) -> None:
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * mmap.PAGESIZE + 2 * SIZE)
        self.at = at
        self.put(0, struct.pack("=Q", at))
        self.move()

    def put(self, offset: int, data: bytes) -> None:
        os.pwrite(self.fd, data, offset)

    def move(self) -> None:
        self.put(mmap.PAGESIZE, struct.pack("=Q", self.at))

    def add(self, data: bytes, flags: int = 0) -> int:
        """Reserves and writes a record; returns its position."""
        at = self.at
        record = struct.pack("=II", len(data) | flags, 0) + data
        for number, byte in enumerate(record):
            for copy in range(2):
                self.put(2 * mmap.PAGESIZE + copy * SIZE + (at + number) % SIZE, bytes([byte]))
        self.at = (at + len(record) + 7 & ~7) % 2**64
        self.move()
        return at

    def commit(self, at: int, size: int) -> None:
        for copy in range(2):
            self.put(2 * mmap.PAGESIZE + copy * SIZE + at % SIZE, struct.pack("=I", size))

    def consumed(self) -> int:
        return int(struct.unpack("=Q", os.pread(self.fd, 8, 0))[0])


@pytest.fixture(params=[0, 2**64 - 3 * SIZE], ids=["from 0", "past 2^64"])
def writer(request: pytest.FixtureRequest) -> Iterator[Writer]:
    made = Writer(request.param)
    yield made
    os.close(made.fd)


def test_every_record_once(writer: Writer) -> None:
    """Of any size, and round the end of the buffer several times."""
    ring = RingBuffer(writer.fd, SIZE)
    assert ring.read() == []
    number = 0
    for _ in range(100):
        written = []
        for size in (1, 8, 13, 300):
            written.append(bytes([number % 251]) * size)
            writer.add(written[-1])
            number += 1
        assert ring.read() == written
        assert writer.consumed() == writer.at
        assert ring.read() == []
    ring.close()


def test_a_record_that_is_not_written_yet_holds_up_what_follows(writer: Writer) -> None:
    ring = RingBuffer(writer.fd, SIZE)
    writer.add(b"first")
    busy = writer.add(b"second", BUSY)
    writer.add(b"third")
    assert ring.read() == [b"first"]
    assert ring.read() == []
    assert writer.consumed() == busy
    writer.commit(busy, 6)
    assert ring.read() == [b"second", b"third"]
    ring.close()


def test_a_discarded_record_is_passed_over(writer: Writer) -> None:
    ring = RingBuffer(writer.fd, SIZE)
    writer.add(b"dropped", DISCARDED)
    writer.add(b"kept")
    assert ring.read() == [b"kept"]
    assert writer.consumed() == writer.at
    ring.close()
