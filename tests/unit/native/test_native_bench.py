# SPDX-License-Identifier: MIT
"""bench: its counts are exact, and every fault of a server is noticed and has a message of its own."""

from __future__ import annotations

import graphlib
import itertools
import json
import math
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_support import TIMEOUT_S, ScriptedServer, Server, bench_json, build, echo, free_port, program, run, server

# One connection a thread uses the loop of alone.c, several the epoll driver: both must notice everything.
SHAPES = [("--connections", 1), ("--connections", 3), ("--connections", 2, "--threads", 2)]


@pytest.fixture(scope="module")
def target() -> Iterator[Server]:
    with server() as running:
        yield running


def histogram_count(result: dict[str, Any]) -> int:
    return sum(count for _, _, count in result["latency_ns"]["buckets"])


@pytest.mark.parametrize("shape", SHAPES)
def test_counts_are_exact(target: Server, shape: tuple[object, ...]) -> None:
    before = target.stats()
    result = bench_json(target.port, "--count", 10_007, *shape)
    assert result["requests"] == result["latency_ns"]["count"] == histogram_count(result) == 10_007
    assert result["bytes"] == 10_007 * 64
    assert target.stats()["bytes"] - before["bytes"] == 10_007 * 64


def test_warmup_is_verified_and_not_counted(target: Server) -> None:
    before = target.stats()
    result = bench_json(target.port, "--count", 101, "--warmup", 0.2, "--connections", 4)
    assert result["requests"] == histogram_count(result) == 101
    assert target.stats()["echoes"] - before["echoes"] > 101
    assert result["warmup_s"] == 0.2


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("size", ["1", "7", "8", "9", "64", "1500", "64K", "1M"])
def test_sizes(target: Server, host: str, size: str) -> None:
    for shape in (("--connections", 1), ("--connections", 5, "--threads", 2)):
        result = bench_json(target.port, "--host", host, "--size", size, "--count", 25, *shape)
        assert result["requests"] == 25
        assert result["host"] == host


def test_duration(target: Server) -> None:
    result = bench_json(target.port, "--duration", 0.2, "--warmup", 0.1, "--connections", 10)
    assert 0.15e9 < result["elapsed_ns"] < TIMEOUT_S * 1e9
    assert result["requests"] > 10


def test_fewer_requests_than_connections(target: Server) -> None:
    assert bench_json(target.port, "--count", 2, "--connections", 7, "--threads", 7)["requests"] == 2


def test_the_histogram_is_consistent(target: Server) -> None:
    latency = bench_json(target.port, "--count", 3000, "--connections", 3)["latency_ns"]
    buckets = latency["buckets"]
    assert buckets == sorted(buckets)
    assert all(lo < hi and count > 0 for lo, hi, count in buckets)
    assert all(hi - lo <= max(1, lo / 1000) for lo, hi, _ in buckets), "three significant digits"
    assert buckets[0][0] <= latency["min"] < buckets[0][1]
    assert buckets[-1][0] <= latency["max"] < buckets[-1][1]
    for name, fraction in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999)):
        rank, seen = math.ceil(fraction * 3000), 0
        for _, hi, count in buckets:
            seen += count
            if seen >= rank:
                assert latency[name] == min(hi - 1, latency["max"])
                break
    assert latency["min"] <= latency["mean"] <= latency["max"]


@pytest.mark.parametrize("threads", [1, 3])
def test_burst_is_exact(target: Server, threads: int) -> None:
    before = target.stats()
    result = bench_json(target.port, "--burst", 37, "--bursts", 11, "--threads", threads)
    assert result["mode"] == "burst"
    assert (result["connections"], result["bursts"]) == (37, 11)
    assert result["requests"] == histogram_count(result) == 37 * 11
    after = target.stats()
    assert after["total"] - before["total"] == 37 * 11
    assert after["bytes"] - before["bytes"] == 37 * 11 * 64


SEND_S = 0.002
SLOW_SEND = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/socket.h>
#include <unistd.h>

