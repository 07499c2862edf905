# SPDX-License-Identifier: MIT
"""The mirror packet by packet: a client without a kernel, behind a TUN device, checks the answers."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import network
import pytest
import support
from scapy.layers.inet import TCP
from scapy.layers.inet6 import IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.packet import Packet, Raw
from wire import ADDRESSES, LINUX, TS, Client, Wire, options_of, rebuilt

MOST_IN_FLIGHT = 1 << 28  # bpf/mirror.h
MOST_REPEATS = 8  # bpf/mirror-conn.h
OTHER = {4: f"10.96.{network.NET}.3", 6: f"fd96:{network.NET}::3"}  # another address of the service


@pytest.fixture(scope="module")
def tun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    addresses = [(ADDRESSES[4][0], 24), (OTHER[4], 24), (ADDRESSES[6][0], 64), (OTHER[6], 64)]
    with network.tun(tmp_path_factory.mktemp("dev"), *addresses) as fd:
        yield fd


@pytest.fixture(scope="module")
def served(tun: int) -> Iterator[support.Service]:
    found = support.up(mode="mirror", bind=[ADDRESSES[4][0], OTHER[4], ADDRESSES[6][0], OTHER[6]])
    try:
        yield found
    finally:
        found.down()


@pytest.fixture(params=[4, 6], ids=["v4", "v6"])
def wire(request: pytest.FixtureRequest, tun: int, served: support.Service) -> Wire:
    return Wire(tun, request.param, served.port)


@pytest.fixture
def client(wire: Wire) -> Client:
    return Client(wire)


# ---- SYN ----


def test_syn_agrees_to_what_it_keeps(wire: Wire) -> None:
    """The SYN-ACK has MSS, window scale, SACK and timestamps as offered, in any order. All else is declined."""
    agreed = [("MSS", 1234), ("SAckOK", b""), ("WScale", 7), ("Timestamp", (4711, 0))]
    other = [(34, b"cookie!!"), (30, b"\x00\x81" + bytes(8)), (254, b"\xf9\x89"), ("AltChkSum", (1, 2))]
    rng = random.Random(1)
    for _ in range(24):
        offered = [*agreed, rng.choice(other), *([("NOP", None)] * rng.randrange(3))]
        rng.shuffle(offered)
        client = Client.__new__(Client)
        client.wire, client.options, client.window = wire, offered, 65000
        client.sport, client.isn, client.shift = rng.randrange(20000, 60000), rng.randrange(1 << 32), 0
        (echo,) = client.ask(client.segment(0, "SEC", b"early" * rng.randrange(3), ack=None))
        expected = {name: value for name, value in agreed if name != "Timestamp"} | {"Timestamp": (4711, 4711)}
        assert dict(options_of(echo)) == expected
        assert (echo.flags, echo.ack, echo.window, bytes(echo.payload)) == ("SA", client.number(1), 65000, b"")


def test_syn_with_timestamps_alone(wire: Wire) -> None:
    (synack,) = wire.ask(wire.ip() / TCP(sport=4001, dport=wire.port, seq=5, flags="S", options=LINUX))
    assert dict(options_of(synack[TCP])) == {"Timestamp": (1000, 1000)}


def test_a_restarted_connection_has_the_same_shift(client: Client) -> None:
    again = client.segment(0, "S", ack=None)
    again[TCP].seq = 12345
    (echo,) = client.ask(again)
    assert (echo.seq - 12345) % (1 << 32) == client.shift


def test_connections_that_share_a_slot_have_their_own_shifts(wire: Wire) -> None:
    """A connection to another address by the same ports shares its slot in the table of shifts; some more by chance."""
    ports = random.sample(range(20000, 60000), 250)
    connections = [(address, port) for port in ports for address in (wire.here, OTHER[wire.version])]
    found: dict[tuple[str, int], list[int]] = {}
    for _ in range(2):
        for address, port in connections:
            wire.send(wire.ip(dst=address) / TCP(sport=port, dport=wire.port, seq=7, flags="S"))
            (synack,) = wire.packets(most=1, silence_s=5)
            found.setdefault((synack.src, synack[TCP].dport), []).append(synack[TCP].seq)
        random.shuffle(connections)
    assert all(first == again for first, again in found.values())
    assert len({first for first, _ in found.values()}) > len(connections) - 3  # 2 to the power of 30 are possible


@pytest.mark.parametrize("options", [[("MSS", 1460), (8, b"\x00")], [(30, b"")]], ids=["short", "empty"])
def test_syn_with_odd_options(wire: Wire, options: Any) -> None:
    """Timestamps of a wrong length are refused as by a closed port. An option without content is declined."""
    packet = wire.ip() / TCP(sport=4000, dport=wire.port, seq=5, flags="S", options=options)
    (answer,) = wire.ask(packet)
    assert answer[TCP].flags == ("RA" if options[0][0] == "MSS" else "SA")


# ---- data ----


@pytest.mark.parametrize("flags", ["A", "PA", "FPA", "FA"])
@pytest.mark.parametrize("size", [1, 2, 1399])
def test_data_is_its_echo(client: Client, flags: str, size: int) -> None:
    data = support.payload(size)
    segment = client.segment(1, flags, data)
    (echo,) = client.ask(segment)
    client.assert_echo(segment, echo, 1, 1, flags)
    assert bytes(echo.payload) == data and dict(options_of(echo)) == dict([TS])


def test_urgent_data_is_data(client: Client) -> None:
    (echo,) = client.ask(segment := client.segment(1, "UPA", b"urgent", urgptr=6))
    client.assert_echo(segment, echo, 1, 1, "PA")
    assert bytes(echo.payload) == b"urgent"


def test_congestion_marks_are_not_reflected(client: Client) -> None:
    (echo,) = client.ask(segment := client.segment(1, "ECPA", b"marked"))
    client.assert_echo(segment, echo, 1, 1, "PA")


def test_many_segments_in_flight(client: Client) -> None:
    """Each echo acknowledges what the client had back when it sent the segment."""
    for at, ack in ((1, 1), (101, 1), (201, 101), (301, 301)):
        (echo,) = client.ask(segment := client.segment(at, "PA", bytes(100), ack))
        client.assert_echo(segment, echo, at, ack, "PA")


@pytest.mark.parametrize(
    "options",
    [[TS], [("NOP", None), TS], [TS, ("NOP", None), ("NOP", None)], [("NOP", None)] * 3 + [TS], []],
    ids=["first", "odd", "last", "odd again", "none"],
)
def test_timestamps_stay_wherever_they_stand(client: Client, options: Any) -> None:
    """The echo reply of an acknowledgement is then the time at which the client sent what it acknowledges."""
    (echo,) = client.ask(segment := client.segment(1, "PA", b"data", options=options))
    client.assert_echo(segment, echo, 1, 1, "PA")
    assert dict(options_of(echo)) == (dict([TS]) if options else {})


# ---- acknowledgements ----


def test_an_acknowledgement_comes_back(client: Client) -> None:
    """Once the client has its echo, the answer acknowledges the last of its data."""
    (echo,) = client.ask(segment := client.segment(101, ack=101))
    client.assert_echo(segment, echo, 101, 101, "A")


def test_sack_is_shifted(client: Client) -> None:
    """What the client has back beyond a hole, the mirror acknowledges by SACK."""
    edges = [client.number(at) + client.shift for at in (201, 301, 401, 501, 601, 701)]
    blocks = ("SAck", tuple(edge % (1 << 32) for edge in edges))
    for options in ([*LINUX, ("NOP", None), ("NOP", None), blocks], [("NOP", None), blocks], [blocks, TS]):
        (echo,) = client.ask(segment := client.segment(701, ack=101, options=options))
        client.assert_echo(segment, echo, 701, 101, "A")
        (shifted,) = (value for name, value in options_of(echo) if name == "SAck")
        assert list(shifted) == [client.number(at) for at in (201, 301, 401, 501, 601, 701)]


# Segments with data that the client has back already, up to byte 101: retransmissions, probes, a keepalive.
OLD = {
    "again": (1, 100, "PA"),
    "a part again": (50, 51, "A"),
    "window probe": (100, 0, "A"),
    "keepalive": (100, 1, "A"),
    "FIN again": (100, 0, "FA"),
}


@pytest.mark.parametrize(("at", "size", "flags"), OLD.values(), ids=list(OLD))
def test_what_is_back_already_is_acknowledged(client: Client, at: int, size: int, flags: str) -> None:
    """The answer lies in the client's window: its TCP ignores the ACK number of an old segment.

    With data it has the time of this segment: the client measures no round trip since it sent the data first.
    """
    (echo,) = client.ask(segment := client.segment(at, flags, support.payload(size), ack=101))
    client.assert_echo(segment, echo, 101, 101, "A")
    now, before = TS[1]
    assert bytes(echo.payload) == b"" and dict(options_of(echo)) == {"Timestamp": (now, now if size else before)}


def test_partly_new_data_comes_back_whole(client: Client) -> None:
    (echo,) = client.ask(segment := client.segment(51, "PA", support.payload(100), ack=101))
    client.assert_echo(segment, echo, 51, 101, "PA")
    assert bytes(echo.payload) == support.payload(100)


def test_closed_window_with_data_in_flight(client: Client) -> None:
    """The answer lies in the window, or the client would answer it in turn."""
    (echo,) = client.ask(segment := client.segment(201, ack=101, window=0))
    client.assert_echo(segment, echo, 101, 101, "A")


@pytest.mark.parametrize("scale", [0, 3, 14, 255])
def test_more_in_flight_than_room(wire: Wire, scale: int) -> None:
    """The answer lies in the window of a client that has taken back a part of it."""
    client = Client(wire, options=[*LINUX, ("WScale", scale)] if scale else LINUX)
    client.options = LINUX
    for window in (1, 5, 10):
        room = window << min(scale, 14)
        for size in (room - 1, room, room + 1, 2 * room, 2_000_000):
            (echo,) = client.ask(segment := client.segment(101 + size, ack=101, window=window))
            client.assert_echo(segment, echo, 101 + (size if size <= room else room - 1), 101, "A")


def test_repeated_acknowledgements_end(client: Client) -> None:
    """There are enough for a fast retransmission, but two ends that answer each other stop."""
    same = client.segment(20001, ack=101)
    answers = [client.ask(same) for _ in range(MOST_REPEATS + 4)]
    assert [len(found) for found in answers] == [1] * (MOST_REPEATS + 1) + [0] * 3
    assert len(client.ask(client.segment(20001, ack=102))) == 1


def test_repeated_sack_ends_no_data(client: Client) -> None:
    """A hole stays for as long as what fills it is lost on the way back, and the client goes on sending it."""
    hole = ("SAck", tuple((client.number(at) + client.shift) % (1 << 32) for at in (201, 301)))
    again = client.segment(101, "A", bytes(100), ack=101, options=[*LINUX, ("NOP", None), ("NOP", None), hole])
    assert [len(client.ask(again)) for _ in range(MOST_REPEATS + 4)] == [1] * (MOST_REPEATS + 4)


def test_probes_with_sack_are_all_answered(client: Client) -> None:
    """A client gives up when its probes are not answered."""
    hole = ("SAck", tuple((client.number(at) + client.shift) % (1 << 32) for at in (201, 301)))
    probe = client.segment(100, ack=101, window=0, options=[*LINUX, ("NOP", None), ("NOP", None), hole])
    assert [len(client.ask(probe)) for _ in range(MOST_REPEATS + 4)] == [1] * (MOST_REPEATS + 4)


# ---- clients with Nagle's algorithm ----

SIZE = 100


def turn(client: Client, at: int, late_s: float, held_s: float, back: int = 0) -> list[Any]:
    """Sends data, an ACK `late_s` after the echo, and more data `held_s` after the answer. Returns the last echoes.

    The first data acknowledges byte `back`, or all before it.
    """
    client.wire.send(client.segment(at, "PA", bytes(SIZE), back or at))
    assert len(client.wire.receive(most=1)) == 1
    time.sleep(late_s)
    client.wire.send(client.segment(at + SIZE, ack=at + SIZE))
    assert len(client.wire.receive(most=1)) == 1
    time.sleep(held_s)
    client.wire.send(client.segment(at + SIZE, "PA", bytes(SIZE), at + SIZE))
    return client.wire.receive()


def test_who_holds_back_is_nudged(client: Client) -> None:
    """A client with Nagle's algorithm gets its echo twice from then on: its TCP acknowledges the old copy at once."""
    found = turn(client, 1, late_s=0.4, held_s=0)
    client.wire.send(client.segment(1 + 2 * SIZE, "PA", bytes(SIZE), 1 + 2 * SIZE))
    for first, again in (found, client.wire.receive()):
        assert bytes(first) == bytes(again)
    assert len(client.ask(client.segment(1 + 4 * SIZE, "FPA", bytes(SIZE), 1 + 4 * SIZE))) == 1
    client.ask(client.segment(0, "S", ack=None))
    assert len(client.ask(client.segment(1, "PA", bytes(SIZE)))) == 1, "a new connection of an old one's address"


