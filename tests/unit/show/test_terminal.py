# SPDX-License-Identifier: MIT
"""Text for people: never wider than asked, columns that line up, exact counts, and a reason for what is missing."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kecho.model import units
from kecho.model.histogram import SLOTS, Histogram, bounds, slot
from kecho.model.snapshot import Connections, PathStats, Snapshot
from kecho.show.terminal import MAX_ROWS, histogram_rows, listen_text, stats_text, status_text

COUNTS = st.dictionaries(st.integers(0, SLOTS - 1), st.integers(1, 10**6), min_size=1)


def snapshot(**paths: PathStats) -> Snapshot:
    return Snapshot("kecho", "sockmap", 12345, 12.3, "6.1.0-56-amd64", Connections(1, 3, 0, 0), paths)


def spread(n: int) -> Histogram:
    """`n` samples on two CPUs, most of them about 1.7 µs, one in a hundred far above."""
    values = [1500 + 7 * (i % 60) if i % 100 else 3000 + 997 * (i % 1000) for i in range(n)]
    return Histogram.of(values[: n // 3], cpu=0) + Histogram.of(values[n // 3 :], cpu=3)


def busy(n: int = 10_007) -> Snapshot:
    return snapshot(
        egress=PathStats(n, 64 * n, 2, spread(n)),
        skb=PathStats(),
        user=PathStats(12, 700, 1, None, "the controller does not take the time of what it echoes itself"),
    )


@pytest.mark.parametrize("utf8", [True, False])
@pytest.mark.parametrize("per_cpu", [True, False])
@pytest.mark.parametrize("width", [30, 40, 63, 80, 81, 132])
def test_never_wider_than_asked(width: int, per_cpu: bool, utf8: bool) -> None:
    text = stats_text(busy(), per_cpu=per_cpu, width=width, utf8=utf8)
    assert max(map(len, text.splitlines())) <= width
    assert text.endswith("\n")
    assert utf8 or text.isascii()


@given(COUNTS, st.integers(40, 120))
def test_never_wider_whatever_was_measured(counts: dict[int, int], width: int) -> None:
    latency = Histogram({0: counts})
    stats = PathStats(latency.count, 2**63, 10**9, latency)
    text = stats_text(snapshot(egress=stats), per_cpu=True, width=width, utf8=True)
    assert max(map(len, text.splitlines())) <= width


def test_counts_are_exact() -> None:
    text = stats_text(busy(10_007), utf8=True)
    assert "10,007 echoes" in text
    assert "640,448 bytes" in text
    assert "2 fallbacks" in text
    rows = re.findall(r"[nµm]?s – +[\d.]+ [nµm]?s +([\d,]+)", text)
    assert sum(int(row.replace(",", "")) for row in rows) == 10_007


def test_singular() -> None:
    text = stats_text(snapshot(egress=PathStats(1, 1, 1, Histogram.of([1000]))))
    assert "1 echo  1 byte  1 fallback\n" in text


def test_header() -> None:
    lines = stats_text(busy(), width=100).splitlines()
    assert lines[0] == "kecho  sockmap  port 12345  kernel 6.1.0-56-amd64  up 12.3 s"
    assert lines[1] == "connections:  1 active  3 total  0 rejected  0 aborted"
    assert stats_text(busy(), interval=True, width=100).splitlines()[0].endswith("  in 12.3 s")


def test_percentiles_have_units() -> None:
    values = [900] * 50 + [12_500] * 40 + [3_100_000] * 9 + [2_000_000_000]
    text = stats_text(snapshot(egress=PathStats(100, 6400, 0, Histogram.of(values))), utf8=True)
    line = next(line for line in text.splitlines() if "p50" in line)
    expected = {
        key: units.duration(Histogram.of(values).percentile(q))
        for key, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
    }
    assert [expected["p50"][-2:], expected["p90"][-2:], expected["p99"][-2:]] == ["ns", "µs", "ms"]
    assert line.split("  ")[1:4] == [f"{key} {value}" for key, value in expected.items()]
    assert line.endswith(" s")


def test_idle_path_is_one_line() -> None:
    lines = stats_text(busy()).splitlines()
    at = lines.index("path skb:  no echo yet")
    assert lines[at - 1] == lines[at + 1] == ""


def test_idle_path_with_fallbacks_says_so() -> None:
    assert "path skb:  no echo yet  3 fallbacks\n" in stats_text(snapshot(skb=PathStats(fallbacks=3)))


def test_unobserved_latency_says_why() -> None:
    text = " ".join(stats_text(busy(), width=50).split())
    assert "latency not observed: the controller does not take the time of what it echoes itself" in text


def test_samples_missing_from_the_histogram_are_told() -> None:
    text = stats_text(snapshot(egress=PathStats(10, 640, 0, Histogram.of([1000] * 7))))
    assert "latency of 7 of 10 echoes" in text


def test_histogram_columns_line_up() -> None:
    lines = stats_text(busy(), utf8=True).splitlines()
    rows = [line for line in lines if " – " in line]
    assert len(rows) > 5
    assert len({line.index("–") for line in rows}) == 1
    ends = {match.end(1) for line in rows if (match := re.search(r"– +[\d.]+ [nµm]?s +([\d,]+)", line))}
    assert len(ends) == 1


def test_longest_bar_fills_the_line_and_every_count_shows() -> None:
    for utf8, blocks in ((True, "█▏▎▍▌▋▊▉"), (False, "@")):
        rows = [line for line in stats_text(busy(), utf8=utf8).splitlines() if re.search(r"s [–-] ", line)]
        assert max(map(len, rows)) == 80
        for row in rows:
            empty = re.search(r" 0$", row) is not None
            assert (row[-1] in blocks) is not empty


def test_per_cpu_has_a_row_for_each_cpu() -> None:
    text = stats_text(busy(9000), per_cpu=True, utf8=True)
    rows = [line.split() for line in text.splitlines() if line.startswith("  cpu ")]
    assert [(row[1], row[2]) for row in rows] == [("0", "3,000"), ("3", "6,000")]
    assert "cpu 3" not in stats_text(busy(9000), per_cpu=False)


@given(COUNTS)
def test_rows_hold_every_sample_and_nothing_more(counts: dict[int, int]) -> None:
    rows = histogram_rows(counts)
    assert len(rows) <= MAX_ROWS
    assert sum(n for _, _, n in rows) == sum(counts.values())
    assert rows[0][0] == bounds(min(counts))[0]
    assert rows[-1][1] == bounds(max(counts))[1]
    assert all(left[1] == right[0] for left, right in itertools.pairwise(rows))
    assert rows[0][2]
    assert rows[-1][2]
    for low, high, n in rows:
        assert n == sum(k for index, k in counts.items() if low <= bounds(index)[0] < high)


def test_rows_of_nothing() -> None:
    assert histogram_rows({}) == []


def test_rows_are_as_fine_as_the_slots_where_it_is_narrow() -> None:
    counts = Counter(map(slot, range(1024, 2048)))
    assert [(low, high) for low, high, _ in histogram_rows(counts)] == [bounds(i) for i in sorted(counts)]


def test_outliers_do_not_flatten_the_bulk() -> None:
    counts = Counter(map(slot, [*range(1024, 2048), 10, 10**9]))
    rows = histogram_rows(counts)
    assert sum(1 for low, high, _ in rows if low >= 1024 and high <= 2048) == 8


STATUS: list[dict[str, Any]] = [
    {
        "name": "kecho",
        "mode": "sockmap",
        "port": 12345,
        "binds": ["127.0.0.1", "::1"],
        "state": "up",
        "pid": 4711,
        "uptime_s": 7325.0,
        "paths": ["egress", "skb", "user"],
        "connections": {"active": 15, "total": 100_000},
    },
    {"name": "b", "mode": "user", "port": 7, "state": "died", "pid": 12},
]


def test_status_lines_up() -> None:
    lines = status_text(STATUS).splitlines()
    first = ["name", "mode", "paths", "state", "addresses"]
    assert lines[0].split() == [*first, "port", "pid", "uptime", "active", "total"]
    assert lines[1].split() == [
        "kecho",
        "sockmap",
        "egress,skb,user",
        "up",
        "127.0.0.1,::1",
        "12345",
        "4711",
        "2",
        "h",
        "2",
        "min",
        "15",
        "100,000",
    ]
    assert lines[2].split() == ["b", "user", "-", "died", "-", "7", "12", "-", "-", "-"]
    assert len({len(line) for line in lines}) == 1
    for title in ("mode", "paths", "state"):
        assert all(line[lines[0].index(title) - 1] == " " != line[lines[0].index(title)] for line in lines)


def test_status_fits_the_terminal() -> None:
    services = [{**STATUS[0], "name": "a" * 64, "binds": ["192.0.2.123", "2001:db8:1234:5678::1"]}, STATUS[1]]
    lines = status_text(services, width=80).splitlines()
    assert max(map(len, lines)) <= 80
    assert "up" in lines[1].split() and "died" in lines[2].split() and lines[1].endswith("15")


def test_status_cuts_nothing_off_for_a_long_name() -> None:
    text = status_text([{**STATUS[0], "name": "a" * 64}])
    assert "a" * 64 in text and text.rstrip().endswith("100,000")


def test_status_tells_of_connections_without_room() -> None:
    quiet = {"name": "a", "listen": {"overflows": 0, "drops": 0, "syncookies": 0}}
    loud = {"name": "b", "listen": {"overflows": 1200, "drops": 1300, "syncookies": 0}}
    assert listen_text([quiet, {"name": "c", "state": "died"}]) == ""
    assert listen_text([quiet, loud]) == (
        "\nno room to listen, in this network namespace: 1,200 overflows, 1,300 drops (all\n  its listeners together)\n"
    )


def test_status_of_nothing() -> None:
    assert status_text([]) == "nothing is up\n"


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0 ns"),
        (999, "999 ns"),
        (999.6, "1.00 µs"),
        (1000, "1.00 µs"),
        (1734, "1.73 µs"),
        (12_345, "12.3 µs"),
        (99_960, "100 µs"),
        (999_499, "999 µs"),
        (999_500, "1.00 ms"),
        (3_600_000_000_000, "3600 s"),
        (None, "-"),
    ],
)
def test_duration(ns: float | None, text: str) -> None:
    assert units.duration(ns) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(8.44, "8.4×"), (0.934, "0.93×"), (0.9951, "1.0×"), (99.94, "99.9×"), (512.3, "512×"), (None, "-")],
)
def test_ratio(value: float | None, text: str) -> None:
    assert units.ratio(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.9, "59.9 s"),
        (59.99, "1 min 0 s"),
        (61.5, "1 min 1 s"),
        (3600, "1 h 0 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_uptime(seconds: float, text: str) -> None:
    assert units.uptime(seconds) == text