ssize_t send(int fd, const void *data, size_t n, int flags)
{
	ssize_t (*real)(int, const void *, size_t, int) = dlsym(RTLD_NEXT, "send");

	usleep(2000);
	return real(fd, data, n, flags);
}
"""


def test_a_burst_waits_from_its_release(target: Server, tmp_path: Path) -> None:
    """Every send of this client takes 2 ms, so the last of 20 requests waits for all the others, and so does the burst.

    Counted from its own send, each request would take little more than 2 ms.
    """
    (tmp_path / "slow.c").write_text(SLOW_SEND)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "slow.so", tmp_path / "slow.c", "-ldl"], check=True)
    where = ("--port", target.port, "--burst", 20, "--bursts", 3, "--json", "--raw", tmp_path / "raw")
    env = {**os.environ, "LD_PRELOAD": str(tmp_path / "slow.so")}
    done = run("bench", *where, variant="plain", env=env)
    assert done.returncode == 0, done
    result = json.loads(done.stdout)
    bursts = np.fromfile(tmp_path / "raw", dtype="<u8").reshape(3, 20)
    for latencies in bursts:
        assert (np.sort(latencies) >= SEND_S * 1e9 * np.arange(1, 21)).all()
    took = result["burst_ns"]
    assert 20 * SEND_S * 1e9 <= took["min"] <= took["p50"] <= took["max"]
    assert took["max"] >= result["latency_ns"]["max"]
    assert took["min"] + took["p50"] + took["max"] == result["elapsed_ns"]


def test_burst_tolerates_a_server_that_closes_after_its_reply() -> None:
    def once(sock: socket.socket) -> None:
        sock.sendall(sock.recv(64))

    with ScriptedServer(once) as bad:
        assert bench_json(bad.port, "--burst", 5, "--bursts", 3)["requests"] == 15


def test_many_connections(target: Server) -> None:
    assert bench_json(target.port, "--connections", 2000, "--threads", 2, "--count", 5000)["requests"] == 5000


def test_payloads_differ_between_connections_and_messages() -> None:
    seen: list[bytes] = []

    def record(sock: socket.socket) -> None:
        while data := sock.recv(64):
            seen.append(data)
            sock.sendall(data)

    with ScriptedServer(record) as recorder:
        for seed in (1, 2):
            bench_json(recorder.port, "--connections", 4, "--count", 400, "--seed", seed)
        assert len(seen) == len(set(seen)) == 800
        # Not only in the first eight bytes: a piece of another message is noticed anywhere.
        assert len({data[8:] for data in seen}) > 600
        seen.clear()
        bench_json(recorder.port, "--count", 50, "--size", 1)
        assert all(a != b for a, b in itertools.pairwise(seen))


# ---- servers that misbehave ----

SIZE = 100


def recv_exactly(sock: socket.socket, n: int) -> bytes:
    data = b""
    while len(data) < n:
        chunk = sock.recv(n - len(data))
        if not chunk:
            raise ConnectionError("end of stream")
        data += chunk
    return data


def misbehaving(third: Callable[[socket.socket, bytes], object]) -> Callable[[socket.socket], None]:
    """Echo two messages of a connection, then do what third does."""

    def serve(sock: socket.socket) -> None:
        for _ in range(2):
            sock.sendall(recv_exactly(sock, SIZE))
        third(sock, recv_exactly(sock, SIZE))
        echo(sock)

    return serve


def stall(sock: socket.socket, _: bytes) -> None:
    sock.recv(1)  # nothing comes before bench gives up


def flip(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data[:41] + bytes([data[41] ^ 0x10]) + data[42:])


def close_early(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data[:30])
    sock.shutdown(socket.SHUT_RDWR)


def reset(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data[:30])
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    time.sleep(0.05)  # or the reset overtakes what was sent
    sock.close()


MISBEHAVIOUR: dict[str, tuple[Callable[[socket.socket, bytes], object], str]] = {
    "flips a byte": (flip, r"mismatch at byte 41 of reply 3: expected 0x(..), found 0x(..)"),
    "drops the first byte": (lambda s, d: s.sendall(d[1:]), r"mismatch at byte \d of reply 3: .*"),
    "drops the last byte": (lambda s, d: s.sendall(d[:-1]), r"timed out after 0.3 s with 99 of 100 bytes of reply 3"),
    "swaps halves": (lambda s, d: s.sendall(d[50:] + d[:50]), r"mismatch at byte \d+ of reply 3: .*"),
    "adds a byte": (lambda s, d: s.sendall(d + b"A"), r"surplus byte 0x41 after reply 3"),
    "closes early": (close_early, r"closed by the server after 30 of 100 bytes of reply 3"),
    "resets": (reset, r"reset by the server after (0|30) of 100 bytes of reply 3"),
    "never answers": (stall, r"timed out after 0.3 s with 0 of 100 bytes of reply 3"),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("how", MISBEHAVIOUR)
def test_misbehaviour_is_told(how: str, shape: tuple[object, ...]) -> None:
    third, says = MISBEHAVIOUR[how]
    with ScriptedServer(misbehaving(third)) as bad:
        done = run("bench", "--port", bad.port, "--size", SIZE, "--count", 1000, "--io-timeout", 0.3, "--json", *shape)
    assert (done.returncode, done.stdout) == (1, "")
    match = re.fullmatch(rf"bench: connection [0-2]: {says}\n", done.stderr)
    assert match, done.stderr
    if how == "flips a byte":
        expected, found = (int(text, 16) for text in match.groups())
        assert expected ^ found == 0x10


@pytest.mark.parametrize("shape", SHAPES)
def test_a_surplus_byte_after_the_last_reply(shape: tuple[object, ...]) -> None:
    def late(sock: socket.socket) -> None:
        echo(sock)
        sock.sendall(b"Z")  # only once bench has shut down its side

    with ScriptedServer(late) as bad:
        done = run("bench", "--port", bad.port, "--count", 10, *shape)
    assert done.returncode == 1
    assert re.fullmatch(r"bench: connection \d: surplus byte 0x5a after reply \d+\n", done.stderr)


def test_replies_of_two_connections_swapped() -> None:
    waiting: list[tuple[socket.socket, bytes]] = []
    lock = threading.Lock()

    def swap(sock: socket.socket) -> None:
        while data := sock.recv(SIZE):
            with lock:
                waiting.append((sock, data))
                if len(waiting) == 2:
                    (a, from_a), (b, from_b) = waiting
                    a.sendall(from_b)
                    b.sendall(from_a)
                    waiting.clear()

    with ScriptedServer(swap) as bad:
        done = run("bench", "--port", bad.port, "--size", SIZE, "--count", 100, "--connections", 2)
    assert done.returncode == 1
    assert re.search(r"mismatch at byte \d+ of reply 1", done.stderr)


def test_a_server_that_does_not_close_is_no_error() -> None:
    done_serving = threading.Event()

    def reluctant(sock: socket.socket) -> None:
        echo(sock)
        done_serving.wait(TIMEOUT_S)

    with ScriptedServer(reluctant) as slow:
        assert bench_json(slow.port, "--count", 10, "--connections", 3)["requests"] == 10
        done_serving.set()


def test_stopping_early_prints_what_was_measured(target: Server) -> None:
    for shape in SHAPES:
        process = subprocess.Popen(
            [
                program("bench"),
                "--port",
                str(target.port),
                "--duration",
                "60",
                "--json",
                "--progress",
                *map(str, shape),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        progress = json.loads(process.stderr.readline())["progress"]
        assert progress["phase"] == "run"
        assert progress["connected"] == shape[1]
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 130
        result = json.loads(out)
        assert result["interrupted"] is True
        assert result["requests"] == histogram_count(result) > 0


def test_stopping_while_a_server_is_silent() -> None:
    entered = threading.Event()

    def silent(sock: socket.socket) -> None:
        entered.set()
        stall(sock, sock.recv(64))

    for shape in SHAPES:
        entered.clear()
        with ScriptedServer(silent) as bad:
            command = [program("bench"), "--port", str(bad.port), "--json", *map(str, shape)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            assert entered.wait(TIMEOUT_S)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=TIMEOUT_S)
        assert (process.returncode, err) == (130, "")
        assert json.loads(out)["latency_ns"]["count"] == 0


def test_nobody_listens() -> None:
    port = free_port()
    done = run("bench", "--port", port)
    line = f"bench: cannot connect to 127.0.0.1:{port}: Connection refused (connection 0)\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line)


def test_a_connection_that_is_never_made() -> None:
    """A listener whose backlog is full and that accepts nothing leaves a SYN unanswered."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port = listener.getsockname()[1]
        done = run("bench", "--port", port, "--connections", 20, "--connect-timeout", 0.2)
    assert done.returncode == 1
    assert re.fullmatch(
        rf"bench: cannot connect to 127.0.0.1:{port}: no answer in 0.2 s \(connection \d+\)\n", done.stderr
    )


