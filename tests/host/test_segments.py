# SPDX-License-Identifier: MIT
"""Segments as a lossy network makes them: a client whose TCP is here, behind a TUN device, sends what it likes."""

from __future__ import annotations

import fcntl
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
from pyroute2.iproute.linux import IPRoute

HERE, THERE = f"10.90.{network.NET}.1", f"10.90.{network.NET}.2"
FIN, SYN, PSH, ACK = 1, 2, 8, 16
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 1, 0x1000


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data + b"\0" * (len(data) % 2))) if len(data) % 2 == 0 else 0
    if len(data) % 2:
        return _checksum(data + b"\0")
    total = (total >> 16) + (total & 0xFFFF)
    return ~((total >> 16) + total) & 0xFFFF


class RawClient:
    """A TCP client without a kernel: it sends the segments it is told to, and acknowledges what comes."""

    def __init__(self, tun: int, port: int) -> None:
        self._tun, self._ports = tun, (random.randrange(40000, 60000), port)
        self.base = random.randrange(1 << 32)  # sequence number of the SYN
        self._next = 0  # expected from the server
        self.got = bytearray()
        self.acked = 0  # bytes of ours
        self.ended = False
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

    def _segment(self, seq: int, data: bytes, flags: int) -> None:
        tcp = struct.pack("!HHIIBBHHH", *self._ports, seq % (1 << 32), self._next, 5 << 4, flags, 65535, 0, 0) + data
        ends = socket.inet_aton(THERE) + socket.inet_aton(HERE)
        check = _checksum(ends + struct.pack("!HH", socket.IPPROTO_TCP, len(tcp)) + tcp)
        tcp = tcp[:16] + struct.pack("!H", check) + tcp[18:]
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0x4000, 64, socket.IPPROTO_TCP, 0) + ends
        os.write(self._tun, ip[:10] + struct.pack("!H", _checksum(ip)) + ip[12:] + tcp)

    def _until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, f"not within 20 s: {what}; {len(self.got)} bytes so far"
            self._receive(0.5, condition)

    def _receive(self, silence_s: float, enough: Callable[[], object] = lambda: False) -> None:
        """Takes in order what is for us, until it is silent for so long or enough; what is lost comes again."""
        while not enough() and select.select([self._tun], [], [], silence_s)[0]:
            packet = os.read(self._tun, 1 << 16)
            if packet[0] != 0x45 or packet[9] != socket.IPPROTO_TCP:
                continue
            source, target, seq, ack, offset, flags = struct.unpack("!HHIIBB", packet[20:34])
            if (target, source) != self._ports:
                continue
            data = packet[20 + (offset >> 4) * 4 :]
            if flags & SYN:
                self._next = (seq + 1) % (1 << 32)
            elif seq == self._next:
                self.got += data
                self.ended = bool(flags & FIN)
                self._next = (seq + len(data) + self.ended) % (1 << 32)
            self.acked = (ack - self.base - 1) % (1 << 32)
            if flags & (SYN | FIN) or data:
                self._segment(self.base + 1 + self.acked, b"", ACK)


@pytest.fixture(scope="module")
def tun() -> Iterator[int]:
    """A network of two addresses: HERE is the kernel's, THERE is whoever has the descriptor."""
    name = f"kt{random.randrange(1 << 32):x}"
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
        with IPRoute() as here:
            index = here.link_lookup(ifname=name)[0]
            here.addr("add", index=index, address=HERE, prefixlen=24)
            here.link("set", index=index, state="up")
        yield fd
    finally:
        os.close(fd)


@pytest.fixture(scope="module", params=["auto", "msg", "user"])
def served(request: pytest.FixtureRequest, tun: int) -> Iterator[support.Service]:
    """A remote client's paths: skb, user by the controller, user by the server. One service for all segments."""
    options = {} if request.param == "auto" else {"path": request.param}
    found = support.up(bind=HERE, **options)
    try:
        yield found
    finally:
        found.down()


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
def test_every_byte_once(tun: int, served: support.Service, segments: list[tuple[int, int]]) -> None:
    """TCP may send again what it sent, cut otherwise: what is known already is not echoed twice."""
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
