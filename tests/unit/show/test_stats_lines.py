# SPDX-License-Identifier: MIT
"""The line that an interval of ``stats`` gets: rates over its length, latency of its samples."""

from __future__ import annotations

from kecho.model.histogram import Histogram
from kecho.model.snapshot import Connections, PathStats, Snapshot
from kecho.show import stats_lines


def interval(length_s: float, **paths: PathStats) -> Snapshot:
    return Snapshot("kecho", "sockmap", 12345, length_s, "6.1.0", Connections(3, 4, 0, 0), paths)


def test_rates_are_over_the_length_of_the_interval() -> None:
    latency = Histogram.of([2000] * 98 + [64_000] * 2)
    since = interval(0.5, egress=PathStats(100, 3_000_000, 0, latency), skb=PathStats())
    (line,) = stats_lines.interval_lines(since, 0.0)
    assert line.split()[1:5] == ["egress", "3", "200", "6.00"]
    low, high, most = line.split()[5::2]
    assert 1.8 < float(low) < 2.2 and 58 < float(high) < 70 and float(most) >= 64
    assert line.split()[6::2] == ["µs"] * 3


def test_a_path_without_latency() -> None:
    (line,) = stats_lines.interval_lines(interval(1.0, user=PathStats(7, 70, 0, None, "why")), 0.0)
    assert line.split()[1:] == ["user", "3", "7", "0.00", "-", "-", "-"]


def test_columns_line_up() -> None:
    since = interval(1.0, egress=PathStats(10**7, 10**11, 0, Histogram.of([5])), workqueue=PathStats(1, 1))
    lines = [
        stats_lines.header(),
        *stats_lines.interval_lines(since, 0.0),
        *stats_lines.interval_lines(interval(1.0), 0),
    ]
    assert len({len(line) for line in lines}) == 1 and len(lines[0]) <= 80
