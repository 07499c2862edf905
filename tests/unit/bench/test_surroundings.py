# SPDX-License-Identifier: MIT
"""What a benchmark needs of the system's limits, and its warnings before it starts."""

from __future__ import annotations

import subprocess
import sys

import pytest
from native_support import ScriptedServer, echo

from kecho.bench import surroundings
from kecho.bench.plan import needs_of
from kecho.bench.runner import RunOptions
from kecho.bench.targets import Target
from kecho.system.limits import Needs


@pytest.mark.parametrize(
    # crr makes all its connections at once, and as many as it has requests.
    ("sweep", "repeats", "connections", "made"),
    [
        ([RunOptions()], 3, 1, 3),
        ([RunOptions(connections=n, size_bytes=size) for n in (1, 10, 100) for size in (64, 1024)], 10, 100, 2220),
        ([RunOptions(connections=200, crr=True, count=5000)], 3, 200, 15_000),
        ([RunOptions(connections=200, crr=True, count=5000, warmup_s=0.2)], 3, 200, None),
        ([RunOptions(connections=200, crr=True, duration_s=1.0)], 3, 200, None),
        ([RunOptions(burst=1000)], 3, 1000, 30_000),
        ([RunOptions(burst=1000, bursts=2, size_bytes=size) for size in (1, 2)], 3, 1000, 12_000),
    ],
)
def test_needs(sweep: list[RunOptions], repeats: int, connections: int, made: int | None) -> None:
    waiting = connections if sweep[0].crr else min(connections, 64)
    assert needs_of(sweep, repeats) == Needs(connections, waiting, made)


def test_the_queue_of_the_server_that_is_measured() -> None:
    """The kernel tells the backlog of any server on this machine; here it is 128."""
    with ScriptedServer(echo) as server:
        target = Target("theirs", "127.0.0.1", server.port)
        assert surroundings.warnings([target], Needs.of_run(129, 129, paced=False), None) == []
        (warning,) = surroundings.warnings([target], Needs.of_run(130, 130, paced=False), None)
    assert warning.startswith("theirs lets 128 connections wait (up --backlog), and 130 may come at once")


def test_bench_warns_before_it_starts() -> None:
    with ScriptedServer(echo, backlog=5) as server:
        command = [sys.executable, "-m", "kecho.cli.main", "bench", f"127.0.0.1:{server.port}", "--connections=7"]
        done = subprocess.run(
            [*command, "--count=7", "--repeat=1", "--json"], capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 0
    assert f"kecho-ctl: 127.0.0.1:{server.port} lets 5 connections wait" in done.stderr
