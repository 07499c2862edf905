# SPDX-License-Identifier: MIT
"""The mirror behind networks that lose, duplicate and delay packets, with and without offload, and under floods."""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator

import interleaving
import network
import pytest
import support
from pyroute2.iproute.linux import IPRoute
from relay import Faults, Relay, relay
from scapy.layers.inet import IP, TCP
from scapy.packet import Raw

FULL = os.environ.get("KECHO_TEST_FULL") == "1"
FAULTS = {
    "none": Faults(),
    "loss 0.1 %": Faults(loss=0.001),
    "loss 1 %": Faults(loss=0.01),
    "loss 5 %": Faults(loss=0.05),
    "reordering": Faults(reorder=0.1),
    "duplication": Faults(duplicate=0.1),
    "delay": Faults(delay_s=0.02),
    "all": Faults(loss=0.01, duplicate=0.05, reorder=0.1, delay_s=0.005),
}
STREAM_BYTES = int(os.environ.get("KECHO_TEST_STREAM_MB", "5")) * 1_000_000 if FULL else support.few(400_000)
FLOOD = 1_000_000 if FULL else support.few(50_000)

Up = Callable[..., support.Service]


# ---- bad networks ----


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    with relay(tmp_path_factory.mktemp("dev")) as found:
        yield found


@pytest.fixture(scope="module")
def lane(bad: Relay) -> Iterator[interleaving.ServiceLane]:
    found = interleaving.ServiceLane("mirror, bad network", "mirror", bad, mode="mirror")
    try:
        yield found
    finally:
        found.service.down()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
def test_streams(bad: Relay, lane: interleaving.ServiceLane, faults: Faults) -> None:
    """Streams in both directions, every byte compared. KECHO_TEST_FULL prints the goodput beside that of epoll."""
    prefix, took_s = ["ip", "netns", "exec", bad.namespace], {}
    bad.faults = faults
    base = support.up(mode="user", bind=bad.here) if FULL else None
    try:
        for name, server in (("epoll", base), ("mirror", lane.service)):
            if server:
                start_s = time.monotonic()
                server.stream(3, STREAM_BYTES, prefix)
                took_s[name] = time.monotonic() - start_s
    finally:
        if base:
            base.down()
    if FULL:
        print(f"\nmeasured: {faults}: goodput, mirror ÷ epoll: {took_s['epoll'] / took_s['mirror']:.2f}")
    support.wait_for(lambda: lane.active() == 0, "the end of all connections")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
def test_interleavings_in_a_bad_network(bad: Relay, lane: interleaving.ServiceLane, faults: Faults) -> None:
    """Runs scripts of the property test with little in flight: each loss of a last packet waits for a timer."""
    bad.faults = faults
    for seed in range(40 if FULL else 3):
        rng = random.Random(seed)
        interleaving.run_round(lane, [interleaving.make_script(rng) for _ in range(3)])


# ---- checksums ----

# include/uapi/linux/sockios.h, ethtool.h: SIOCETHTOOL; ETHTOOL_STXCSUM, STSO, SGSO, SGRO
_SIOCETHTOOL, _OFFLOADS = 0x8946, {"tx": 0x17, "tso": 0x1F, "gso": 0x24, "gro": 0x2C}


def set_offloads(sock: socket.socket, device: str, on: bool) -> None:
    """Does what `ethtool -K` does, in the namespace of the socket. TSO needs checksums: it is off first and on last."""
    for name in ("tx", "tso", "gso", "gro") if on else ("tso", "gso", "gro", "tx"):
        value = ctypes.create_string_buffer(struct.pack("II", _OFFLOADS[name], on), 8)
        fcntl.ioctl(sock, _SIOCETHTOOL, struct.pack("16sP16x", device.encode(), ctypes.addressof(value)))


@pytest.fixture(scope="module")
def pair() -> Iterator[network.Veth]:
    with network.veth() as found:
        yield found


@pytest.fixture(scope="module")
def served(pair: network.Veth) -> Iterator[support.Service]:
    found = support.up(mode="mirror", bind=[pair.here, pair.here6])
    try:
        yield found
    finally:
        found.down()


def client_in(pair: network.Veth, served: support.Service, family: int = socket.AF_INET) -> socket.socket:
    """A client at the other end of the pair."""
    return support.connect(served.address(family), served.port, support.socket_in(pair.namespace, family))


