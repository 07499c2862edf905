# SPDX-License-Identifier: MIT
"""user-echo-server where system calls fail or do less than asked. It is built with tiny queues."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from native_support import TIMEOUT_S, Server, build, fill, server, wait_for

_SEGMENT_BYTES = 500  # of a slow reader

ENGINES = ["epoll", "io_uring", "sockmap"]


@pytest.fixture(scope="module", autouse=True)
def built_with_liburing() -> None:
    if not Path("/usr/include/liburing.h").exists():
        pytest.skip("no liburing to build with")
    build("unwilling")


def fill_all(running: Server, socks: list[socket.socket]) -> dict[socket.socket, int]:
    """Sends on all sockets without reading, until nothing moves any more. Returns what each has sent."""
    sent = dict.fromkeys(socks, 0)
    while True:
        before = (sum(sent.values()), running.stats()["bytes"])
        for sock in socks:
            sent[sock] += fill(sock)
        time.sleep(0.1)
        if before == (sum(sent.values()), running.stats()["bytes"]):
            break
    for sock in socks:
        sock.settimeout(TIMEOUT_S)
    return sent


@contextlib.contextmanager
def stopped(running: Server) -> Iterator[None]:
    """The server has read all there was, and waits, when it is stopped."""
    stat = Path(f"/proc/{running.process.pid}/stat")

    def state() -> str:
        return stat.read_text().rsplit(")", 1)[1].split()[0]

    wait_for(lambda: state() == "S", "it waits")
    running.process.send_signal(signal.SIGSTOP)
    try:
        wait_for(lambda: state() == "T", "it stops")
        yield
    finally:
        running.process.send_signal(signal.SIGCONT)


def receive(sock: socket.socket, size: int) -> bytes:
    got = bytearray()
    while len(got) < size:
        part = sock.recv(size - len(got))
        assert part, "the end of the stream"
        got += part
    return bytes(got)


def echoes(sock: socket.socket, seed: int, rounds: int) -> None:
    """Payloads that nobody else sends must come back."""
    rng = random.Random(seed)
    for _ in range(rounds):
        data = rng.randbytes(rng.randrange(1, 20_000))
        sock.sendall(data)
        assert receive(sock, len(data)) == data, "bytes that are not its own"


@pytest.mark.parametrize("most", ["9", "1", "3"], ids=["all", "1", "3"])
def test_submissions_beyond_the_queue(most: str) -> None:
    """The queue fills up within a round, and the kernel takes at most `most` submissions at once.

    A send that fails within a round leaves its connection without a buffer. A send that was not taken must keep its
    buffer, or it sends data of another client.
    """
    with (
        server("--engine=io_uring", variant="unwilling", env={"SUBMITTED_AT_MOST": most}) as running,
        contextlib.ExitStack() as stack,
    ):
        failed: list[BaseException] = []

        def client(seed: int) -> None:
            try:
                with running.connect() as sock:
                    echoes(sock, seed, 50)
            except BaseException as e:
                failed.append(e)

        threads = [threading.Thread(target=client, args=(seed,)) for seed in range(20)]
        for thread in threads:
            thread.start()
        readers = [stack.enter_context(running.slow_reader(_SEGMENT_BYTES)) for _ in range(150)]
        for sock, sent in fill_all(running, readers).items():
            receive(sock, sent)
        for thread in threads:
            thread.join()
        assert not failed, failed[0]


@pytest.mark.parametrize("most", ["1", "21", "221"])
def test_a_send_that_was_not_taken_is_not_waited_for(most: str) -> None:
    """A successful send has no completion: waiting for one would delay its client until another client sends."""
    with server("--engine=io_uring", variant="unwilling", env={"SUBMITTED_AT_MOST": most}) as running:
        for seed in range(10):
            with running.connect() as sock:
                echoes(sock, seed, 10)
                sock.shutdown(socket.SHUT_WR)
                assert sock.recv(1) == b""
        running.wait_stats(active=0, aborted=0)


def test_slow_readers_keep_no_buffer(tmp_path: Path) -> None:
    """What cannot be sent is copied, and so is what follows: the ring's 32 buffers stay free for other clients.

    With all of them, the messages of 24 clients that are there at once take three rounds; with two, twelve.
    """
    log, others = tmp_path / "log", 24
    with (
        server("--engine=io_uring", variant="unwilling", env={"ROUND_LOG": str(log)}) as running,
        contextlib.ExitStack() as stack,
    ):
        socks = [stack.enter_context(running.connect()) for _ in range(others)]
        for sock in socks:
            echoes(sock, 1, 1)
        fill_all(running, [stack.enter_context(running.slow_reader(_SEGMENT_BYTES)) for _ in range(60)])
        waiting = queued(running.port)
        with stopped(running):
            os.truncate(log, 0)
            for sock in socks:
                sock.sendall(bytes(1000))
            wait_for(lambda: queued(running.port) == waiting + others * 1000, "all of it is queued")
        for sock in socks:
            receive(sock, 1000)
        rounds = len(log.read_text().splitlines())
    assert rounds <= others // 4


def test_a_turn_for_others(tmp_path: Path) -> None:
    """One client has sent 40 buffers before another sends a byte. The first is read for one turn, then the other."""
    log = tmp_path / "log"
    with (
        server("--engine=epoll", variant="unwilling", env={"RECV_LOG": str(log)}) as running,
        running.connect() as busy,
        running.connect() as other,
    ):
        echoes(busy, 1, 1)
        echoes(other, 2, 1)
        with stopped(running):
            os.truncate(log, 0)
            busy.sendall(bytes(40 * 1024))
            wait_for(lambda: queued(running.port) == 40 * 1024, "all of it is queued at the server")
            other.sendall(b"x")
            wait_for(lambda: queued(running.port) == 40 * 1024 + 1, "and the byte")
        assert other.recv(1) == b"x"
        receive(busy, 40 * 1024)
        turns = log.read_text().split()
    assert turns.count(turns[0]) >= 40
    assert next(at for at, fd in enumerate(turns) if fd != turns[0]) == 16, "a turn is 16 receives of a full buffer"


def queued(port: int) -> int:
    """Bytes that wait to be read by the server of that port, and ends of streams."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    states = {"01", "08"}  # ESTABLISHED, CLOSE_WAIT
    return sum(int(row[4].split(":")[1], 16) for row in rows if row[1].endswith(f":{port:04X}") and row[3] in states)


