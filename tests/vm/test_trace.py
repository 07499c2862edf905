# SPDX-License-Identifier: MIT
"""The tracepoint fastecho:fastecho_echo reports every echo and byte, on the right path, with a plausible time."""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import fastecho
import pytest
from support import MODULE_PATHS, Server

TRACING = Path("/sys/kernel/tracing")
EVENT = re.compile(r"fastecho_echo: path=(\w+) bytes=(\d+) ns=(\d+)")


@pytest.fixture(params=MODULE_PATHS)
def path(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def service(path: str) -> Server:
    return fastecho.Server("backlog=1024", *MODULE_PATHS[path])


@dataclass(frozen=True)
class Echo:
    path: str
    bytes: int
    ns: int


@contextmanager
def recorded() -> Iterator[list[Echo]]:
    """Records the events of the block in the list that it yields."""
    echoes: list[Echo] = []
    (TRACING / "trace").write_text("")
    (TRACING / "buffer_size_kb").write_text("16384")
    enable = TRACING / "events/fastecho/fastecho_echo/enable"
    enable.write_text("1")
    try:
        yield echoes
    finally:
        enable.write_text("0")
    text = (TRACING / "trace").read_text()
    echoes += [Echo(path, int(size), int(ns)) for path, size, ns in EVENT.findall(text)]


def test_one_event_a_message(service: Server, path: str) -> None:
    count, size = 1009, 61
    with recorded() as echoes:
        fastecho.pingpong(size, count)
        fastecho.wait_idle()
    assert len(echoes) == count
    assert {echo.bytes for echo in echoes} == {size}
    # The first message may arrive before accept(); the workqueue echoes that one.
    assert {echo.path for echo in echoes[1:]} == {path.removesuffix("-percpu")}
    assert all(0 < echo.ns < 1_000_000_000 for echo in echoes)
    assert sorted(echo.ns for echo in echoes)[count // 2] < 10_000_000


def test_bytes_of_streams_add_up(service: Server) -> None:
    with recorded() as echoes:
        service.stream(7, 100_003)
        fastecho.wait_idle()
    assert sum(echo.bytes for echo in echoes) == 7 * 100_003
    assert all(0 < echo.ns < 10_000_000_000 for echo in echoes)


def test_bytes_add_up_through_stalls(service: Server) -> None:
    with recorded() as echoes:
        with service.client() as sock:
            sock.setblocking(False)
            sent = 0
            try:
                while True:
                    sent += sock.send(bytes(50_021))
            except BlockingIOError:
                pass
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(60)
            received = 0
            while piece := sock.recv(1 << 16):
                received += len(piece)
        fastecho.wait_idle()
    assert received == sent
    assert sum(echo.bytes for echo in echoes) == sent


def test_switched_on_and_off_under_traffic(service: Server) -> None:
    """Data that arrived before the tracepoint was switched on gets no time from before that."""
    with service.client() as sock:
        for _ in range(5):
            sock.sendall(b"untraced")
            assert sock.recv(8) == b"untraced"
            with recorded() as echoes:
                sock.sendall(b"traced")
                assert sock.recv(6) == b"traced"
            assert [echo.bytes for echo in echoes] == [6]
            assert echoes[0].ns < 1_000_000_000


@pytest.mark.parametrize("size, inline_bound", [(64, 1)])
def test_softirq_hardly_needs_the_workqueue(size: int, inline_bound: int) -> None:
    fastecho.load()
    with recorded() as echoes:
        fastecho.pingpong(size, 1009)
    assert sum(echo.path == "workqueue" for echo in echoes) <= inline_bound