@pytest.mark.parametrize(("late_s", "held_s"), [(0, 0), (0.1, 0.5), (1.2, 0)], ids=["in time", "idle", "stale"])
def test_others_are_not_nudged(client: Client, late_s: float, held_s: float) -> None:
    assert len(turn(client, 1, late_s, held_s)) == 1


def test_a_stream_is_not_nudged(client: Client) -> None:
    """Who sends while more is in flight does not wait for an acknowledgement, however late those of his own are."""
    client.ask(client.segment(1, "PA", bytes(SIZE)))
    assert len(turn(client, 1 + SIZE, late_s=0.4, held_s=0, back=1)) == 1


def test_who_turns_to_streaming_is_nudged_no_more(client: Client) -> None:
    """A second segment behind another may be what Nagle's algorithm lets through; a third is not held back."""
    turn(client, 1, late_s=0.4, held_s=0)
    back = 1 + 2 * SIZE
    at = [back + i * SIZE for i in range(5)]
    found = []
    for where, ack in zip(at, [back, back, at[2], at[2], at[2]], strict=True):
        client.wire.send(client.segment(where, "PA", bytes(SIZE), ack))
        found.append(len(client.wire.receive()))
    assert found == [2, 2, 2, 2, 1]


def test_who_is_answered_twice_has_proved_itself(client: Client) -> None:
    """Only an ACK of the exact last byte proves that a client sees the echoes. A guess does not double them."""
    client.ask(client.segment(1, "PA", bytes(SIZE)))
    time.sleep(0.4)
    client.wire.send(client.segment(1 + SIZE, ack=SIZE))
    assert len(client.wire.receive(most=1)) == 1
    assert len(client.ask(client.segment(1 + SIZE, "PA", bytes(SIZE), 1 + SIZE))) == 1


