# SPDX-License-Identifier: MIT
"""Proof that `kecho-ctl bench` measures: it runs against servers with known faults, as a user would run it.

test_native_bench.py and test_native_modes.py do the same with the load generator alone, in every mode.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_support import TIMEOUT_S, ScriptedServer, bench_json, echo

ROOT = Path(__file__).resolve().parents[3]
SIZE = 100
STALL_S = 1.0 if os.environ.get("KECHO_TEST_FULL") == "1" else 0.4


def kecho_bench(port: int, *options: object) -> subprocess.CompletedProcess[str]:
    """`kecho-ctl bench` of the server on this port: one run."""
    command = [sys.executable, "-m", "kecho.cli.main", "bench", f"127.0.0.1:{port}", "--repeat=1", *map(str, options)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S * 2, check=False)


def measured(port: int, *options: object) -> dict[str, Any]:
    """The only run of a benchmark that must succeed, as its JSON has it."""
    done = kecho_bench(port, "--json", "--warmup=0", *options)
    assert done.returncode == 0, done.stderr
    (run,) = json.loads(done.stdout)["runs"]
    return dict(run)


def whole(sock: socket.socket) -> bytes:
    """A whole message; empty at the end of the stream."""
    return sock.recv(SIZE, socket.MSG_WAITALL)


# ---- time ----


class Stalling:
    """An echo server that stalls on all connections for `stall_s` of every `period_s`."""

    def __init__(self, stall_s: float, period_s: float) -> None:
        self.stall_s, self.period_s = stall_s, period_s
        self.begun_s = 0.0
        self.lock = threading.Lock()

    def serve(self, sock: socket.socket) -> None:
        while data := sock.recv(4096):
            with self.lock:
                self.begun_s = self.begun_s or time.monotonic()
                at = (time.monotonic() - self.begun_s) % self.period_s
                into = at - (self.period_s - self.stall_s)
                if into >= 0:  # the last part of each period
                    time.sleep(self.stall_s - into)
            sock.sendall(data)


def test_a_stall_of_a_tenth_of_the_time() -> None:
    """The open loop's p99 is most of the stall; in the closed loop it is one sample among thousands.

    A tenth of the requests are due while the server stands still, evenly, so that the slowest hundredth waits nine
    tenths of the stall. Coordinated omission would hide this, as the closed loop does.
    """
    with ScriptedServer(Stalling(STALL_S, 10 * STALL_S).serve) as server:
        open_loop = measured(server.port, f"--rate={100 / STALL_S}", f"--duration={10 * STALL_S}", "--connections=2")
    with ScriptedServer(Stalling(STALL_S, 10 * STALL_S).serve) as server:
        closed = measured(server.port, f"--duration={10.5 * STALL_S}")
    assert open_loop["latency_ns"]["count"] == 1000
    assert open_loop["latency_ns"]["p99"] >= 0.8 * STALL_S * 1e9
    slow, closed_slow = (
        sum(n for low, _, n in run["latency_ns"]["buckets"] if low >= 0.5e9 * STALL_S) for run in (open_loop, closed)
    )
    assert slow >= 0.04 * open_loop["latency_ns"]["count"]
    assert 1 <= closed_slow < 0.01 * closed["latency_ns"]["count"], "one a stall; a busy machine stalls, too"
    assert closed["latency_ns"]["p99"] < 0.5e9 * STALL_S


def test_a_known_delay(tmp_path: Path) -> None:
    """Bounds that hold on the busiest machine, from the server's readings of the same clock.

    No sample is shorter than its reply took in the server. The samples of the second request to the last but one fit
    together between the first reply and the last request, as the server saw them.
    """
    took_ns: list[int] = []
    received_ns: list[int] = []
    delay_ns = 5_000_000

    def delayed(sock: socket.socket) -> None:
        while data := whole(sock):
            received_ns.append(time.monotonic_ns())
            time.sleep(delay_ns / 1e9)
            took_ns.append(time.monotonic_ns() - received_ns[-1])
            sock.sendall(data)

    raw = tmp_path / "raw"
    with ScriptedServer(delayed) as server:
        bench_json(server.port, "--size", SIZE, "--count", 50, "--raw", raw)
    samples = np.fromfile(raw, dtype="<u8").astype(np.int64)
    took = np.array(took_ns)
    assert len(samples) == len(took) == 50
    assert took.min() >= delay_ns
    assert (samples >= took).all()
    first_reply_ns = received_ns[0] + took_ns[0]
    assert samples[1:-1].sum() <= received_ns[-1] - first_reply_ns


def test_a_known_delay_as_it_is_reported() -> None:
    def delayed(sock: socket.socket) -> None:
        while data := whole(sock):
            time.sleep(0.03)
            sock.sendall(data)

    with ScriptedServer(delayed) as server:
        latency = measured(server.port, f"--size={SIZE}", "--count=20")["latency_ns"]
    assert 30e6 <= latency["min"] <= latency["p50"] < 60e6, "what exceeds the delay is scheduling"


# ---- counts ----


@pytest.mark.parametrize("load", [("--connections=1",), ("--connections=7", "--threads=3"), ("--depth=5",)])
def test_10007_requests_are_10007_samples(load: tuple[str, ...]) -> None:
    with ScriptedServer(echo) as server:
        run = measured(server.port, "--count=10007", *load)
    assert run["latency_ns"]["count"] == sum(n for _, _, n in run["latency_ns"]["buckets"]) == 10_007


def test_a_burst_is_exact() -> None:
    """The server counts the expected connections, messages and bursts."""
    lock = threading.Lock()
    seen = {"connections": 0, "messages": 0}

    def count(sock: socket.socket) -> None:
        with lock:
            seen["connections"] += 1
        while data := whole(sock):
            with lock:
                seen["messages"] += 1
            sock.sendall(data)

    with ScriptedServer(count) as server:
        done = kecho_bench(server.port, "--burst=13", "--bursts=7", f"--size={SIZE}", "--json")
    (run,) = json.loads(done.stdout)["runs"]
    assert (run["options"]["connections"], run["options"]["bursts"]) == (13, 7)
    assert run["latency_ns"]["count"] == 13 * 7
    assert seen == {"connections": 13 * 7, "messages": 13 * 7}


# ---- servers at fault ----


def close(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data[:30])
    sock.shutdown(socket.SHUT_RDWR)


FAULTS: dict[str, tuple[Callable[[socket.socket, bytes], object], str]] = {
    "flips a byte": (
        lambda s, d: s.sendall(d[:41] + bytes([d[41] ^ 0x10]) + d[42:]),
        r"mismatch at byte 41 of reply 3: expected 0x[0-9a-f]{2}, found 0x[0-9a-f]{2}",
    ),
    "drops one": (lambda s, d: s.sendall(d[:-1]), r"timed out after 0\.5 s with 99 of 100 bytes of reply 3"),
    "adds one": (lambda s, d: s.sendall(d + b"A"), r"surplus byte 0x41 after reply 3"),
    "closes early": (close, r"closed by the server after 30 of 100 bytes of reply 3"),
    "never answers": (lambda s, d: None, r"timed out after 0\.5 s with 0 of 100 bytes of reply 3"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told(fault: str) -> None:
    """A fault in the third reply gives its own line, exit code 1, and no figures."""
    does, says = FAULTS[fault]

    def serve(sock: socket.socket) -> None:
        for _ in range(2):
            sock.sendall(whole(sock))
        does(sock, whole(sock))
        sock.recv(1)  # until bench has had enough

    with ScriptedServer(serve) as server:
        done = kecho_bench(server.port, f"--size={SIZE}", "--count=1000", "--io-timeout=0.5", "--warmup=0", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    told = done.stderr.splitlines()[-1]
    assert re.fullmatch(rf"kecho-ctl: 127\.0\.0\.1:{server.port}: connection 0: {says}", told), done.stderr
