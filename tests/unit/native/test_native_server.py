# SPDX-License-Identifier: MIT
"""user-echo-server: every byte comes back, every connection is counted, every bad argument has its message."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from native_support import ROOT, TIMEOUT_S, NotReady, Server, exchange, fill, free_port, program, run, server, wait_for

HOSTS = ["127.0.0.1", "::1"]
ENGINES = ["epoll", "io_uring", "sockmap"]


@pytest.fixture(params=ENGINES)
def echo(request: pytest.FixtureRequest) -> Iterator[Server]:
    with server("--engine", request.param) as running:
        yield running


@pytest.fixture(params=ENGINES)
def plain(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server without sanitizers, which keep freed memory for a while."""
    with server("--engine", request.param, variant="plain") as running:
        yield running


def ring_bytes(echo: Server) -> int:
    """The size of the buffers that all io_uring connections share; they become resident one by one."""
    assert isinstance(echo.process.args, list)
    return 2 << 20 if "io_uring" in echo.process.args else 0


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("size", [1, 2, 63, 64, 1448, 65536, 65537, 262143, 262144, 262145, 1 << 20])
def test_sizes_and_every_byte_value(echo: Server, host: str, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(range(255, 255 - size % 256, -1))
    with echo.connect(host) as sock:
        for _ in range(2):
            assert exchange(sock, data) == data
    echo.wait_stats(active=0, total=1, rejected=0, aborted=0, bytes=2 * size)


@pytest.mark.parametrize("host", HOSTS)
def test_half_close_gets_the_whole_stream(echo: Server, host: str) -> None:
    data = random.Random(1).randbytes(8 << 20)
    with echo.connect(host) as sock:
        assert hashlib.sha256(exchange(sock, data, close=True)).digest() == hashlib.sha256(data).digest()
    echo.wait_stats(active=0, aborted=0, bytes=len(data))


def test_half_close_then_a_slow_reader_with_a_tiny_window(echo: Server) -> None:
    """The client reads the end of the echo long after it has shut down its side."""
    data = random.Random(2).randbytes(300_000)
    with echo.slow_reader() as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        echo.wait_stats(bytes=len(data))  # all is in the server's kernel buffers, none has been read
        assert echo.stats()["active"] == 1, "the descriptor was closed with data in flight"
        received = bytearray()
        while chunk := sock.recv(3000):
            received += chunk
    assert bytes(received) == data
    echo.wait_stats(active=0, aborted=0)


def test_write_then_close(echo: Server) -> None:
    for _ in range(50):
        with echo.connect() as sock:
            sock.sendall(b"x" * 1000)
    echo.wait_stats(active=0, total=50)


def test_reset_in_mid_stream(echo: Server) -> None:
    for host in HOSTS:
        sock = echo.connect(host)
        fill(sock)
        reset(sock)
    echo.wait_stats(active=0, total=2, aborted=2)
    with echo.connect() as sock:
        assert exchange(sock, b"still here") == b"still here"


def test_reset_of_an_idle_connection(echo: Server) -> None:
    reset(echo.connect())
    echo.wait_stats(active=0, total=1, aborted=1)


def test_reset_while_lingering(echo: Server) -> None:
    sock = echo.slow_reader()
    sock.sendall(b"x" * 100_000)
    sock.shutdown(socket.SHUT_WR)
    echo.wait_stats(active=1, bytes=100_000)
    reset(sock)
    echo.wait_stats(active=0, aborted=1)


def test_a_client_that_does_not_read_is_bounded_and_then_gets_all(plain: Server) -> None:
    before = plain.rss_bytes()
    data = random.Random(3).randbytes(1 << 20)
    sent = 0
    with plain.connect() as sock:
        sock.setblocking(False)
        quiet = 0
        while quiet < 20:
            try:
                sent += sock.send(data[sent % len(data) :])
                quiet = 0
            except BlockingIOError:
                quiet += 1
                signal.sigtimedwait([], 0.01)
        assert sent < 128 << 20, "flow control never engaged"
        assert plain.rss_bytes() - before < (4 << 20) + ring_bytes(plain)
        sock.settimeout(TIMEOUT_S)
        expected, received, n = hashlib.sha256(), hashlib.sha256(), 0
        while n < sent:
            chunk = sock.recv(1 << 18)
            assert chunk
            received.update(chunk)
            n += len(chunk)
        for at in range(0, sent, len(data)):
            expected.update(data[: min(len(data), sent - at)])
        assert n == sent
        assert received.digest() == expected.digest()
        assert exchange(sock, b"and on") == b"and on"


def test_idle_connections_are_cheap_and_many(plain: Server) -> None:
    before = plain.rss_bytes()
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(plain.connect(HOSTS[i % 2])) for i in range(400)]
        for i, sock in enumerate(socks):
            sock.sendall(b"%d" % i)
        for i, sock in enumerate(socks):
            assert sock.recv(100) == b"%d" % i
        plain.wait_stats(active=400, total=400)
        assert plain.rss_bytes() - before < 400 * 2048 + ring_bytes(plain)
    plain.wait_stats(active=0, aborted=0)
    wait_for(lambda: plain.descriptors() < 20, "descriptors are given back")