# ---- what is not ours ----


def assert_refused(segment: Packet, found: list[Any]) -> None:
    """The answer is that of a closed port (RFC 9293, section 3.10.7.1)."""
    (answer,) = found
    assert (answer.flags, answer.seq) == ("R", segment[TCP].ack)


def test_far_off_numbers_are_refused(client: Client) -> None:
    size = 10
    for in_flight, ours in ((MOST_IN_FLIGHT - 1, True), (MOST_IN_FLIGHT, False), (1 << 31, False)):
        for sign in (1, -1):
            segment = client.segment(1000 + sign * in_flight - size, "PA", bytes(size), ack=1000)
            found = client.ask(segment)
            if ours:
                assert len(found) == 1 and "R" not in found[0].flags
            else:
                assert_refused(segment, found)


def test_another_connections_numbers_are_refused(client: Client, wire: Wire) -> None:
    others = [Client(wire) for _ in range(4)]
    for other in others:
        segment = client.segment(1, "PA", b"data")
        segment[TCP].sport = other.sport
        refused = abs((other.shift - client.shift + (1 << 31)) % (1 << 32) - (1 << 31)) > MOST_IN_FLIGHT
        (answer,) = wire.ask(segment)
        assert ("R" in answer[TCP].flags) == refused


@pytest.mark.parametrize("flags", ["R", "RA"])
def test_a_reset_has_no_answer(client: Client, flags: str) -> None:
    assert client.ask(client.segment(1, flags)) == []


