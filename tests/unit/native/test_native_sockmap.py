# SPDX-License-Identifier: MIT
"""user-echo-server as mode sockmap runs it: with listeners of its parent, resets on demand, and latency."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator

import pytest
from native_support import Server, exchange, fill, free_port, run, server

SO_COOKIE = 57  # include/uapi/asm-generic/socket.h


@contextlib.contextmanager
def bound(*hosts: str) -> Iterator[list[socket.socket]]:
    """Sockets that are bound to one port, and do not listen."""
    port = free_port()
    with contextlib.ExitStack() as stack:
        socks = []
        for host in hosts:
            sock = stack.enter_context(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
            socks.append(sock)
        yield socks


@contextlib.contextmanager
def serving(listeners: list[socket.socket], *args: object, fds: tuple[int, ...] = ()) -> Iterator[Server]:
    """A server on these sockets, which this process has no longer."""
    own = [listener.fileno() for listener in listeners]
    port = listeners[0].getsockname()[1]
    with server("--engine=sockmap", *(f"--listener={fd}" for fd in own), *args, fds=(*own, *fds)) as running:
        for listener in listeners:
            listener.close()
        running.port = port
        yield running


def test_listeners_that_were_bound_before() -> None:
    with bound("127.0.0.1", "::1") as listeners:
        port = listeners[0].getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        with serving(listeners) as running:
            for host in ("127.0.0.1", "::1"):
                with running.connect(host) as sock:
                    assert exchange(sock, b"kecho") == b"kecho"
            with pytest.raises(ConnectionRefusedError):
                running.connect("127.0.0.2")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


def test_a_listener_whose_port_is_taken_meanwhile() -> None:
    """With SO_REUSEADDR two sockets can be bound, but only one of them can listen."""
    with bound("127.0.0.1") as (one,), socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(one.getsockname())
        other.listen()
        fd = one.fileno()
        done = run("user-echo-server", "--engine=sockmap", f"--listener={fd}", pass_fds=[fd])
    line = f"user-echo-server: cannot listen on --listener {fd}: Address already in use\n"
    assert (done.returncode, done.stdout, done.stderr) == (4, "", line)


# ---- resets ----


def server_cookie(running: Server, client: socket.socket) -> bytes:
    """The SO_COOKIE of the server's end of a connection."""
    with running.end_of(client) as accepted:
        return accepted.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8)


def strangers(count: int) -> bytes:
    """Cookies of no socket: the kernel counts up from 0, so that on a machine just started small ones are in use."""
    return struct.pack(f"={count}Q", *range(1 << 62, (1 << 62) + count))


@pytest.fixture
def resetting() -> Iterator[tuple[Server, int]]:
    """A server, and the pipe that takes cookies."""
    resets, cookies = os.pipe()
    try:
        with bound("127.0.0.1") as listeners, serving(listeners, f"--reset-fd={resets}", fds=(resets,)) as running:
            os.close(resets)
            yield running, cookies
    finally:
        with contextlib.suppress(OSError):
            os.close(cookies)


@pytest.mark.parametrize("state", ["idle", "does not read", "lingers"])
def test_a_cookie_resets_its_connection_and_no_other(resetting: tuple[Server, int], state: str) -> None:
    running, cookies = resetting
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(running.connect()) for _ in range(5)]
        sock = stack.enter_context(running.slow_reader())
        others += [stack.enter_context(running.connect()) for _ in range(5)]
        for one in (*others, sock):
            assert exchange(one, b"kecho") == b"kecho"
        if state == "lingers":
            sock.sendall(bytes(300_000))
            sock.shutdown(socket.SHUT_WR)
            running.wait_stats(bytes=300_000 + 11 * 5)
        elif state == "does not read":
            fill(sock)
            sock.settimeout(30)
        os.write(cookies, strangers(2) + server_cookie(running, sock))
        running.wait_stats(active=10, total=11, aborted=1)
        with pytest.raises(ConnectionResetError):
            while sock.recv(1 << 16):
                pass
            raise AssertionError("the end of the stream, as if all had come back")
        for one in others:
            assert exchange(one, b"and on") == b"and on"


def test_hundreds_of_cookies_at_once(resetting: tuple[Server, int]) -> None:
    running, cookies = resetting
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(running.connect()) for _ in range(150)]
        for sock in socks:
            assert exchange(sock, b"kecho") == b"kecho"
        found = [server_cookie(running, sock) for sock in socks]
        os.write(cookies, b"".join(found[:100]) + strangers(200))
        running.wait_stats(active=50, aborted=100)
        for sock in socks[100:]:
            assert exchange(sock, b"and on") == b"and on"


def test_the_end_of_the_pipe_of_cookies(resetting: tuple[Server, int]) -> None:
    running, cookies = resetting
    os.close(cookies)
    running.assert_idle(0.3)
    with running.connect() as sock:
        assert exchange(sock, b"kecho") == b"kecho"


# ---- latency ----


@pytest.mark.parametrize("threads", [1, 3])
def test_every_echo_is_a_sample(threads: int) -> None:
    with server("--engine=sockmap", "--threads", threads) as running:
        command = ["bench", "--port", running.port, "--connections", 7, "--threads", 2, "--count", 10_007]
        assert run(*command).returncode == 0
        running.wait_stats(active=0, echoes=10_007)
        found = running.latency()
        assert found.count == 10_007
        assert set(found.cpus) <= os.sched_getaffinity(0)
        p50 = found.percentile(0.5)
        assert p50 and 500 < p50 < 10**9


def test_latency_ends_with_the_last_byte() -> None:
    """The client reads only after a while: the payload that waited for room has waited as long."""
    with server("--engine=sockmap") as running, running.connect() as sock:
        sock.settimeout(0.5)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while True:
                sent += sock.send(bytes(1 << 16))
        sock.settimeout(30)
        sock.shutdown(socket.SHUT_WR)
        got = 0
        while chunk := sock.recv(1 << 20):
            got += len(chunk)
        assert got == sent
        running.wait_stats(active=0, bytes=sent)
        found = running.latency()
        assert found.count == running.stats()["echoes"]
        assert found.max and found.max >= 500_000_000


@pytest.mark.parametrize("engine", ["epoll", "io_uring"])
def test_the_baseline_measures_nothing(engine: str) -> None:
    with server("--engine", engine) as running, running.connect() as sock:
        assert exchange(sock, b"kecho") == b"kecho"
        assert running.latency().count == 0