@pytest.mark.parametrize("size", ["1M", "1000"])
def test_many_clients_killed_in_mid_stream(echo: Server, size: str) -> None:
    """More data in flight than io_uring has buffers, and then hundreds of resets at once."""
    command = [program("bench", "plain"), "--port", str(echo.port), "--connections", "300", "--size", size]
    bench = subprocess.Popen([*command, "--depth", "2", "--duration", "60"], stdout=subprocess.DEVNULL)
    wait_for(lambda: echo.stats()["bytes"] > 50_000_000, "much data")
    bench.kill()
    bench.wait(TIMEOUT_S)
    echo.wait_stats(active=0)
    echo.assert_idle(0.2)
    with echo.connect() as sock:
        assert exchange(sock, b"still here") == b"still here"


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("engine", ENGINES)
def test_counts_are_exact(engine: str, threads: int) -> None:
    with server("--engine", engine, "--threads", threads) as echo:
        done = run("bench", "--port", echo.port, "--connections", 7, "--count", 10_007)
        assert done.returncode == 0, done
        echo.wait_stats(active=0, total=7, rejected=0, aborted=0, echoes=10_007, bytes=10_007 * 64)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("threads", [1, 2])
def test_out_of_descriptors_refuses_and_recovers(engine: str, threads: int) -> None:
    with server("--engine", engine, "--threads", threads, prefix=("prlimit", "--nofile=40:40")) as echo:
        served, refused = [], 0
        for _ in range(60):
            try:
                sock = echo.connect()
                try:
                    sock.sendall(b"?")
                except BrokenPipeError:  # the reset is seen once
                    refused += 1
                    continue
                assert sock.recv(1) == b"?", "the end of the stream, for a client that is not served"
            except ConnectionResetError:
                refused += 1
                continue
            served.append(sock)
        assert refused > 0
        assert len(served) > 20
        echo.wait_stats(active=len(served), total=len(served), rejected=refused)
        echo.assert_idle(0.3)
        for sock in served:
            assert exchange(sock, b"served") == b"served"
            sock.close()
        echo.wait_stats(active=0)
        with echo.connect() as sock:
            assert exchange(sock, b"again") == b"again"