@pytest.mark.parametrize("flags", ["SA", "FSA"])
def test_syn_with_more(client: Client, flags: str) -> None:
    assert_refused(segment := client.segment(1, flags), client.ask(segment))


@pytest.mark.parametrize("flags", ["", "F", "P", "FPU", "FS"])
def test_no_acknowledgement(client: Client, flags: str) -> None:
    (answer,) = client.ask(client.segment(1, flags, b"x"))
    assert answer.flags == "RA"


def test_another_port_or_address(wire: Wire, client: Client) -> None:
    segment = client.segment(1, "PA", b"data")
    segment[TCP].dport = wire.port + 1
    assert all("R" in found[TCP].flags for found in wire.ask(segment))
    segment = client.segment(1, "PA", b"data")
    segment.dst = {4: "127.0.0.1", 6: "::1"}[wire.version]
    assert wire.ask(segment) == []


@pytest.mark.parametrize("source", ["here", "multicast", "loopback", "none", "broadcast"])
def test_sources_that_are_nobody(wire: Wire, client: Client, source: str) -> None:
    """The mirror does not answer impossible sources, this host's own address among them."""
    v4 = {"multicast": "224.0.0.1", "loopback": "127.0.0.1", "none": "0.0.0.0", "broadcast": "255.255.255.255"}
    v6 = {"multicast": "ff02::1", "loopback": "::1", "none": "::", "broadcast": "::ffff:10.1.2.3"}
    segment = client.segment(0, "S", ack=None)
    segment.src = wire.here if source == "here" else (v4 if wire.version == 4 else v6)[source]
    assert all("R" in found[TCP].flags for found in wire.ask(segment))