@pytest.mark.parametrize("theirs", [True, False], ids=["client's on", "client's off"])
@pytest.mark.parametrize("ours", [True, False], ids=["mirror's on", "mirror's off"])
def test_checksums(pair: network.Veth, served: support.Service, ours: bool, theirs: bool) -> None:
    """With offload off, the client's segments have a full checksum, and it verifies those of the echoes."""
    for sock, device, on in (
        (socket.socket(), pair.device, ours),
        (support.socket_in(pair.namespace, socket.AF_INET), "peer", theirs),
    ):
        with sock:
            set_offloads(sock, device, on)
    for family in (socket.AF_INET, socket.AF_INET6):
        with client_in(pair, served, family) as client:
            for size in (1, 2, 63, 1447, 1448, 1449, 100_001):
                support.echo(client, support.payload(size))
            client.send(b"u", socket.MSG_OOB)
            client.shutdown(socket.SHUT_WR)
            assert support.receive_all(client) == b"u"
    assert network.tcp_counter("InCsumErrors", pair.namespace) == 0


# ---- exchanges that nobody drives ----


def carried(device: str) -> dict[str, int]:
    """The packets and bytes that a device has received and sent."""
    with IPRoute() as route:
        (link,) = route.get_links(route.link_lookup(ifname=device)[0])
        stats = link.get_attr("IFLA_STATS64")
        return {name: stats[name] for name in ("rx_packets", "tx_packets", "rx_bytes", "tx_bytes")}


@pytest.mark.parametrize("other", ["mirror", "user"])
def test_two_echoes_set_on_each_other(service: Up, other: str) -> None:
    """Segments spoofed from the other's port do not start an endless exchange, the old problem of RFC 862."""
    rng, segments = random.Random(1), 400
    with network.veth() as pair:
        service(mode="mirror", bind=pair.here, port=7007)
        service(mode=other, bind=pair.there, port=7007, run={"preexec_fn": lambda: support.enter_netns(pair.namespace)})
        with (
            support.socket_in(pair.namespace, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as theirs,
            socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as ours,
        ):
            before = carried(pair.device)["rx_packets"]
            for _ in range(segments):
                for sock, src, dst in ((ours, pair.here, pair.there), (theirs, pair.there, pair.here)):
                    flags = rng.choice(["S", "A", "PA", "FA", "SA", "R"])
                    tcp = TCP(sport=7007, dport=7007, seq=rng.getrandbits(32), ack=rng.getrandbits(32), flags=flags)
                    sock.sendto(bytes(IP(src=src, dst=dst) / tcp / Raw(b"x" * rng.randrange(3))), (dst, 0))
            time.sleep(0.2)
            after = carried(pair.device)["rx_packets"]
            time.sleep(0.3)
            # The kernel itself says a few things meanwhile: neighbour solicitations, a SYN-ACK once more.
            assert carried(pair.device)["rx_packets"] - after <= segments / 20, "they talk on"
        assert after - before <= 4 * segments


# ---- floods ----


@pytest.mark.timeout(600)
@pytest.mark.parametrize("flags", ["S", "R", "A", "PA", "FA"])
def test_flood(pair: network.Veth, served: support.Service, flags: str) -> None:
    """A flood from the network behind the device: a connected client goes on, and no more goes out than came in."""
    rng, prefix = random.Random(1), pair.here.rpartition(".")[0]
    packets = []
    for _ in range(2000):
        ip = IP(src=f"{prefix}.{rng.randrange(3, 255)}", dst=pair.here)
        ports = {"sport": rng.randrange(1024, 65536), "dport": served.port}
        tcp = TCP(**ports, seq=rng.getrandbits(32), ack=rng.getrandbits(32), flags=flags)
        packets.append(bytes(ip / tcp / Raw(b"data" if "P" in flags else b"")))
    with (
        client_in(pair, served) as client,
        support.socket_in(pair.namespace, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw,
    ):
        support.echo(client, b"before")
        before, start_s = carried(pair.device), time.monotonic()
        for i in range(FLOOD):
            raw.sendto(packets[i % len(packets)], (pair.here, 0))
            if i % 1000 == 0:
                support.echo(client, support.payload(500, i))
        took_s, after = time.monotonic() - start_s, carried(pair.device)
        support.echo(client, support.payload(100_000))
    came, went = (after[name] - before[name] for name in ("rx_bytes", "tx_bytes"))
    # A client that asks every 50 ms, as on a busy machine, is taken for one with Nagle's algorithm.
    twice = (FLOOD // 1000 + 1) * 600
    assert after["rx_packets"] - before["rx_packets"] >= FLOOD and went <= came + twice
    print(f"\nmeasured: {flags}: {FLOOD} in {took_s:.1f} s, {came} bytes came, {went} went")
    with client_in(pair, served) as another:
        support.echo(another, b"after")