def test_descriptor_limits(target: Server) -> None:
    command = [program("bench"), "--port", str(target.port), "--connections", "200", "--count", "200"]
    low = subprocess.run(
        ["prlimit", "--nofile=50:100", *command], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    line = "bench: 200 connections need 217 descriptors, the hard limit is 100\n"
    assert (low.returncode, low.stderr) == (1, line)
    raised = subprocess.run(
        ["prlimit", "--nofile=50:400", *command], capture_output=True, timeout=TIMEOUT_S, check=False
    )
    assert raised.returncode == 0


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--port", "0"], "--port"),
        (["--port", "70000"], "--port"),
        (["--port", "x"], "--port"),
        (["--host", "localhost"], "--host"),
        (["--connections", "0"], "--connections"),
        (["--connections", "15001"], "--connections"),
        (["--threads", "2"], "--threads 2 is more than there are connections"),
        (["--size", "0"], "--size"),
        (["--size", "1048577"], "--size"),
        (["--size", "2M"], "--size"),
        (["--size", "64KB"], "--size"),
        (["--count", "0"], "--count"),
        (["--count", "1.5"], "--count"),
        (["--duration", "0"], "--duration"),
        (["--duration", "nan"], "--duration"),
        (["--warmup", "-1"], "--warmup"),
        (["--io-timeout", "x"], "--io-timeout"),
        (["--cpus", ""], "--cpus"),
        (["--service", "12,,34"], "--service must be process numbers"),
        (["--service", "me"], "--service must be process numbers"),
        (["--cpus", "1,"], "--cpus"),
        (["--cpus", "3-1"], "--cpus"),
        (["--cpus", "a"], "--cpus"),
        (["--burst", "0"], "--burst"),
        (["--burst", "5", "--count", "7"], "--burst has --bursts"),
        (["--burst", "5", "--connections", "5"], "--burst has its own number of connections"),
        (["--connections", "5", "--burst", "5"], "--burst has its own number of connections"),
        (["--bursts", "5"], "--bursts goes with --burst"),
        (["extra"], 'unexpected argument "extra"'),
        (["--nonsense"], "nonsense"),
    ],
)
def test_bad_arguments(args: list[str], says: str) -> None:
    done = run("bench", *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r".*bench: [^\n]+\n", done.stderr)
    assert says in done.stderr


