# SPDX-License-Identifier: MIT
"""Segments as a lossy network makes them: a client with a TCP of its own, behind a TUN device, sends any segment."""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator

import network
import pytest
import support
from support import wait_for

HERE, THERE = f"10.90.{network.NET}.1", f"10.90.{network.NET}.2"
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
_HEADERS_BYTES = 40  # IP's and TCP's
# struct virtio_net_hdr: no offloads. The headers are to be linear: with a page or more, what follows is in fragments.
_VNET_HDR = struct.pack("=BBHHHH", 0, 0, _HEADERS_BYTES, 0, 0, 0)


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data + b"\0" * (len(data) % 2))) if len(data) % 2 == 0 else 0
    if len(data) % 2:
        return _checksum(data + b"\0")
    total = (total >> 16) + (total & 0xFFFF)
    return ~((total >> 16) + total) & 0xFFFF


class RawClient:
    """A TCP client in user space: it sends the segments of a test and acknowledges what it receives."""

    def __init__(self, tun: int, port: int) -> None:
        self._tun, self._ports = tun, (random.randrange(40000, 60000), port)
        self.base = random.randrange(1 << 32)  # sequence number of the SYN
        self._next = 0  # expected from the server
        self.got = bytearray()
        self._came: list[tuple[int, bytes, bool]] = []  # where in the stream, what, and is it the end
        self.acked = 0  # bytes of ours
        self.ended = self.broken = False
        self._segment(self.base, b"", SYN)
        self._until(lambda: self._next, "the SYN-ACK")

    def send(self, at: int, data: bytes, flags: int = PSH) -> None:
        """A segment whose first byte is number `at` of the stream."""
        self._segment(self.base + 1 + at, data, ACK | flags)

    def expect(self, size: int) -> bytes:
        """So many bytes came back; and then nothing more for a while."""
        self._until(lambda: len(self.got) >= size, f"{size} bytes")
        self._receive(0.3)
        return bytes(self.got)

    def expect_end(self) -> bytes:
        """All up to the server's FIN."""
        self._until(lambda: self.ended, "the end of the stream")
        return bytes(self.got)

    def expect_reset(self) -> bytes:
        """All up to the server's RST."""
        self._until(lambda: self.broken, "a reset")
        return bytes(self.got)

    def _segment(self, seq: int, data: bytes, flags: int) -> None:
        tcp = struct.pack("!HHIIBBHHH", *self._ports, seq % (1 << 32), self._next, 5 << 4, flags, 65535, 0, 0) + data
        ends = socket.inet_aton(THERE) + socket.inet_aton(HERE)
        check = _checksum(ends + struct.pack("!HH", socket.IPPROTO_TCP, len(tcp)) + tcp)
        tcp = tcp[:16] + struct.pack("!H", check) + tcp[18:]
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0x4000, 64, socket.IPPROTO_TCP, 0) + ends
        os.write(self._tun, _VNET_HDR + ip[:10] + struct.pack("!H", _checksum(ip)) + ip[12:] + tcp)

    def _until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, f"not within 20 s: {what}; {len(self.got)} bytes so far"
            self._receive(0.5, condition)

    def _receive(self, silence_s: float, enough: Callable[[], object] = lambda: False) -> None:
        """Takes in what is for us, until it is silent for so long or enough."""
        while not enough() and select.select([self._tun], [], [], silence_s)[0]:
            packet = os.read(self._tun, 1 << 17)[len(_VNET_HDR) :]
            if packet[0] != 0x45 or packet[9] != socket.IPPROTO_TCP:
                continue
            source, target, seq, ack, offset, flags = struct.unpack("!HHIIBB", packet[20:34])
            if (target, source) != self._ports:
                continue
            if flags & RST:
                self.broken = True
                continue
            data = packet[20 + (offset >> 4) * 4 :]
            if flags & SYN:
                self._first = self._next = (seq + 1) % (1 << 32)
            else:
                self._assemble((seq - self._next + (1 << 31)) % (1 << 32) - (1 << 31), data, bool(flags & FIN))
            self.acked = (ack - self.base - 1) % (1 << 32)
            if flags & (SYN | FIN) or data:
                self._segment(self.base + 1 + self.acked, b"", ACK)

    def _assemble(self, ahead: int, data: bytes, fin: bool) -> None:
        """Puts a segment that begins so far ahead of what is expected in its place, with those that it makes fit."""
        self._came.append((len(self.got) + ahead, data, fin))
        for at, part, end in sorted(self._came):
            if at <= len(self.got) <= at + len(part):
                self.got += part[len(self.got) - at :]
                self.ended |= end
        self._next = (self._first + len(self.got) + self.ended) % (1 << 32)


