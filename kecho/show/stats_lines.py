# SPDX-License-Identifier: MIT
"""The intervals of ``stats``: a line for each path, in the manner of vmstat and sar."""

from __future__ import annotations

import time
from collections.abc import Iterator

from kecho.model.snapshot import PathStats, Snapshot
from kecho.model.units import duration, three_digits

_TITLES = ("time", "path", "active", "echo/s", "MB/s", "p50", "p99", "max")
_WIDTHS = (8, 10, 7, 12, 8, 9, 9, 9)
HEADER_EVERY = 20  # lines, so that it stays visible


def _row(cells: tuple[str, ...]) -> str:
    left = 2
    return " ".join(
        cell.ljust(width) if i < left else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, _WIDTHS, strict=True))
    )


def header() -> str:
    """The titles of the columns."""
    return _row(_TITLES)


def interval_lines(since: Snapshot, now_s: float) -> Iterator[str]:
    """A line for each path that echoed, or one without figures. `since` is the difference over the interval.

    `now_s` is its end, in seconds since the epoch. MB are 10^6 bytes. Latency is that inside (docs/metrics.md).
    """
    at = time.strftime("%H:%M:%S", time.localtime(now_s))
    active = f"{since.connections.active:,}"
    echoed = {name: stats for name, stats in since.paths.items() if stats.echoes}
    for name, stats in echoed.items():
        yield _row((at, name, active, *_rates(stats, since.uptime_s), *_latencies(stats)))
    if not echoed:
        yield _row((at, "-", active, "0", "0", "-", "-", "-"))


def _rates(stats: PathStats, length_s: float) -> tuple[str, str]:
    if not length_s:
        return "-", "-"
    return f"{stats.echoes / length_s:,.0f}", three_digits(stats.bytes / length_s / 1e6)


def _latencies(stats: PathStats) -> tuple[str, ...]:
    latency = stats.latency
    if latency is None or not latency.count:
        return "-", "-", "-"
    return tuple(duration(value) for value in (latency.percentile(0.5), latency.percentile(0.99), latency.max))