def test_damaged_packets(wire: Wire, client: Client) -> None:
    """The stack drops bad lengths and a wrong IP checksum. A wrong TCP checksum stays wrong in the echo."""
    whole = bytes(client.segment(1, "PA", support.payload(100)))
    header = 20 if wire.version == 4 else 40
    for damaged in (
        whole[:-1],
        whole[: header + 20],
        whole[: header + 13] + b"\x10" + whole[header + 14 :],  # other flags, with the old checksum
        whole[: header + 12] + b"\x40" + whole[header + 13 :],  # a header of 16 bytes
        whole[: header + 12] + b"\xf0" + whole[header + 13 :],
        *([whole[:10] + b"\xff\xff" + whole[12:]] if wire.version == 4 else []),
    ):
        wire.send(damaged)
    answers = list(wire.packets(silence_s=0.1))
    assert all(bytes(packet) != bytes(rebuilt(packet)) for packet in answers), (
        "an answer that its receiver would believe"
    )
    assert len(answers) <= 2  # those to a wrong header length, whose TCP checksum is wrong too


def test_fragments_and_headers_between_are_the_stacks(wire: Wire, client: Client) -> None:
    if wire.version == 4:
        odd = [
            wire.ip(flags="MF"),
            wire.ip(frag=3),
            wire.ip(options=[Raw(b"\x01\x01\x01\x01")]),
        ]
    else:
        odd = [wire.ip() / IPv6ExtHdrFragment(m=1), wire.ip() / IPv6ExtHdrDestOpt()]
    for header in odd:
        segment = header / client.segment(1, "PA", b"data")[TCP]
        assert all("R" in found[TCP].flags for found in wire.ask(segment))