def answered(running: Server, sent: int) -> bool:
    stats = running.stats()
    return stats["bytes"] >= sent or stats["aborted"] > 0


@pytest.mark.parametrize("engine", ENGINES)
def test_no_memory_for_what_is_left_over(engine: str) -> None:
    """The connection is reset: an orderly end would mean that everything has been echoed."""
    with (
        server("--engine", engine, variant="unwilling", env={"NO_MEMORY_FOR": "1"}) as running,
        contextlib.ExitStack() as stack,
    ):
        sock, sent = stack.enter_context(running.slow_reader(_SEGMENT_BYTES)), 0
        while not running.stats()["aborted"]:  # nothing is left unread at the server: that alone would be a reset
            sock.sendall(bytes(500))
            sent += 500
            wait_for(functools.partial(answered, running, sent), "echoed, or given up")
        running.wait_stats(active=0, total=1, aborted=1)
        with pytest.raises(ConnectionResetError):
            while sock.recv(4096):
                pass
            raise AssertionError("the end of the stream")


# ---- epoll watches no more, or accept() fails ----


@dataclass
class Refusing:
    """A server, and files that make the kernel refuse for as long as they exist."""

    running: Server
    no_watch: Path
    no_accept: Path
    in_flight: Path


@pytest.fixture(params=["epoll", "sockmap"])
def refusing(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Refusing]:
    files = [tmp_path / name for name in ("no-watch", "no-accept", "in-flight")]
    settings = ("WATCH_REFUSED_WHILE", "ACCEPT_REFUSED_WHILE", "IN_FLIGHT_WHILE")
    env = dict(zip(settings, map(str, files), strict=True))
    with server("--engine", request.param, variant="unwilling", env=env) as running:
        yield Refusing(running, *files)


def read_to_the_end(sock: socket.socket) -> None:
    while sock.recv(1 << 16):
        pass
    raise AssertionError("the end of the stream, as if all had come back")


