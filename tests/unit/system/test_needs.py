# SPDX-License-Identifier: MIT
"""What a run needs of the system's limits, which limits are too low, and how that distorts the figures."""

from __future__ import annotations

import re
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kecho.kernel.sockets import parse_netstat
from kecho.system.limits import (
    CONNECTS_AT_ONCE,
    FIRST_PORT,
    LAST_PORT,
    PORT_RANGE,
    SOMAXCONN,
    SYN_BACKLOG,
    Limits,
    ListenCounts,
    Needs,
    distortions,
    wanted,
)

ROOT = Path(__file__).resolve().parents[3]
# A machine as Debian sets it up.
USUAL = Limits(4096, 2048, 1, 32768, 60999, 2, 1024, 20000)
SMALL = Needs.of_run(100, 300)

PORTS = st.integers(FIRST_PORT, LAST_PORT)


def test_bench_makes_so_many_at_once() -> None:
    source = (ROOT / "kecho/native/bench/conn.c").read_text()
    assert re.findall(r"#define CONNECTS_AT_ONCE (\d+)", source) == [str(CONNECTS_AT_ONCE)]


def test_a_small_run_needs_nothing() -> None:
    assert wanted(SMALL, USUAL) == {}
    assert distortions(SMALL, USUAL, {"kecho": 128}) == distortions(SMALL, USUAL, {"kecho": 128}, remote=True) == []


@given(st.integers(1, 15000), st.integers(1, 100), st.booleans(), st.integers(0, 70000), PORTS, PORTS)
def test_what_is_raised_suffices(
    connections: int, rounds: int, paced: bool, queue: int, one_port: int, other_port: int
) -> None:
    """Raises enough, raises nothing else, and lowers nothing."""
    needs = Needs.of_run(connections, connections * rounds, paced)
    first, last = sorted((one_port, other_port))
    before = replace(USUAL, somaxconn=queue, syn_backlog=queue, first_port=first, last_port=last)
    raised = wanted(needs, before)
    new_first, new_last = map(int, raised.get(PORT_RANGE, f"{first} {last}").split())
    after = replace(
        before,
        somaxconn=int(raised.get(SOMAXCONN, queue)),
        syn_backlog=int(raised.get(SYN_BACKLOG, queue)),
        first_port=new_first,
        last_port=new_last,
        hard_descriptors=needs.descriptors,
    )
    assert FIRST_PORT <= new_first <= first and last <= new_last <= LAST_PORT
    assert after.somaxconn >= before.somaxconn and after.syn_backlog >= before.syn_backlog
    assert wanted(needs, after) == {}
    if needs.made is not None and needs.made <= LAST_PORT - FIRST_PORT:
        assert distortions(needs, replace(after, syn_cookies=0, tw_reuse=0), remote=True) == []


def test_the_port_range_grows_upwards_first() -> None:
    assert wanted(Needs.of_run(100, 30_000), USUAL) == {PORT_RANGE: "32768 62767"}
    assert wanted(Needs.of_run(100, 40_000), USUAL) == {PORT_RANGE: "25536 65535"}
    assert wanted(Needs.of_run(100, None), USUAL) == {PORT_RANGE: "1024 65535"}


@pytest.mark.parametrize(
    ("needs", "limits", "more", "says"),
    [
        (Needs.of_run(19_990, 19_990), USUAL, {}, "20,000 descriptors"),
        (Needs.of_run(15_000, 15_000), replace(USUAL, last_port=40_000), {}, "cannot be made from 7,233 ports"),
        (Needs.of_run(1000, 30_000), USUAL, {"remote": True}, r"\(30,000\) may use up 28,232 ports"),
        (Needs.of_run(1000, 30_000), replace(USUAL, tw_reuse=0), {}, r"\(30,000\) may use up 28,232 ports"),
        (Needs.of_run(10, None), USUAL, {"remote": True}, r"\(as many as there is time for\) may use up"),
        (Needs.of_run(1000, 1000, paced=False), USUAL, {"backlogs": {"kecho": 128}}, "kecho lets 128 connections wait"),
        (Needs.of_run(100, 100), USUAL, {"backlogs": {"theirs": 5}}, "theirs lets 5 connections wait .* 64 may come"),
        (Needs.of_run(5000, 5000, paced=False), USUAL, {}, "lets more than 4,096 connections wait"),
        (Needs.of_run(1600, 1600, paced=False), replace(USUAL, syn_cookies=0), {}, "three quarters of 2,048"),
    ],
)
def test_distortions_are_told(needs: Needs, limits: Limits, more: dict[str, object], says: str) -> None:
    (sentence,) = distortions(needs, limits, **more)  # type: ignore[arg-type]
    assert re.search(says, sentence)
    assert "\n" not in sentence


def test_resting_ports_are_reused_on_loopback() -> None:
    """By default (tcp_tw_reuse 2) a port on loopback is free after a second, so TIME-WAIT does not matter."""
    assert distortions(Needs.of_run(1000, 30_000), USUAL) == []
    assert distortions(Needs.of_run(1000, 30_000), replace(USUAL, tw_reuse=1), remote=True) == []


def test_an_overflow_is_counted() -> None:
    """A listener that accepts nothing: connections beyond its queue are dropped and counted."""
    before = ListenCounts.now()
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        clients = []
        for _ in range(4):
            clients.append(socket.socket())
            clients[-1].setblocking(False)
            clients[-1].connect_ex(listener.getsockname())
        counted = ListenCounts.now() - before
        for client in clients:
            client.close()
    assert counted.overflows >= 3
    assert counted.drops >= counted.overflows
    assert re.match(r"\d+ requests for a connection found a full queue", counted.note())


def test_no_overflow_is_no_note() -> None:
    assert ListenCounts(0, 0).note() == ""


def test_the_counters_are_found_wherever_they_stand() -> None:
    lines = ["TcpExt: SyncookiesSent ListenDrops A ListenOverflows", "TcpExt: 3 7 1 5", "IpExt: A", "IpExt: 9"]
    assert parse_netstat(lines) == {"overflows": 5, "drops": 7, "syncookies": 3}
