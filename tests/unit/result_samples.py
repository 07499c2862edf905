# SPDX-License-Identifier: MIT
"""Small hand-made bench results, for the tests of what is computed from them and drawn of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from kecho.bench.host import Host
from kecho.bench.latency import Latency
from kecho.bench.result import Result
from kecho.bench.run import Run
from kecho.model.histogram import Histogram
from kecho.model.snapshot import PathStats

HOST = Host("bookworm", "6.1.0-56-amd64", "AMD EPYC", 2)
OPTIONS: dict[str, Any] = {
    "mode": "closed",
    "connections": 1,
    "threads": 1,
    "size_bytes": 64,
    "warmup_s": 0,
    "seed": 1,
    "cpus": "1",
}


def hdr_bounds(value: int) -> tuple[int, int]:
    """The slot of `value` in a HdrHistogram of three digits, as kecho/native/bench/histogram.h has it."""
    shift = max(0, value.bit_length() - 11)
    low = value >> shift << shift
    return low, low + (1 << shift)


def latency(values: Sequence[int]) -> Latency:
    """What bench reports of `values`."""
    counts = Counter(map(hdr_bounds, values))
    mean = sum(values) / len(values)
    stdev = (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5
    buckets = tuple((low, high, n) for (low, high), n in sorted(counts.items()))
    return Latency(len(values), min(values), max(values), mean, stdev, buckets)


def run(target: str, values: Sequence[int], *, mode: str = "", path: str = "", repeat: int = 0, **more: Any) -> Run:
    """A run whose service, if it has a mode, counted exactly what the client saw, at half the latency."""
    kernel = None
    if mode:
        inside = None if mode == "user" else Histogram.of([value // 2 for value in values])
        counted = PathStats(len(values), 64 * len(values), 0, inside, "" if inside else "it takes no time")
        kernel = {path: counted, "idle": PathStats()}
    made: dict[str, Any] = {
        "target": target,
        "mode": mode,
        "endpoint": "127.0.0.1:12345",
        "repeat": repeat,
        "options": OPTIONS,
        "elapsed_ns": sum(values),
        "interrupted": False,
        "latency": latency(values),
        "kernel": kernel,
    }
    return Run(**{**made, **more})


def result(*runs: Run, baseline: str = "slow", interrupted: bool = False) -> Result:
    return Result(HOST, "2026-11-23T11:20:00+00:00", "0.1.0", "kecho-ctl bench", baseline, runs, interrupted)


def three_targets() -> Result:
    """Two rounds over a baseline of 14 µs, a sockmap of 1.7 µs and a server that is not ours."""
    runs = []
    for repeat in range(2):
        runs += [
            run("fast", [1700 + i for i in range(100)], mode="sockmap", path="egress", repeat=repeat),
            run("slow", [14000 + 10 * i for i in range(100)], mode="user", path="user", repeat=repeat),
            run("127.0.0.1:7", [20000 + 100 * i for i in range(99)] + [9_000_000], repeat=repeat),
        ]
    return result(*runs)