def test_a_cpu_that_does_not_exist(target: Server) -> None:
    done = run("bench", "--port", target.port, "--cpus", 1000)
    assert (done.returncode, done.stderr) == (1, "bench: cannot run on CPU 1000: Invalid argument\n")


def test_pinning(target: Server) -> None:
    assert bench_json(target.port, "--cpus", "0", "--count", 10, "--connections", 4, "--threads", 2)["requests"] == 10


def test_text_output_and_help(target: Server) -> None:
    done = run("bench", "--port", target.port, "--count", 100)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"closed 127.0.0.1:{target.port}, 1 connection, 1 thread, 64 B\n")
    for word in ("requests", "rate", "latency", "min", "mean", "stdev", "p50", "p90", "p99", "p99.9", "max"):
        assert re.search(rf"^ +{re.escape(word)}\b", done.stdout, re.MULTILINE)
    done = run("bench", "--help")
    assert done.returncode == 0
    assert "Examples:" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_the_result_cannot_be_written(target: Server) -> None:
    with open("/dev/full", "w", encoding="ascii") as full:
        done = subprocess.run(
            [program("bench"), "--port", str(target.port), "--count", "10"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "bench: cannot write the result: No space left on device\n")


def test_no_file_of_bench_needs_one_that_needs_it() -> None:
    """Compares the symbols that objects define and use: main, options, supervise; below modes, drive, conn, run."""
    defined: dict[str, str] = {}
    wanted: dict[str, set[str]] = {}
    for path in sorted((build("plain") / "native/bench").glob("*.o")):
        wanted[path.stem] = set()
        for line in subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout.splitlines():
            kind, name = line.split()[-2:]
            if kind == "U":
                wanted[path.stem].add(name)
            elif kind.isupper():
                defined[name] = path.stem
    needs = {file: {defined[name] for name in names & defined.keys()} for file, names in wanted.items()}
    order = list(graphlib.TopologicalSorter(needs).static_order())
    assert order.index("run") < order.index("conn") < order.index("drive") < order.index("closed") < order.index("main")