@pytest.mark.parametrize("engine", ENGINES)
def test_threads_out_of_descriptors_never_lose_the_spare_one(engine: str) -> None:
    """Clients connect at the same time: while one thread refuses, another accepts. Each client must get an answer."""
    with server("--engine", engine, "--threads", 4, prefix=("prlimit", "--nofile=60:60")) as echo:
        answers: list[bool | None] = []
        kept: list[socket.socket] = []

        def client() -> None:
            for _ in range(200):
                try:
                    sock = socket.create_connection(("127.0.0.1", echo.port), timeout=5)
                    sock.sendall(b"?")
                    answers.append(sock.recv(1) == b"?")
                    kept.append(sock)
                except TimeoutError:
                    answers.append(None)
                    return
                except OSError:
                    answers.append(False)

        clients = [threading.Thread(target=client) for _ in range(4)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()
        assert None not in answers, "neither served nor refused"
        assert answers.count(True) > 20
        echo.wait_stats(active=answers.count(True), total=answers.count(True), rejected=answers.count(False))
        for sock in kept:
            sock.close()
        echo.wait_stats(active=0)


def test_the_soft_descriptor_limit_is_raised() -> None:
    with server(prefix=("prlimit", "--nofile=30:200")) as echo, contextlib.ExitStack() as stack:
        for _ in range(100):
            sock = stack.enter_context(echo.connect())
            assert exchange(sock, b"x") == b"x"
        assert echo.stats()["rejected"] == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_a_server_that_is_ready_has_room_for_a_client(engine: str) -> None:
    """With any number of descriptors it serves a client, or says why not and ends."""
    seen = set()
    for limit in range(6, 16):
        prefix = ("prlimit", f"--nofile={limit}:{limit}")
        try:
            with server("--engine", engine, variant="plain", prefix=prefix) as echo, echo.connect() as sock:
                assert exchange(sock, b"x") == b"x"
                seen.add("serves")
        except NotReady as e:
            seen.add("says why not")
            assert e.returncode == 1
            assert re.fullmatch(r"user-echo-server: [^\n]+\n", e.stderr), e.stderr
    assert seen == {"serves", "says why not"}


def test_accepted_sockets_have_nodelay_and_keepalive(echo: Server) -> None:
    """They are set on the listener only; accepted sockets must have inherited them."""
    with echo.connect() as sock:
        exchange(sock, b"x")
        with echo.end_of(sock) as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


def test_default_addresses_are_loopback_of_both_families() -> None:
    with server() as echo:
        for host in HOSTS:
            with echo.connect(host) as sock:
                assert exchange(sock, b"x") == b"x"
        with pytest.raises(ConnectionRefusedError):
            echo.connect("127.0.0.2")


def test_by_hand_it_says_where_it_listens() -> None:
    port = free_port()
    process = subprocess.Popen(
        [program("user-echo-server"), "--port", str(port), "--die-with-parent"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == f"listening on 127.0.0.1:{port}\n"
    assert process.stdout.readline() == f"listening on [::1]:{port}\n"
    process.terminate()
    assert process.communicate(timeout=TIMEOUT_S)[0] == ""
    assert process.returncode == 0


def test_several_binds_and_v6only() -> None:
    with server("--bind", "127.0.0.2", "--bind", "127.0.0.3", "--bind", "::") as echo:
        for host in ("127.0.0.2", "127.0.0.3", "::1"):
            with echo.connect(host) as sock:
                assert exchange(sock, b"x") == b"x"
        with pytest.raises(ConnectionRefusedError):
            echo.connect("127.0.0.1")


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("threads", [1, 3])
def test_signals_end_it_at_once(which: signal.Signals, threads: int) -> None:
    with server("--threads", threads) as echo, echo.connect() as sock:
        exchange(sock, b"x")
        echo.process.send_signal(which)
        assert echo.process.wait(TIMEOUT_S) == 0
        assert sock.recv(1) == b""
        echo.process.poll = lambda: None  # type: ignore[method-assign]  # it was meant to end


def test_dies_with_its_parent() -> None:
    code = (
        "import os, subprocess, sys\n"
        "r, w = os.pipe()\n"
        "p = subprocess.Popen([sys.argv[1], '--port', sys.argv[2], '--die-with-parent', '--ready-fd', str(w)],\n"
        "                     pass_fds=[w])\n"
        "os.read(r, 6); print(p.pid, flush=True); os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, program("user-echo-server"), str(free_port())],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    pid = int(done.stdout)

    def gone() -> bool:
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
                return stat.read().rsplit(")", 1)[1].split()[0] == "Z"
        except FileNotFoundError:
            return True

    wait_for(gone, "the server dies with its parent")


def test_a_parent_that_is_gone_already() -> None:
    done = run("user-echo-server", "--port", free_port(), "--die-with-parent=1073741824")
    assert (done.returncode, done.stderr) == (1, "user-echo-server: the parent process 1073741824 is gone\n")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--port", "0"], "--port must be a whole number from 1 to 65535"),
        (["--port", "70000"], "--port must be a whole number from 1 to 65535"),
        (["--port", "x"], '--port must be a whole number from 1 to 65535, not "x"'),
        (["--port", ""], "--port"),
        (["--port", "-1"], "--port"),
        (["--port", "80 "], "--port"),
        (["--bind", "localhost"], '--bind must be a numeric IPv4 or IPv6 address, not "localhost"'),
        (["--bind", "1"], "--bind"),
        (["--bind", "::g"], "--bind"),
        (["--bind", "127.0.0.1", "--bind", "1.2.3"], "--bind"),
        (["--backlog", "0"], "--backlog"),
        (["--threads", "0"], "--threads"),
        (["--engine", "magic"], 'there is no engine "magic"'),
        (["--ready-fd", "x"], "--ready-fd"),
        (["--listener", "x"], "--listener"),
        (["--listener", "0", "--bind", "::1"], "--listener excludes --bind"),
        (["--reset-fd", "0"], "--reset-fd: with --engine sockmap and one thread only"),
        (["--reset-fd", "0", "--engine", "sockmap", "--threads", "2"], "--reset-fd"),
        (["--uid", "0"], "--uid"),
        (["--uid", "4294967295"], "--uid"),
        (["--uid", "nobody"], "--uid"),
        (["extra"], 'unexpected argument "extra"'),
        (["--nonsense"], "nonsense"),
    ],
)
def test_bad_arguments(args: list[str], says: str) -> None:
    done = run("user-echo-server", *args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r".*user-echo-server: [^\n]+\n", done.stderr)
    assert says in done.stderr


def test_busy_port_is_all_or_nothing() -> None:
    with server("--bind", "127.0.0.1") as echo:
        done = run("user-echo-server", "--port", echo.port, "--bind", "127.0.0.2", "--bind", "127.0.0.1")
        line = f"user-echo-server: cannot listen on 127.0.0.1:{echo.port}: Address already in use\n"
        assert (done.returncode, done.stdout, done.stderr) == (4, "", line)
        with pytest.raises(ConnectionRefusedError):
            echo.connect("127.0.0.2")


@pytest.mark.parametrize(("host", "text"), [("192.0.2.1", "192.0.2.1"), ("2001:db8::1", "[2001:db8::1]")])
def test_an_address_that_is_not_ours(host: str, text: str) -> None:
    port = free_port()
    done = run("user-echo-server", "--port", port, "--bind", host)
    line = f"user-echo-server: cannot listen on {text}:{port}: Cannot assign requested address\n"
    assert (done.returncode, done.stderr) == (1, line)


def test_bad_descriptors() -> None:
    done = run("user-echo-server", "--port", free_port(), "--stats-fd", 99)
    assert (done.returncode, done.stderr) == (
        1,
        "user-echo-server: cannot resize the file of --stats-fd 99: Bad file descriptor\n",
    )
    done = run("user-echo-server", "--port", free_port(), "--ready-fd", 99)
    assert (done.returncode, done.stderr) == (
        1,
        "user-echo-server: cannot write to --ready-fd 99: Bad file descriptor\n",
    )
    done = run("user-echo-server", "--listener", 99)
    line = "user-echo-server: cannot listen on --listener 99: Bad file descriptor\n"
    assert (done.returncode, done.stderr) == (1, line)
    done = run("user-echo-server", "--port", free_port(), "--engine=sockmap", "--reset-fd", 99)
    assert (done.returncode, done.stderr) == (1, "user-echo-server: engine sockmap: Bad file descriptor\n")


def rights(process: int) -> list[dict[str, str]]:
    """/proc/PID/status of each of its threads."""
    return [
        dict(re.findall(r"^(\w+):[ \t]*(.*)$", (task / "status").read_text(), re.MULTILINE))
        for task in Path(f"/proc/{process}/task").iterdir()
    ]


def test_no_privilege_is_left() -> None:
    """In every thread, for root and for other users."""
    with server("--threads", 3) as echo, echo.connect() as sock:
        for status in rights(echo.process.pid):
            assert [int(status[f"Cap{which}"], 16) for which in ("Eff", "Prm", "Inh", "Amb")] == [0] * 4
            assert status["NoNewPrivs"] == "1"
            assert os.geteuid() != 0 or int(status["CapBnd"], 16) == 0
        sock.sendall(b"kecho")
        assert sock.recv(5) == b"kecho"


def test_another_user() -> None:
    """Built without sanitizers: the leak sanitizer cannot inspect a process that has changed its user."""
    if os.geteuid() != 0:
        done = run("user-echo-server", "--port", free_port(), "--uid", 4711)
        line = "user-echo-server: --uid: cannot become user 4711: Operation not permitted\n"
        assert (done.returncode, done.stderr) == (1, line)
        return
    groups = ("setpriv", "--groups=4,27")
    with server("--threads", 2, "--uid", 4711, variant="plain", prefix=groups) as echo, echo.connect() as sock:
        for status in rights(echo.process.pid):
            assert status["Uid"].split() == status["Gid"].split() == ["4711"] * 4
            assert status["Groups"].strip() == ""
        sock.sendall(b"kecho")
        assert sock.recv(5) == b"kecho"


def test_help() -> None:
    done = run("user-echo-server", "--help")
    assert done.returncode == 0
    assert "Examples:" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_built_without_the_optional_libraries(tmp_path: Path) -> None:
    command = ["make", "-s", "-j2", "-f", "kecho/native/native.mk", f"BUILD={tmp_path}", "PKG_CONFIG=false"]
    subprocess.run([*command, "CFLAGS=-O0"], cwd=ROOT, check=True, timeout=120)
    cases = {
        ("user-echo-server", "--engine", "io_uring"): "user-echo-server: engine io_uring cannot run here: "
        "built without liburing (liburing-dev)\n",
        ("bench", "--hdr", str(tmp_path / "log")): "bench: --hdr: built without zlib\n",
    }
    for (name, *args), line in cases.items():
        done = subprocess.run([tmp_path / name, *args], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        assert (done.returncode, done.stderr) == (3, line)


def test_a_busy_server_does_not_sleep() -> None:
    """With --busy-poll it gives up its CPU for none of the requests that come every 2 ms."""

    def sleeps(*options: object) -> int:
        with server(*options) as echo, echo.connect() as sock:
            status = Path(f"/proc/{echo.process.pid}/task")
            for _ in range(50):
                assert exchange(sock, b"x") == b"x"
                time.sleep(0.002)
            lines = [line for task in status.iterdir() for line in (task / "status").read_text().splitlines()]
        return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))

    assert sleeps("--busy-poll", 1_000_000) < 20 < sleeps()
    assert run("user-echo-server", "--busy-poll", 5, "--engine", "io_uring").returncode == 2