@pytest.fixture(scope="module")
def tun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A network of two addresses: HERE is the kernel's, THERE is the client's behind the descriptor."""
    with network.tun(tmp_path_factory.mktemp("dev"), (HERE, 24)) as fd:
        yield fd


@pytest.fixture(scope="module", params=support.PATHS)
def kept(request: pytest.FixtureRequest, tun: int) -> Iterator[support.Kept]:
    """Each path. The client is a remote one."""
    with contextlib.closing(support.Kept(request.param, bind=HERE)) as found:
        yield found


# Each segment: where it begins in the stream and how long it is.
OVERLAPS = {
    "in order": [(0, 100), (100, 100)],
    "twice": [(0, 100), (0, 100), (100, 100), (0, 100)],
    "again with more": [(0, 100), (0, 150)],
    "again and again with more": [(0, n) for n in range(1, 60)],
    "out of order": [(200, 100), (100, 100), (0, 100)],
    "out of order, overlapping": [(150, 100), (100, 120), (0, 110)],
    "a hole filled with too much": [(0, 50), (100, 50), (30, 90), (140, 60)],
    "much of it known": [(0, 1400), (1400, 1400), (2800, 1400), (0, 1400), (1300, 1400), (2700, 1460)],
    "thousands known": [(0, 1400), (1400, 1400), (2800, 1400), (4200, 1400), (100, 9000)],
}


@pytest.mark.parametrize("segments", OVERLAPS.values(), ids=list(OVERLAPS))
def test_every_byte_once(tun: int, served: support.Server, segments: list[tuple[int, int]]) -> None:
    """TCP may retransmit data in other segments; data that was received before is not echoed twice."""
    size = max(at + length for at, length in segments)
    data = support.payload(size + 100)
    client = RawClient(tun, served.port)
    for at, length in segments:
        client.send(at, data[at : at + length])
    support.assert_same(client.expect(size), data[:size])
    client.send(size, data[size:])
    support.assert_same(client.expect(size + 100), data)
    client.send(size + 100, b"", FIN)
    support.assert_same(client.expect_end(), data)


def take_back(remotes: int, in_bytes: int, instead: int) -> None:
    """Has the verdict believe that it took in less, of the one connection of which it took in so much."""
    entries = support.bpftool("map", "dump", "id", remotes)
    (entry,) = (entry for entry in entries if entry["formatted"]["value"]["in_bytes"] == in_bytes)
    key, value = (bytes(int(byte, 16) for byte in entry[part]) for part in ("key", "value"))
    value = value.replace(struct.pack("=I", in_bytes), struct.pack("=I", instead), 1)  # the next one is out_bytes
    support.bpftool("map", "update", "id", remotes, "key", *key, "value", *value)


def test_a_stream_with_a_hole_is_reset(tun: int) -> None:
    """An echo never has bytes missing. tests/uml/test_trim.py makes a hole by failing allocations, this edits a map."""
    served = support.up(bind=HERE, path="skb")
    try:
        data = support.payload(4000)
        client, other = RawClient(tun, served.port), RawClient(tun, served.port)
        client.send(0, data[:1234])
        support.assert_same(client.expect(1234), data[:1234])
        take_back(support.map_id(served.pid, "remotes"), 1234, 1200)
        client.send(1234, data[1234:2000])
        support.assert_same(client.expect_reset(), data[:1234])
        other.send(0, data)
        support.assert_same(other.expect(4000), data)
        wait_for(lambda: served.connections()["aborted"] == 1, "the connection to be counted")
        assert served.connections()["active"] == 1
    finally:
        served.down()
