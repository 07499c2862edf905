# SPDX-License-Identifier: MIT
"""A client without a kernel, behind a TUN device: it sends any packets and receives the answers."""

from __future__ import annotations

import os
import random
import select
import struct
from collections.abc import Iterator
from typing import Any

import network
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet, Raw

NET = network.NET
ADDRESSES = {4: (f"10.96.{NET}.1", f"10.96.{NET}.2"), 6: (f"fd96:{NET}::1", f"fd96:{NET}::2")}  # here, there
TS = ("Timestamp", (1000, 77))
LINUX = [("NOP", None), ("NOP", None), TS]
_SILENCE_S = 0.05
# struct virtio_net_hdr without offloads. The headers, up to 60 bytes each, are not all in the linear part.
_VNET_HDR = struct.pack("=BBHHHH", 0, 0, 14, 0, 0, 0)


class Wire:
    """The network behind the device."""

    def __init__(self, tun: int, version: int, port: int) -> None:
        self._tun, self.version, self.port = tun, version, port
        self.here, self.there = ADDRESSES[version]

    def ip(self, **fields: Any) -> Packet:
        """An IP header from `there` to `here`."""
        kind = IP if self.version == 4 else IPv6
        return kind(**{"src": self.there, "dst": self.here, **fields})

    def send(self, packet: Packet | bytes) -> None:
        os.write(self._tun, _VNET_HDR + bytes(packet))

    def packets(self, most: int = 1000, silence_s: float = _SILENCE_S) -> Iterator[Packet]:
        """Receives packets of this port, good or bad: `most` at most, until none has come for `silence_s`."""
        while most and select.select([self._tun], [], [], silence_s)[0]:
            data = os.read(self._tun, 1 << 17)[len(_VNET_HDR) :]
            packet = (IP if data[0] >> 4 == 4 else IPv6)(data)
            if TCP in packet and self.port in (packet[TCP].sport, packet[TCP].dport):
                most -= 1
                yield packet

    def receive(self, most: int = 1000) -> list[Packet]:
        """Receives packets and asserts that their lengths and checksums are right."""
        found = list(self.packets(most))
        for packet in found:
            assert bytes(packet) == bytes(rebuilt(packet)), packet.show(dump=True)
        return found

    def ask(self, packet: Packet | bytes) -> list[Packet]:
        """Sends a packet and returns the answers. Asserts that they are no longer than the packet."""
        self.send(packet)
        found = self.receive()
        assert sum(map(len, found)) <= max(len(packet), 60), "more came back than was sent"
        return found


def rebuilt(packet: Packet) -> Packet:
    """A copy of the packet with the lengths and checksums that scapy computes."""
    copy = packet.copy()
    del copy[TCP].chksum
    if IP in copy:
        del copy[IP].chksum, copy[IP].len
    else:
        del copy[IPv6].plen
    return copy.__class__(bytes(copy))


class Client:
    """A connection from `there`. `shift` is by how much its echo's sequence numbers are ahead."""

    def __init__(self, wire: Wire, options: Any = LINUX, window: int = 1000) -> None:
        self.wire, self.options, self.window = wire, options, window
        self.sport = random.randrange(20000, 60000)
        self.isn = random.randrange(1 << 32)
        (synack,) = self.ask(self.segment(0, "S", ack=None))
        assert synack.flags == "SA" and synack.ack == self.number(1)
        self.shift = (synack.seq - self.isn) % (1 << 32)
        assert self.ask(self.segment(1, ack=1)) == []  # the end of the handshake

    def number(self, at: int) -> int:
        """The sequence number of byte `at` of the stream. The SYN is byte 0."""
        return (self.isn + at) % (1 << 32)

    def segment(self, at: int, flags: str = "A", data: bytes = b"", ack: int | None = 1, **fields: Any) -> Packet:
        """A segment from byte `at` on. It acknowledges the echo up to byte `ack` of the stream; None for 0."""
        fields = {"options": self.options, "window": self.window, **fields}
        number = 0 if ack is None else (self.isn + ack + self.shift) % (1 << 32)
        tcp = TCP(sport=self.sport, dport=self.wire.port, seq=self.number(at), ack=number, flags=flags, **fields)
        return self.wire.ip() / tcp / Raw(data) if data else self.wire.ip() / tcp

    def ask(self, packet: Packet) -> list[Any]:
        """Sends a segment and returns the TCP headers of the answers, whose addresses it checks."""
        found = self.wire.ask(packet)
        for one in found:
            assert (one.src, one.dst) == (self.wire.here, self.wire.there)
            assert (one[TCP].sport, one[TCP].dport) == (self.wire.port, self.sport)
            assert (one.ttl if IP in one else one.hlim) == 64
        return [one[TCP] for one in found]

    def assert_echo(self, segment: Packet, echo: Any, at: int, ack: int, flags: str) -> None:
        """Asserts that `echo` begins at byte `at` of its stream, acknowledges byte `ack` and keeps the window."""
        assert (echo.seq, echo.ack) == ((self.number(at) + self.shift) % (1 << 32), self.number(ack))
        assert (echo.flags, echo.window, echo.urgptr) == (flags, segment[TCP].window, 0)


def options_of(tcp: Any) -> list[Any]:
    return [option for option in tcp.options if option[0] not in ("NOP", "EOL")]