def test_a_client_that_cannot_be_watched(refusing: Refusing) -> None:
    running = refusing.running
    with running.connect() as first:
        echoes(first, 1, 1)
        before = running.descriptors()
        refusing.no_watch.touch()
        with pytest.raises(ConnectionResetError), running.connect() as refused:
            read_to_the_end(refused)
        refusing.no_watch.unlink()
        running.wait_stats(active=1, total=1, rejected=1, aborted=0)
        assert running.descriptors() == before
        echoes(first, 2, 1)
        with running.connect() as second:
            echoes(second, 3, 1)
            running.wait_stats(active=2, total=2, rejected=1, aborted=0)


def test_a_client_that_cannot_be_watched_any_more(refusing: Refusing) -> None:
    """The client reads nothing, so the server would have to watch it for room, which epoll refuses."""
    running = refusing.running
    with contextlib.ExitStack() as stack, running.connect() as other:
        sock = stack.enter_context(running.slow_reader(_SEGMENT_BYTES))
        echoes(sock, 1, 1)
        echoes(other, 2, 1)
        refusing.no_watch.touch()
        sock.setblocking(False)
        with pytest.raises(ConnectionResetError):
            while running.stats()["active"] == 2:
                with contextlib.suppress(BlockingIOError):
                    sock.send(bytes(1 << 16))
            sock.settimeout(TIMEOUT_S)
            read_to_the_end(sock)
        refusing.no_watch.unlink()
        running.wait_stats(active=1, total=2, rejected=0, aborted=1)
        echoes(other, 3, 1)


def test_a_listener_that_cannot_be_watched_for_a_while(refusing: Refusing) -> None:
    """The listener pauses without memory, and is watched again once that succeeds, here not at the first attempt."""
    refusing.no_accept.touch()
    refusing.no_watch.touch()
    with refusing.running.connect() as sock:
        time.sleep(0.5)
        refusing.no_accept.unlink()
        refusing.no_watch.unlink()
        echoes(sock, 1, 1)
    refusing.running.wait_stats(active=0, total=1, rejected=0, aborted=0)


# ---- data in flight within the kernel when the client has shut down its side ----


# On a socket that is in no sockhash there is none.
in_sockhash = pytest.mark.parametrize("refusing", ["sockmap"], indirect=True)


@in_sockhash
def test_the_end_waits_for_what_is_in_flight(refusing: Refusing) -> None:
    """Clients at many stages of ever longer waits get the end of the stream only when all is sent."""
    running, late = refusing.running, 0.3
    refusing.in_flight.touch()
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(running.connect()) for _ in range(20)]
        for i, sock in enumerate(socks):
            echoes(sock, i, 1)
            sock.shutdown(socket.SHUT_WR)
            time.sleep(late / len(socks))
        assert not select.select(socks, [], [], 0.3)[0], "an end while a byte is in flight"
        running.wait_stats(active=20)
        refusing.in_flight.unlink()
        for sock in socks:
            assert sock.recv(1) == b""
        running.wait_stats(active=0, aborted=0)


@in_sockhash
def test_a_reset_while_something_is_in_flight(refusing: Refusing) -> None:
    running = refusing.running
    refusing.in_flight.touch()
    with running.connect() as other:
        sock = running.connect()
        echoes(sock, 1, 1)
        sock.shutdown(socket.SHUT_WR)
        time.sleep(0.1)
        running.wait_stats(active=2)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()
        running.wait_stats(active=1, aborted=1)
        echoes(other, 2, 1)


@in_sockhash
def test_a_client_that_waits_and_cannot_be_watched(refusing: Refusing) -> None:
    """Whether epoll refuses when the wait begins or when it ends, the client learns of it by a reset."""
    running = refusing.running
    refusing.in_flight.touch()
    for before in (True, False):
        with running.connect() as sock:
            echoes(sock, 1, 1)
            if before:
                refusing.no_watch.touch()
            sock.shutdown(socket.SHUT_WR)
            if not before:
                time.sleep(0.3)
                refusing.no_watch.touch()
            with pytest.raises(ConnectionResetError):
                read_to_the_end(sock)
            refusing.no_watch.unlink()
    running.wait_stats(active=0, total=2, aborted=2)
