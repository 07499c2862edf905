# SPDX-License-Identifier: MIT
"""``kecho-ctl bench``: its records and what is computed from them, its options, and real runs of the real programs."""

from __future__ import annotations

import argparse
import copy
import csv
import functools
import itertools
import json
import math
import operator
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import result_samples as samples
from hypothesis import given
from hypothesis import strategies as st
from native_support import ScriptedServer, wait_for

from kecho.bench import outputs, progress, runner, targets
from kecho.bench.cpu import CpuTime
from kecho.bench.host import Host, compiler
from kecho.bench.interval import MIN_ROUNDS
from kecho.bench.latency import Latency
from kecho.bench.plan import Plan
from kecho.bench.result import Result, load
from kecho.bench.rounds import Step, make_all, make_run, steps
from kecho.bench.run import Run
from kecho.cli import bench as command
from kecho.cli.options import Parser
from kecho.model.errors import KechoError, Unavailable, UsageError, one_line
from kecho.model.histogram import Histogram
from kecho.model.snapshot import Connections, PathStats, Snapshot
from kecho.native import programs
from kecho.show.bench_text import Form, bench_table, caveats, headline, mismatch, notes
from kecho.system.limits import ListenCounts

CHECKOUT = Path(__file__).resolve().parents[3]
VALUES = st.lists(st.integers(0, 10**10), min_size=1, max_size=60)


# --- latencies and records ------------------------------------------------------------------------------------------


@given(VALUES, st.sampled_from([0.5, 0.9, 0.99, 0.999]))
def test_percentile_is_that_of_the_sorted_list_within_its_bucket(values: list[int], q: float) -> None:
    oracle = sorted(values)[max(1, math.ceil(Fraction(str(q)) * len(values))) - 1]
    reported = samples.latency(values).percentile(q)
    assert oracle <= reported <= max(values)
    assert samples.hdr_bounds(reported) == samples.hdr_bounds(oracle)


def test_of_nothing_there_is_no_percentile() -> None:
    assert Latency().percentile(0.5) is None


@pytest.mark.parametrize(("q", "known"), [(0.5, True), (0.9, True), (0.99, False)])
def test_what_was_never_sent_is_slower_than_all(q: float, known: bool) -> None:
    """90 of 100 due requests were answered: p90 is the slowest of them, p99 was never sent."""
    overloaded = replace(samples.latency(range(1, 91)), unsent=10)
    assert (overloaded.percentile(q) is not None) is known
    assert overloaded.percentile(0.9) == 90
    assert samples.latency(range(1, 91)).percentile(0.99) == 90


def test_buckets_that_do_not_add_up_are_refused() -> None:
    obj = samples.latency([5, 6]).to_json()
    with pytest.raises(ValueError, match=r"^the buckets do not add up to the count$"):
        Latency.from_json({**obj, "count": 3})
    assert Latency.from_json(obj, unsent=3).unsent == 3


def test_result_round_trip(tmp_path: Path) -> None:
    original = samples.three_targets()
    outputs.save(original, tmp_path / "r.json")
    again = load(tmp_path / "r.json")
    assert again.to_json() == original.to_json()
    assert [run.kernel for run in again.runs] == [run.kernel for run in original.runs]
    assert again.interrupted is original.interrupted is False


def test_result_json() -> None:
    obj = samples.three_targets().to_json()
    assert (obj["schema"], obj["kind"], obj["baseline"]) == (1, "bench", "slow")
    assert [target["target"] for target in obj["targets"]] == ["slow", "fast", "127.0.0.1:7"]
    assert [run["repeat"] for run in obj["runs"]] == [0, 0, 0, 1, 1, 1]
    assert obj["targets"][1]["latency_ns"]["count"] == 200
    assert obj["targets"][0]["ratio_p50"] == 1


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", "not JSON"),
        ("[]", "not a result of kecho-ctl bench"),
        ("{}", "not a result of kecho-ctl bench"),
        ('{"kind": "bench", "schema": 2}', "schema 2, this version reads 1"),
        ('{"kind": "bench", "schema": 1}', "host is missing"),
        ('{"kind": "bench", "schema": 1, "host": {"a": 1}}', "host.hostname is missing"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_load_refuses(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(KechoError, match=line) as caught:
        load(tmp_path / "r.json")
    assert "\n" not in str(caught.value)
    assert "r.json" in str(caught.value)


def places(obj: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to each value of an object; of a list, to the first."""
    found = obj.items() if isinstance(obj, dict) else enumerate(obj[:1]) if isinstance(obj, list) else ()
    for key, value in found:
        yield (*where, key)
        yield from places(value, (*where, key))


_GONE = object()


@pytest.mark.parametrize("damage", [_GONE, None, "x", -1, math.inf, [], {}, True, [[1]]], ids=repr)
def test_whatever_is_damaged_is_one_line_or_no_matter(tmp_path: Path, damage: object) -> None:
    whole = samples.three_targets().to_json()
    file = tmp_path / "damaged.json"
    refused = 0
    for *way, last in places({key: value for key, value in whole.items() if key != "targets"}):
        obj = copy.deepcopy(whole)
        at: Any = functools.reduce(operator.getitem, way, obj)
        at[last] = damage
        if damage is _GONE:
            del at[last]
        file.write_text(json.dumps(obj))
        try:
            result = load(file)
        except KechoError as e:
            assert str(e).startswith(f"{file}: ") and "\n" not in str(e)
            refused += 1
        else:
            assert bench_table(result) and result.to_json()
    assert refused >= 20


@pytest.mark.parametrize("name", ["connections", "threads", "size_bytes"])
def test_a_load_of_nothing_is_refused(tmp_path: Path, name: str) -> None:
    """A picture has it on a log axis."""
    obj = samples.three_targets().to_json()
    obj["runs"][0]["options"] = {**samples.OPTIONS, name: 0}
    (tmp_path / "r.json").write_text(json.dumps(obj))
    with pytest.raises(KechoError, match=rf"r\.json: a run's options\.{name} is 0$"):
        load(tmp_path / "r.json")


def test_load_of_no_file(tmp_path: Path) -> None:
    with pytest.raises(KechoError, match=r"none\.json: No such file"):
        load(tmp_path / "none.json")


def test_ratios_are_those_of_the_rounds() -> None:
    result = samples.three_targets()
    slow, fast, foreign = (result.compare(target) for target in result.targets)
    assert slow and fast and foreign
    assert slow.p50.value == 1 and slow.p50.interval is None
    assert fast.p50.value == pytest.approx(14490 / 1749, rel=2e-3)
    assert fast.requests_per_s and fast.requests_per_s.value == pytest.approx(14495 / 1749.5, rel=1e-6)
    assert foreign.p50.value < 1


def rounds(name: str, p50s_us: list[int], counts: list[int] | None = None) -> list[Run]:
    """A run for each round, with this median and this number of requests."""
    return [samples.run(name, [us * 1000] * (counts[i] if counts else 10), repeat=i) for i, us in enumerate(p50s_us)]


@pytest.mark.parametrize("counts", [[10] * 10, [6000] * 4 + [1000] * 6, [10] * 4 + [1000] * 6])
def test_every_round_counts_the_same(counts: list[int]) -> None:
    """4 rounds of 10 µs and 6 of 60: p50 is 60 and the ratio 2, however many requests they had (--count)."""
    result = samples.result(*rounds("slow", [120] * 10), *rounds("fast", [10] * 4 + [60] * 6, counts))
    _, fast = result.targets
    assert fast.percentiles["p50"] == pytest.approx(60_000, rel=1e-3)
    comparison = result.compare(fast)
    assert comparison and comparison.p50.interval
    assert comparison.p50.value == pytest.approx(2, rel=2e-3)
    assert comparison.p50.interval.low <= 2 and comparison.p50.interval.high >= 11.9
    obj = result.to_json()["targets"][1]
    assert obj["latency_ns"]["p50"] == fast.percentiles["p50"]
    assert obj["ratio_p50"] == comparison.p50.value


def test_a_result_in_two_modes_says_so_first() -> None:
    result = samples.result(*rounds("slow", [120] * 10), *rounds("fast", [10] * 4 + [60] * 6))
    (said,) = caveats(result)
    assert said.startswith("fast: the p50 of its rounds fall into two groups, 4 at 10.0 µs and 6 at 60.0 µs")
    text = " ".join(bench_table(result, Form(utf8=True)).split())
    assert text.index("two groups") < text.index("target mode path")


def test_a_result_that_scatters_says_so_first() -> None:
    result = samples.result(*rounds("slow", [100, 110, 120, 130, 140, 151]))
    assert caveats(result) == ["slow: the p50 of its rounds scatter from 100 µs to 151 µs"]
    assert caveats(samples.result(*rounds("slow", [100, 101, 104, 102, 100, 103]))) == []


def test_latency_and_throughput_that_disagree_are_noted() -> None:
    """As in a closed loop of 100 connections of which only one at a time has a request in flight."""
    options = {**samples.OPTIONS, "connections": 100}
    slow = samples.run("slow", [20_000_000] * 100, options=options, elapsed_ns=20_000_000)
    for elapsed_ns, disagree in ((6_000_000, True), (14_000, False)):
        fast = samples.run("fast", [14_000] * 100, options=options, elapsed_ns=elapsed_ns)
        result = samples.result(slow, fast)
        assert any("requests a second say 3.3×" in said for said in caveats(result)) is disagree
        assert ("note: fast: p50 says" in bench_table(result, Form(utf8=True))) is disagree
        (obj,) = (target for target in result.to_json()["targets"] if target["target"] == "fast")
        assert obj["ratio_requests_per_s"] == pytest.approx(20_000_000 / elapsed_ns)
    set_rate = {**options, "mode": "open", "rate_per_s": 1000.0}
    runs = [replace(run, options=set_rate, elapsed_ns=10**9) for run in (slow, fast)]
    assert not caveats(samples.result(*runs)), "an open loop's rate is set, not measured"


def test_a_burst_of_before_latency_counted_from_the_release_says_so() -> None:
    options = {**samples.OPTIONS, "mode": "burst", "bursts": 3}
    assert "an older kecho" in caveats(samples.result(samples.run("slow", [5], options=options)))[0]
    new = {**options, "burst_ns": {"min": 1, "p50": 2, "max": 3}}
    result = samples.result(samples.run("slow", [5], options=new))
    assert caveats(result) == [] and result.targets[0].burst_ns == 2
    assert result.to_json()["targets"][0]["burst_ns"] == 2
    assert any(line.split()[-1:] == ["burst"] for line in bench_table(result).splitlines())
    before = {"rounds": 3, "round_ns": {"min": 1, "p50": 2, "max": 3}}
    old = {**samples.OPTIONS, "mode": "burst", **before}
    assert Result.from_json(samples.result(samples.run("slow", [5], options=old)).to_json()).runs == result.runs


def with_more_fields(value: Any) -> Any:
    """A result as a later version may write it: with one more field at every level."""
    if isinstance(value, dict):
        return {**{key: with_more_fields(one) for key, one in value.items()}, "from_the_future": {"a": [1]}}
    return [with_more_fields(one) for one in value] if isinstance(value, list) else value


def test_a_result_with_more_fields_is_read() -> None:
    dropped = samples.run("theirs", [1], listened=ListenCounts(1, 2))
    original = samples.result(*samples.three_targets().runs, dropped)
    obj = with_more_fields(original.to_json())
    for run in obj["runs"]:  # a path more is no field
        (run["kernel"] or {}).pop("from_the_future", None)
    again = Result.from_json(obj)
    assert again.host.cpu == original.host.cpu
    assert [run.latency for run in again.runs] == [run.latency for run in Result.from_json(original.to_json()).runs]
    assert [run.kernel for run in again.runs] == [run.kernel for run in original.runs]
    assert again.runs[-1].listened == ListenCounts(1, 2)


def cpu_time(idle_ns: int, steal_ns: int = 0) -> CpuTime:
    """Of a second on two CPUs, in ticks of 10 ms."""
    return CpuTime(cpus=2, elapsed_ns=10**9, idle_ns=idle_ns, steal_ns=steal_ns, tick_ns=10**7)


def costing(*busy_ns: int, requests: int = 1000, before: CpuTime | None = None) -> Result:
    """A baseline and a target for which the machine was busy so long in each of six rounds."""
    return samples.result(
        *(
            samples.run(f"t{i}", [1000] * requests, repeat=repeat, cpu=cpu_time(2 * 10**9 - ns), cpu_before=before)
            for repeat in range(MIN_ROUNDS)
            for i, ns in enumerate(busy_ns)
        ),
        baseline="t0",
    )


def test_cpu_time_a_request_and_how_many_times_less() -> None:
    result = costing(1_600_000_000, 400_000_000)
    base, target = result.targets
    assert (base.cpu_ns, target.cpu_ns) == (1_600_000, 400_000)
    comparison = result.compare(target)
    assert comparison and comparison.cpu and comparison.cpu.value == 4
    assert comparison.cpu.interval == pytest.approx((1580 / 420, 1620 / 380)), "two ticks at each end"
    obj = result.to_json()["targets"][1]
    assert (obj["cpu_ns_per_request"], obj["ratio_cpu"]) == (400_000, 4)
    assert obj["ratio_cpu_interval"] == list(comparison.cpu.interval)
    assert Result.from_json(result.to_json()).runs == result.runs
    (row,) = (line for line in bench_table(result).splitlines() if line.startswith("t1") and "3.76" in line)
    assert row.split()[-6:] == ["4.00×", "3.76", "–", "4.26", "6", "undecided"]


@pytest.mark.parametrize("busy_ns", [0, 20_000_000])
def test_what_ticks_cannot_tell_is_no_cpu_time(busy_ns: int) -> None:
    result = costing(1_000_000_000, busy_ns)
    comparison = result.compare(result.targets[1])
    assert comparison and comparison.cpu is None and comparison.p50
    assert result.to_json()["runs"][1]["cpu_ns_per_request"] is None


def test_cpu_time_of_the_processes_alone() -> None:
    """A server that is not ours has none; its client has."""
    own = (CpuTime(2, 10**9, 0, 0, 10**7, 30_000, 50_000), CpuTime(2, 10**9, 0, 0, 10**7, 40_000))
    runs = [samples.run(f"t{i}", [1000] * 10, repeat=n, cpu=own[i]) for n in range(MIN_ROUNDS) for i in (0, 1)]
    result = samples.result(*runs, baseline="t0")
    assert [run.own_cpu_ns for run in result.runs[:2]] == [8000, 4000]
    comparison = result.compare(result.targets[1])
    assert comparison and comparison.own_cpu and comparison.own_cpu.value == 2
    assert result.to_json()["targets"][1]["ratio_own_cpu_interval"] == [2, 2]
    assert Result.from_json(result.to_json()).runs == result.runs


def test_a_result_without_cpu_time_is_read_and_has_no_column_for_it() -> None:
    old = samples.three_targets()
    assert Result.from_json(old.to_json()).targets[0].cpu_ns is None
    assert "CPU/request" not in bench_table(old)


@pytest.mark.parametrize(("idle_ns", "noted"), [(2 * 10**9, False), (1_760_000_000, False), (1_250_000_000, True)])
def test_other_work_is_told_first(idle_ns: int, noted: bool) -> None:
    said = caveats(costing(10**9, 10**9, before=cpu_time(idle_ns)))
    assert [one.partition(":")[0] for one in said] == ["other work kept 0.8 of 2 CPUs busy before the runs"] * noted


def test_time_that_the_host_took_is_told_first() -> None:
    runs = [samples.run("t0", [1000], cpu=cpu_time(10**9, steal_ns)) for steal_ns in (40_000_000, 80_000_000)]
    (said,) = caveats(samples.result(*runs, baseline="t0"))
    assert said == "the host of this virtual machine took 6% of its busy CPU time for others (steal)"
    assert not caveats(samples.result(runs[0], baseline="t0"))


def test_what_listeners_dropped_is_kept_and_told() -> None:
    dropped, quiet = (samples.run("theirs", [1], listened=ListenCounts(n // 2, n)) for n in (2, 0))
    result = samples.result(dropped, quiet)
    assert [run["listen"] for run in result.to_json()["runs"]] == [{"overflows": n // 2, "drops": n} for n in (2, 0)]
    assert Result.from_json(result.to_json()).runs == result.runs
    (note,) = notes(result)
    assert note.startswith("theirs: 2 requests for a connection found a full queue")


def test_ratio_without_the_baseline_is_none() -> None:
    result = samples.result(samples.run("fast", [1]), baseline="gone")
    assert result.compare(result.targets[0]) is None


def test_paths_and_kernel_counts_of_a_target() -> None:
    _, fast, foreign = samples.three_targets().targets
    assert (fast.path, foreign.path) == ("egress", "")
    assert fast.kernel is not None
    assert fast.kernel["egress"].echoes == 200
    assert fast.kernel["egress"].latency is not None
    assert fast.kernel["egress"].latency.count == 200
    assert foreign.kernel is None


@pytest.mark.parametrize(
    ("counted_bytes", "options", "note"),
    [
        (640, {}, ""),
        (639, {}, "counted 1 bytes less"),
        (704, {}, ""),  # a request was in flight at the end of the warm-up
        (705, {}, "counted 65 bytes more"),
        (6400, {"warmup_s": 0.2}, ""),
        (639, {"warmup_s": 0.2}, "counted 1 bytes less"),
        (640, {"warmup_s": 0.2, "held": True}, ""),
        (704, {"warmup_s": 0.2, "held": True}, ""),
        (705, {"warmup_s": 0.2, "held": True}, "counted 65 bytes more"),
        (640 + 4 * 64, {"depth": 4}, ""),  # and so many are in flight on a connection
        (640 + 4 * 64 + 1, {"depth": 4}, "counted 257 bytes more"),
        (640 + 12 * 64, {"depth": 4, "connections": 3}, ""),
    ],
)
def test_counts_that_disagree_are_noted(counted_bytes: int, options: dict[str, Any], note: str) -> None:
    kernel = {"egress": PathStats(9, counted_bytes - 64), "user": PathStats(1, 64)}
    run = samples.run("fast", [1000] * 10, kernel=kernel, options={**samples.OPTIONS, **options})
    assert note in mismatch(run)
    assert bool(note) is bool(mismatch(run))
    assert (note in " ".join(notes(samples.result(run)))) if note else not notes(samples.result(run))


def test_figures_of_an_emulated_machine_are_noted() -> None:
    there = replace(samples.three_targets(), host=Host("vm", "6.1.0-56-amd64", "QEMU TCG CPU version 2.5+", 2))
    (note,) = (note for note in notes(there) if "emulated" in note)
    assert "6.1.0-56-amd64" in note
    assert not any("emulated" in note for note in notes(samples.three_targets()))


# --- the table ------------------------------------------------------------------------------------------------------


def test_table() -> None:
    lines = bench_table(samples.three_targets(), Form(100, utf8=True)).splitlines()
    assert lines[0].startswith("closed loop: 1 connection  1 thread  64 B  client on CPU 1  2 interleaved runs each")
    head = next(i for i, line in enumerate(lines) if line.startswith("target"))
    percentiles = ["p50", "p90", "p99", "p99.9", "max"]
    rates = ["requests/s", "MB/s", "ratio"]
    assert lines[head].split() == ["target", "mode", "path", *percentiles, "p50", "ratio", *rates]
    assert [line.split()[0] for line in lines[head + 1 : head + 4]] == ["slow", "fast", "127.0.0.1:7"]
    assert len({len(line) for line in lines[head : head + 4]}) == 1
    fast = lines[head + 2].split()
    assert fast[1:4] == ["sockmap", "egress", "1.75µs"]
    assert fast[-4:] == ["8.3×", "571,592", "36.6", "8.3×"]
    assert lines[head + 3].split()[1:3] == ["-", "-"]


@pytest.mark.parametrize("width", [70, 80, 100, 200])
@pytest.mark.parametrize("loads", [((1, 64),), ((1, 64), (15_000, 1 << 20))], ids=["one load", "sweep"])
def test_nothing_is_wider_than_the_terminal(width: int, loads: tuple[tuple[int, int], ...]) -> None:
    """Columns give way, names last, and the figures that matter most never."""
    result = compared(10_000, 5_000_000, rounds=MIN_ROUNDS, loads=loads)
    counted = {"egress": PathStats(10**9, 10**12, 10**9, Histogram.of([10**6] * 9)), "idle": PathStats()}
    runs = [replace(run, target=f"a-service-whose-name-is-long-{run.target}", kernel=counted) for run in result.runs]
    result = replace(result, runs=tuple(runs), baseline="a-service-whose-name-is-long-t0")
    narrow, wide = (bench_table(result, Form(width, utf8=True, wide=wide)) for wide in (False, True))
    assert max(map(len, narrow.splitlines())) <= width
    for title in ("p50", "p99", "p50 ratio", "requests/s"):
        assert title in narrow
    for title in ("p90", "mode", "p99.9", "fallbacks"):
        assert title in wide
        assert (title in narrow) == (width == 200), title


def test_table_of_inside_and_outside() -> None:
    text = bench_table(samples.three_targets(), Form(utf8=True))
    inside = text[text.index("client\n", text.index("counted by the services")) :].partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in inside[1:]] == ["target", "slow", "fast"]
    assert inside[1].replace("e p", "e_p").split() == [
        *("target", "path", "inside_p50", "outside_p50", "inside_p99", "outside_p99", "echoes", "bytes", "fallbacks"),
    ]
    assert inside[2].split() == ["slow", "user", "-", "14.5µs", "-", "15.0µs", "200", "12,800", "0"]
    fast = inside[3].split()
    assert fast[1:2] + fast[3:4] + fast[5:] == ["egress", "1.75µs", "1.80µs", "200", "12,800", "0"]
    assert 0.8 <= float(fast[2].removesuffix("ns")) / 875 <= 1.1
    assert "idle" not in text


def compared(*medians_ns: int, rounds: int, loads: tuple[tuple[int, int], ...] = ((1, 64),)) -> Result:
    """Targets t0, t1, … of known medians, the first the baseline, with as many rounds under each load."""
    runs = [
        samples.run(
            f"t{i}",
            [ns * connections * size // 64 + 10 * repeat for _ in range(20)],
            repeat=repeat,
            options={**samples.OPTIONS, "connections": connections, "size_bytes": size},
        )
        for connections, size in loads
        for repeat in range(rounds)
        for i, ns in enumerate(medians_ns)
    ]
    return samples.result(*runs, baseline="t0")


def test_what_the_interval_supports_is_called_a_difference_and_nothing_else() -> None:
    result = compared(10_000, 5_000, 20_000, 10_004, rounds=MIN_ROUNDS)
    found = {target.name: result.compare(target) for target in result.targets}
    verdicts = {name: comparison.verdict for name, comparison in found.items() if comparison}
    assert verdicts == {"t0": "", "t1": "faster", "t2": "slower", "t3": "undecided"}
    obj = {target["target"]: target for target in result.to_json()["targets"]}
    assert obj["t1"]["ratio_p50_interval"][0] <= obj["t1"]["ratio_p50"] <= obj["t1"]["ratio_p50_interval"][1]
    assert [obj[name]["verdict"] for name in sorted(obj)] == [None, "faster", "slower", "undecided"]
    assert (obj["t0"]["ratio_p50"], obj["t0"]["ratio_p50_interval"]) == (1, None)
    table = bench_table(result, Form(utf8=True))
    section = table[table.index("against t0, round by round") :].splitlines()
    assert [line.split()[0] for line in section[2:5]] == ["t1", "t2", "t3"]
    assert [line.split()[-1] for line in section[2:5]] == ["faster", "slower", "undecided"]
    assert section[2].split()[1] == "2.00×"
    assert "note:" not in table


def test_too_few_rounds_support_nothing() -> None:
    result = compared(10_000, 5_000, rounds=MIN_ROUNDS - 1)
    comparison = result.compare(result.targets[1])
    assert comparison is not None
    assert (comparison.p50.interval, comparison.verdict, comparison.rounds) == (None, "", MIN_ROUNDS - 1)
    table = bench_table(result, Form(utf8=True))
    assert "faster" not in table and "intervals" not in table
    assert f"--repeat {MIN_ROUNDS} or more" in " ".join(table.split())


def test_a_round_that_one_of_them_missed_does_not_count() -> None:
    """As after Ctrl-C: of the last round only the first target was measured."""
    result = compared(10_000, 5_000, rounds=MIN_ROUNDS)
    cut = replace(result, runs=result.runs[:-1])
    comparison = cut.compare(cut.targets[1])
    assert comparison is not None
    assert (comparison.rounds, comparison.p50.interval) == (MIN_ROUNDS - 1, None)


def test_a_sweep_compares_under_the_same_load() -> None:
    loads = ((1, 64), (10, 64), (1, 1024))
    result = compared(10_000, 5_000, rounds=2, loads=loads)
    assert [(load.connections, load.size_bytes) for load in result.loads()] == list(loads)
    targets_ = result.targets
    assert [(t.load.connections, t.load.size_bytes, t.name) for t in targets_] == [
        (*load, name) for load in loads for name in ("t0", "t1")
    ]
    assert [t.requests for t in targets_] == [40] * 6
    for target in targets_[1::2]:
        assert (comparison := result.compare(target)) and comparison.p50.value == pytest.approx(2, rel=0.01)
    lines = bench_table(result, Form(utf8=True)).splitlines()
    assert lines[0].startswith("closed loop: 1, 10 connections  1 thread  64, 1,024 B")
    head = next(i for i, line in enumerate(lines) if "target" in line)
    assert lines[head].split()[:3] == ["conns", "size", "target"]
    assert [line.split()[:3] for line in lines[head + 1 : head + 7]] == [
        [f"{connections}", f"{size:,}", name] for connections, size in loads for name in ("t0", "t1")
    ]


def test_every_row_of_a_sweep_of_rates_says_which_it_is() -> None:
    """In all tables, however narrow."""
    runs = [
        samples.run(name, [ns + i for i in range(9)], mode=mode, path="p", repeat=repeat, options=options)
        for rate in (10_000.0, 20_000.0)
        for options in ({**samples.OPTIONS, "mode": "open", "rate_per_s": rate},)
        for repeat in range(MIN_ROUNDS)
        for name, ns, mode in (("base", 9000, "user"), ("fast", 3000, "sockmap"))
    ]
    text = bench_table(samples.result(*runs, baseline="base"), Form(80, wide=False, utf8=True))
    rows = [line.split()[:4] for line in text.splitlines() if line.split()[3:4] in (["base"], ["fast"])]
    each = [["1", "64", rate, name] for rate in ("10,000", "20,000") for name in ("base", "fast")]
    assert rows == [*each, each[1], each[3], *each], text


def test_what_was_left_out_is_told() -> None:
    result = replace(compared(10_000, rounds=1), left_out={"module": "this kernel cannot load modules"})
    assert "note: module is left out: this kernel cannot load modules\n" in bench_table(result)
    assert result.to_json()["left_out"] == {"module": "this kernel cannot load modules"}
    assert Result.from_json(result.to_json()).left_out == result.left_out


def test_a_result_of_before_there_was_left_out_is_read() -> None:
    obj = samples.three_targets().to_json()
    for name in ("left_out", "failed", "order"):
        del obj[name]
    for name in ("governor", "mitigations", "sysctls", "versions"):
        del obj["host"][name]
    again = Result.from_json(obj)
    assert again.left_out == again.host.sysctls == {}


@pytest.mark.parametrize(("mean_ns", "noted"), [(10, False), (240, False), (260, True), (10**9, True)])
def test_requests_that_are_sent_late_are_noted(mean_ns: int, noted: bool) -> None:
    """And what was offered stands beside what was achieved."""
    late = {"mode": "open", "rate_per_s": 2e6, "unsent": 0, "late_ns": {"mean": mean_ns, "max": mean_ns}}
    result = samples.result(samples.run("s", [1000] * 9, options={**samples.OPTIONS, **late}), baseline="s")
    assert any("after they were due" in note for note in notes(result)) is noted
    text = bench_table(result, Form(utf8=True))
    assert "offered/s  requests/s" in text and " 2,000,000  " in text


def test_host_is_this_machine() -> None:
    host = Host.this()
    assert host.kernel == Path("/proc/sys/kernel/osrelease").read_text().strip()
    assert host.cpus == len(os.sched_getaffinity(0))
    assert host.sysctls["net.core.somaxconn"] == Path("/proc/sys/net/core/somaxconn").read_text().strip()
    ports = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    assert host.sysctls["net.ipv4.ip_local_port_range"].split() == ports
    assert host.versions["python"] == ".".join(map(str, sys.version_info[:3]))
    for file in Path("/sys/devices/system/cpu/vulnerabilities").iterdir():
        assert host.mitigations[file.name] == " ".join(file.read_text().split())


def test_compiler_of_a_program(native: None, tmp_path: Path) -> None:
    said = subprocess.run(["gcc", "--version"], capture_output=True, text=True, check=True).stdout
    assert compiler(programs.find("bench")).split()[-1] in said
    (tmp_path / "none").write_bytes(b"\x7fELF without that section")
    assert compiler(tmp_path / "none") == ""


def test_table_says_what_went_wrong() -> None:
    run = samples.run("fast", [1000], why="no counts of the service: it was reset or started anew meanwhile")
    text = bench_table(samples.result(run, interrupted=True), Form(60, utf8=False))
    assert "note: interrupted" in text
    assert "note: fast: no counts of the service" in text
    assert text.isascii()


# --- options and targets --------------------------------------------------------------------------------------------


def parse(*words: str) -> argparse.Namespace:
    parser = Parser(prog="kecho-ctl bench")
    command.add(parser)
    return parser.parse_args(words)


def test_defaults() -> None:
    (options,) = command.sweep_of(parse())
    assert (options.most_open, options.size_bytes, options.duration_s, options.count) == (1, 64, 2.0, None)
    assert options.cpus == str(max(os.sched_getaffinity(0)))


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (["--count", "7", "--cpus", "none"], "--threads 1 --size 64 --count 7 --warmup 0.2 --look 0.1 --seed 1"),
        (["--burst", "50"], "--threads 1 --size 64 --look 0.1 --burst 50 --seed 1"),
        (
            ["--burst", "50", "--bursts", "3", "--seed", "9"],
            "--threads 1 --size 64 --look 0.1 --burst 50 --bursts 3 --seed 9",
        ),
        (
            ["--connections", "10", "--threads", "2", "--size", "1K", "--duration", "1.5", "--warmup", "0"],
            "--connections 10 --threads 2 --size 1024 --duration 1.5 --warmup 0.0 --look 0.1 --seed 1",
        ),
        (
            ["--connections", "4", "--cpus", "0-1", "--count", "8", "--warmup", "1"],
            "--connections 4 --threads 1 --size 64 --count 8 --warmup 1.0 --look 0.1 --cpus 0-1 --seed 1",
        ),
        (
            ["--rate", "5e3", "--count", "7", "--cpus", "none", "--connect-timeout", "1", "--io-timeout", "2"],
            "--threads 1 --size 64 --count 7 --warmup 0.2 --look 0.1 --rate 5000.0"
            " --connect-timeout 1.0 --io-timeout 2.0 --seed 1",
        ),
        (
            ["--crr", "--count", "7", "--cpus", "0"],
            "--threads 1 --size 64 --count 7 --warmup 0.2 --look 0.1 --cpus 0 --seed 1 --crr",
        ),
        (
            ["--depth", "8", "--count", "7", "--cpus", "none"],
            "--threads 1 --size 64 --count 7 --warmup 0.2 --look 0.1 --depth 8 --seed 1",
        ),
    ],
)
def test_arguments_of_the_load_generator(words: list[str], arguments: str) -> None:
    assert command.sweep_of(parse(*words))[0].arguments() == arguments.split()


@pytest.mark.parametrize(
    ("text", "rate"), [("10k", 1e4), ("2.5K", 2500), ("1M", 1e6), (".5", 0.5), ("100M", 1e8), ("1234567", 1234567)]
)
def test_a_rate_takes_suffixes(text: str, rate: float) -> None:
    (options,) = command.sweep_of(parse("bench", f"--rate={text}"))
    assert options.rate_per_s == rate


@pytest.mark.parametrize(
    ("words", "json_to", "targets_"),
    [
        (["--json"], "-", []),
        (["--json", "kecho"], "-", ["kecho"]),
        (["kecho", "--json"], "-", ["kecho"]),
        (["--json=r.json", "kecho"], "r.json", ["kecho"]),
        (["kecho"], None, ["kecho"]),
    ],
)
def test_the_word_after_json_is_a_target(
    words: list[str], json_to: str | None, targets_: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    args = parse(*words)
    assert (args.json, args.targets) == (json_to, targets_)


def test_a_sweep_is_every_size_with_every_number_of_connections() -> None:
    sweep = command.sweep_of(parse("--connections", "1,10,100", "--size", "64,1K", "--count", "5"))
    assert [(options.connections, options.size_bytes) for options in sweep] == [
        (connections, size) for size in (64, 1024) for connections in (1, 10, 100)
    ]
    assert {options.cpus for options in sweep} == {None}  # the same everywhere, or they would not be comparable
    threads = command.sweep_of(parse("--connections", "1,2,10", "--threads", "4"))
    assert [options.threads for options in threads] == [1, 2, 4]
    sizes = command.sweep_of(parse("--size", "64,1K"))
    assert {options.cpus for options in sizes} == {str(max(os.sched_getaffinity(0)))}


def test_compare_has_more_and_shorter_rounds() -> None:
    (options,) = command.sweep_of(parse("--compare", "user,sockmap"))
    assert options.duration_s == command.COMPARE_DURATION_S < command.DEFAULT_DURATION_S
    assert command.COMPARE_REPEATS >= MIN_ROUNDS


@pytest.mark.parametrize(
    "words",
    [
        ["--plot", "x"],
        ["--plot", "x.txt"],
        ["--plot", "/no/such/folder/x.png"],
        ["--csv", "/"],
        ["--json=/proc/kecho.json"],
        ["--csv", ""],
        ["--json=/no/such/folder/x.json"],
        ["--rate", "0"],
        ["--rate", "nan"],
        ["--rate", "5", "--crr"],
        ["--depth", "5", "--burst", "5"],
        ["--connections", "1,1"],
        ["--connections", "1,,2"],
        ["--size", "64,1G"],
        ["--compare", "user,quantum"],
        ["--compare", ""],
        ["--compare", "user,user"],
        ["--compare", "module,module:workqueue"],
        ["--connections", "0"],
        ["--connections", "x"],
        ["--size", "1G"],
        ["--size", "K"],
        ["--count", "-1"],
        ["--count", "5", "--duration", "1"],
        ["--duration", "nan"],
        ["--warmup", "-1"],
        ["--repeat", "0"],
    ],
)
def test_bad_options_exit_2(words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        parse(*words)
    assert str(caught.value).startswith("argument --") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--bursts", "3"], "--bursts goes with --burst"),
        (["--burst", "3", "--count", "5"], "--burst has --bursts, and neither --count"),
        (["--burst", "3", "--warmup", "1"], "--burst has --bursts, and neither --count, --duration nor --warmup"),
        (["--burst", "3", "--connections", "1,2"], "--burst has its own number of connections"),
        (["--threads", "2"], r"--threads 2 is more than there are connections \(1\)"),
        (["--compare", "user", "--connections", "1,20000"], "--connections must be a whole number from 1 to 15000"),
        (["--delay", "1"], "--delay is for --topology veth"),
    ],
)
def test_options_that_exclude_each_other(words: list[str], line: str) -> None:
    with pytest.raises(UsageError, match=line):
        command.plan_of(parse(*words))


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("127.0.0.1:80", "127.0.0.1", 80), ("[::1]:7", "::1", 7)],
)
def test_address(text: str, host: str, port: int) -> None:
    (target,) = targets.choose([text])
    assert (target.name, target.host, target.port, target.mode) == (text, host, port, "")
    assert target.endpoint == text


@pytest.mark.parametrize("text", ["::1:7", "127.0.0.1:", ":80", "127.0.0.1:0", "127.0.0.1:65536", "[::1]:x", "[]:1"])
def test_bad_address(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        targets.choose([text])
    assert str(caught.value).startswith(f"{text}: ")


def test_target_named_twice() -> None:
    with pytest.raises(UsageError, match="named twice"):
        targets.choose(["127.0.0.1:80", "127.0.0.1:80"])


@pytest.mark.parametrize(
    ("binds", "host"),
    [
        (["127.0.0.1", "::1"], "127.0.0.1"),
        (["::1"], "::1"),
        (["0.0.0.0"], "127.0.0.1"),
        (["::"], "::1"),
        (["::1", "10.1.2.3"], "10.1.2.3"),
    ],
)
def test_where_a_service_is_reached(binds: list[str], host: str) -> None:
    assert targets.reachable(binds) == host


def test_rounds_are_interleaved_load_by_load() -> None:
    plan = Plan((runner.RunOptions(connections=1), runner.RunOptions(connections=5)), repeats=3)
    made = list(steps(plan, targets.choose(["127.0.0.1:1", "127.0.0.1:2"])))
    rounds_ = [(step.options.connections, step.repeat) for step in made]
    assert rounds_ == [(connections, repeat) for connections in (1, 5) for repeat in range(3) for _ in range(2)]
    assert [step.number for step in made] == list(range(12))
    assert {step.total for step in made} == {12}
    assert [step.ends_round for step in made] == [False, True] * 6


def test_the_order_in_a_round_is_drawn_by_the_seed() -> None:
    """Each round measures each target once, and no target always comes after the same other one."""

    def orders(seed: int) -> list[tuple[int, ...]]:
        chosen = targets.choose([f"127.0.0.1:{port}" for port in (1, 2, 3)])
        made = list(steps(Plan((runner.RunOptions(),), repeats=20, seed=seed), chosen))
        return [tuple(step.target.port for step in made[i : i + 3]) for i in range(0, 60, 3)]

    assert orders(1) == orders(1) != orders(2)
    assert {tuple(sorted(order)) for order in orders(1)} == {(1, 2, 3)}
    assert len(set(orders(1))) >= 5


def test_a_table_has_the_targets_as_they_were_named() -> None:
    runs = [samples.run(name, [5], repeat=0) for name in ("c", "a", "b")]
    result = replace(samples.result(*runs, baseline="b"), order=("a", "b", "c"))
    assert [target.name for target in result.targets] == ["b", "a", "c"]
    assert [target.name for target in Result.from_json(result.to_json()).targets] == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("options", "done"),
    [
        (runner.RunOptions(count=100), 0.5),
        (runner.RunOptions(burst=10), 0.5),
        (runner.RunOptions(burst=10, bursts=5), 1.0),
        (runner.RunOptions(duration_s=3.0, warmup_s=1.0), 0.25),
        (runner.RunOptions(duration_s=0.0), 1.0),
    ],
)
def test_progress_share(options: runner.RunOptions, done: float) -> None:
    assert progress.share(runner.Progress("run", 1.0, 1, 50), options) == done


def test_rate_is_that_between_two_progresses() -> None:
    before, now = (runner.Progress("run", *at) for at in ((1.0, 1, 100), (1.2, 1, 300)))
    assert progress.rate(before, now) == pytest.approx(1000)
    assert progress.rate(now, now) == 0


@pytest.mark.parametrize("line", ["", "bench: no", "{}", '{"progress": 1}', '{"progress": {"phase": "run"}}', "[1]"])
def test_lines_that_are_no_progress(line: str) -> None:
    assert runner.parse_progress(line) is None


# --- the native programs --------------------------------------------------------------------------------------------


def test_find_prefers_what_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bench"
    program.write_text("#!/bin/sh\n")
    monkeypatch.setenv("KECHO_LIBEXEC", str(tmp_path))
    monkeypatch.setattr(programs, "CHECKOUT", tmp_path / "checkout")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "none"))
    with pytest.raises(Unavailable, match=r"bench is not installed, .*: make install"):
        programs.find("bench")
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout/Makefile").touch()
    with pytest.raises(Unavailable, match="bench is not built: make"):
        programs.find("bench")
    program.chmod(0o755)
    assert programs.find("bench") == program


def fake_bench(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    (folder / "bench").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "bench").chmod(0o755)
    monkeypatch.setenv("KECHO_LIBEXEC", str(folder))


@pytest.mark.parametrize(
    ("script", "error", "line"),
    [
        (
            "echo 'bench: connection 3 offset 7: expected 1, found 2' >&2; exit 1",
            KechoError,
            "connection 3 offset 7: expected",
        ),
        ("echo 'bench: --size is odd' >&2; exit 2", UsageError, "--size is odd"),
        ("exit 1", KechoError, "bench failed with exit status 1"),
        ("kill -9 $$", KechoError, "bench was ended by SIGKILL"),
        ("echo nonsense", KechoError, "bench printed no result"),
        ("true", KechoError, "bench printed no result"),
    ],
)
def test_failures_of_the_load_generator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, error: type[KechoError], line: str
) -> None:
    fake_bench(tmp_path, monkeypatch, script)
    with pytest.raises(error) as caught:
        runner.run_bench("127.0.0.1", 1, runner.RunOptions())
    assert type(caught.value) is error
    assert one_line(caught.value).startswith(line)


@pytest.fixture(scope="session")
def native() -> Iterator[None]:
    """The real programs, built where that is possible."""
    if (CHECKOUT / "kecho/native/native.mk").exists():
        subprocess.run(["make", "-s", "-f", "kecho/native/native.mk"], cwd=CHECKOUT, check=True)
    try:
        programs.find("bench")
    except Unavailable as e:
        pytest.skip(str(e))
    yield


def serve(listener: socket.socket, spoil: bool) -> None:
    """Echoes one connection after another until the listener is closed; spoils the first byte of every reply."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            while data := connection.recv(1 << 16):
                connection.sendall(bytes([data[0] ^ spoil]) + data[1:])


@pytest.fixture
def echo_server(request: pytest.FixtureRequest, native: None) -> Iterator[int]:
    """The port of an echo server in this process; with the parameter True, of one that spoils a byte."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener, getattr(request, "param", False)), daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def test_exact_count(echo_server: int) -> None:
    seen: list[runner.Progress] = []
    measured = runner.run_bench("127.0.0.1", echo_server, runner.RunOptions(count=10_007, size_bytes=3), seen.append)
    assert measured.latency.count == 10_007
    assert not measured.interrupted
    assert measured.options["size_bytes"] == 3
    assert "requests" not in measured.options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (runner.RunOptions(count=300, rate_per_s=20_001.5), "open loop at 20,001.5/s: 1 connection"),
        (runner.RunOptions(count=300, crr=True), "connect-request-response: 1 connection"),
        (runner.RunOptions(count=300, depth=4), "pipelined, 4 deep: 1 connection"),
        (runner.RunOptions(burst=1, bursts=300), "burst: 1 connection"),
    ],
)
def test_every_way_to_load_a_server(echo_server: int, options: runner.RunOptions, said: str) -> None:
    where = targets.Target("s", "127.0.0.1", echo_server)
    result = samples.result(make_run(Step(where, options, 0, 0, 1)))
    assert headline(result)[0] == said
    assert result.targets[0].requests == 300
    assert headline(Result.from_json(result.to_json())) == headline(result)


def test_a_rate_that_is_too_high_is_noted() -> None:
    options = {**samples.OPTIONS, "mode": "open", "rate_per_s": 1e6, "unsent": 1234}
    obj = samples.result(samples.run("s", [1000], repeat=2, options=options)).to_json()
    result = Result.from_json(obj)
    assert notes(result)[0].startswith("s: 1,234 requests never sent, in 1 of 1 round: the rate is too high")
    assert set(result.targets[0].percentiles.values()) == {None}
    assert result.to_json()["targets"][0]["latency_ns"]["p50"] is None
    (row,) = (line for line in bench_table(result).splitlines() if line.startswith("s "))
    assert row.split()[3:7] == ["-"] * 4


def test_percentiles_are_those_that_bench_prints(echo_server: int) -> None:
    where = ["--host", "127.0.0.1", "--port", str(echo_server), "--count", "2000", "--json"]
    printed = json.loads(subprocess.run([programs.find("bench"), *where], capture_output=True, check=True).stdout)
    assert Latency.from_json(printed["latency_ns"]).to_json() == printed["latency_ns"]


@pytest.mark.parametrize("echo_server", [True], indirect=True)
def test_a_mismatch_names_the_target(echo_server: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KechoError) as caught:
        command.run(parse(f"127.0.0.1:{echo_server}", "--count", "10"))
    assert caught.value.exit_code == 1
    assert f"127.0.0.1:{echo_server}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_every_address_of_a_name_is_tried(echo_server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with two addresses, of which nothing listens on the first."""
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, echo_server)) for address in ("127.0.0.2", "127.0.0.1")
    ]
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **more: found if host == "somewhere" else real(host, *rest, **more)
    )
    (target,) = targets.choose([f"somewhere:{echo_server}"])
    assert (target.name, target.host) == (f"somewhere:{echo_server}", "127.0.0.1")


def test_a_target_that_fails_does_not_take_the_others_along(
    echo_server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A target answers only twice: its first rounds and all of the other's are kept, and this is reported."""
    monkeypatch.chdir(tmp_path)
    left = 2

    def tires(sock: socket.socket) -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            while data := sock.recv(1 << 16):
                sock.sendall(data)

    with ScriptedServer(tires) as server:
        names = (f"127.0.0.1:{echo_server}", f"127.0.0.1:{server.port}")
        code = command.run(parse(*names, "--count=20", "--warmup=0", "--repeat=4", "--json=out.json"))
    assert code == 1
    result = load("out.json")
    assert [[run.target for run in result.runs].count(name) for name in names] == [4, 2]
    assert list(result.failed) == [names[1]] and "by the server after 0 of 64" in result.failed[names[1]]
    said = capsys.readouterr()
    assert f"{names[1]} failed, and was measured no further" in " ".join(said.out.split())
    assert said.err.count("\n") == 1 and names[1] in said.err


def test_rounds_without_a_request_are_kept_and_told(
    native: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In two of three rounds, the request of the warm-up is answered only after the round."""
    monkeypatch.chdir(tmp_path)
    rounds = 0

    def slow(sock: socket.socket) -> None:
        nonlocal rounds
        rounds += 1
        delay_s = 0.0 if rounds == 2 else 1.0
        while data := sock.recv(1 << 16):
            time.sleep(delay_s)
            sock.sendall(data)

    with ScriptedServer(slow) as server:
        words = (f"127.0.0.1:{server.port}", "--warmup=0.2", "--duration=0.05", "--repeat=3", "--json=out.json")
        assert command.run(parse(*words, "--csv=out.csv")) == 0
    result = load("out.json")
    assert [bool(run.latency.count) for run in result.runs] == [False, True, False]
    (target,) = result.targets
    assert target.percentiles["p50"] is None, "longer in two of three rounds than it was looked at"
    assert target.requests_per_s == 0
    assert 0 < target.min <= target.to_json()["latency_ns"]["mean"] <= target.max
    said = " ".join(capsys.readouterr().out.split())
    assert "no request was answered in 2 of 3 rounds" in said
    with open("out.csv", newline="") as file:
        assert [row["min_ns"] != "" for row in csv.DictReader(file)] == [False, True, False]
    plot = [sys.executable, "-m", "kecho.cli.main", "plot", "out.json", "-o", "out.svg"]
    assert subprocess.run(plot, timeout=60).returncode == 0


def test_each_round_is_saved_when_it_is_over(echo_server: int, tmp_path: Path) -> None:
    """After a kill there is a complete result of the rounds so far."""
    plan = Plan((runner.RunOptions(count=10),), repeats=3, json=str(tmp_path / "r.json"), csv=str(tmp_path / "r.csv"))
    seen = []

    def save(result: Result) -> None:
        outputs.save_all(plan, result)
        seen.append(len(load(tmp_path / "r.json").runs))

    chosen = targets.choose([f"127.0.0.1:{echo_server}"])
    make_all(plan, chosen, samples.result(), lambda *_: None, save)
    assert seen == [1, 2, 3]
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.csv", "r.json"]


def test_an_output_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text("before")
    path.chmod(0o640)

    def breaks(new: Path) -> None:
        new.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(KechoError, match=r"cannot write .*r\.json: No space left on device"):
        outputs.replace(str(path), breaks)
    assert path.read_text() == "before"
    outputs.replace(str(path), lambda new: new.write_text("after") and None)
    assert path.read_text() == "after" and path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]
    (tmp_path / "link").symlink_to(path)
    outputs.replace(str(tmp_path / "link"), lambda new: new.write_text("through") and None)
    assert (tmp_path / "link").is_symlink() and path.read_text() == "through"
    outputs.replace("/dev/null", lambda new: new.write_text("gone") and None)
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("stderr", ["", "2>&-"], ids=["measures", "winds-up"])
def test_a_second_ctrl_c_ends_the_load_generator(tmp_path: Path, stderr: str) -> None:
    """A load generator that does not stop when asked: while it measures, or when it has printed all and is ending."""
    (tmp_path / "bench").write_text(
        f"#!/bin/sh\ntrap '' INT\necho $$ >{tmp_path}/pid.new\nmv {tmp_path}/pid.new {tmp_path}/pid\n"
        f"exec sleep 60 {stderr}\n"
    )
    (tmp_path / "bench").chmod(0o755)
    script = "from kecho.bench import runner; runner.run_bench('127.0.0.1', 1, runner.RunOptions())"
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "KECHO_LIBEXEC": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE) as process:
        try:
            wait_for((tmp_path / "pid").exists, "the load generator")
            child = int((tmp_path / "pid").read_text())
            for _ in range(2):
                process.send_signal(signal.SIGINT)
                time.sleep(0.5)
            process.wait(20)
            assert not Path(f"/proc/{child}").exists()
        finally:
            process.kill()


def test_nobody_there(native: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(KechoError, match=f"127.0.0.1:{port}: Connection refused"):
        command.run(parse(f"127.0.0.1:{port}", "--count", "10"))


def test_json_and_last_and_plot(
    echo_server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    args = [f"127.0.0.1:{echo_server}", "--count", "100", "--warmup", "0", "--repeat", "2", "--plot", "p.png"]
    assert command.run(parse(*args, "--json")) == 0
    printed = json.loads(capsys.readouterr().out)
    result = Result.from_json(printed)
    assert [run.latency.count for run in result.runs] == [100, 100]
    assert load(tmp_path / "results/last.json").to_json() == printed
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert command.run(parse(*args[:-2], "--json=out.json")) == 0
    assert load("out.json").targets[0].requests == 200
    assert "ratio" in capsys.readouterr().out


def test_nothing_is_left_where_nobody_keeps_results(
    echo_server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command.run(parse(f"127.0.0.1:{echo_server}", "--count", "10", "--repeat", "1")) == 0
    assert not list(tmp_path.iterdir())


def test_what_the_service_counted_in_exactly_this_run(echo_server: int) -> None:
    """A service with earlier traffic, whose counts grow by what the client sends."""
    counts = iter([5000, 5000 + 100])

    def snapshot() -> Snapshot:
        n = next(counts)
        return Snapshot(
            "s", "user", echo_server, n, "6.1", Connections(), {"user": PathStats(n, 64 * n, 0, None, "no")}
        )

    where = targets.Target("s", "127.0.0.1", echo_server, "user", snapshot)
    done = make_run(Step(where, runner.RunOptions(count=100, warmup_s=0.0), 0, 0, 1))
    assert done.kernel is not None
    assert done.kernel["user"].echoes == done.latency.count == 100
    assert (done.path, done.why, mismatch(done)) == ("user", "", "")


def test_a_service_that_was_reset_meanwhile_is_noted(echo_server: int) -> None:
    before = Snapshot("s", "user", 1, 1.0, "6.1", Connections(), {"user": PathStats()})
    after = replace(before, paths={"other": PathStats()})
    snapshots = iter([before, after])
    where = targets.Target("s", "127.0.0.1", echo_server, "user", lambda: next(snapshots))
    done = make_run(Step(where, runner.RunOptions(count=10), 0, 0, 1))
    assert done.kernel is None
    assert "reset or started anew" in done.why


def test_ctrl_c_keeps_what_was_measured(native: None, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    measuring = threading.Event()

    def serve(sock: socket.socket) -> None:
        """Without a warm-up, what comes after an answer was received is measured."""
        for number in itertools.count():
            if not (data := sock.recv(1 << 16)):
                return
            sock.sendall(data)
            if number == 100:
                measuring.set()

    with ScriptedServer(serve) as target:
        words = [
            sys.executable,
            "-m",
            "kecho.cli.main",
            "bench",
            f"127.0.0.1:{target.port}",
            "--warmup=0",
            "--duration=600",
        ]
        with subprocess.Popen(
            [*words, "--json"], stdout=subprocess.PIPE, cwd=tmp_path, env=environment, text=True
        ) as process:
            try:
                assert measuring.wait(60)
                process.send_signal(signal.SIGINT)
                out, _ = process.communicate(timeout=60)
            finally:
                process.kill()
    assert process.returncode == command.INTERRUPTED
    result = Result.from_json(json.loads(out))
    assert result.interrupted
    assert len(result.runs) == 1
    assert result.runs[0].latency.count > 0


def test_old_names_of_paths_are_read_as_those_of_today() -> None:
    obj = samples.three_targets().to_json()
    text = json.dumps(obj).replace('"egress"', '"msg"').replace('"fast"', '"sockmap:msg"')
    found = Result.from_json(json.loads(text))
    old = next(run for run in found.runs if run.mode == "sockmap")
    assert (old.target, old.path) == ("sockmap:ingress", "ingress")


def test_an_output_that_fails_meanwhile_loses_nothing(
    echo_server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a disk that is full: the runs go on, the table and the other file are there, and it is an error."""
    monkeypatch.chdir(tmp_path)
    target = f"127.0.0.1:{echo_server}"
    words = (target, "--count=10", "--warmup=0", "--repeat=2", "--json=/dev/full", "--csv=r.csv")
    with pytest.raises(KechoError, match=r"^cannot write /dev/full: No space left on device$"):
        command.run(parse(*words))
    out, err = capsys.readouterr()
    assert target in out and "2 interleaved runs" in " ".join(out.split())
    assert err == "kecho-ctl: cannot write /dev/full: No space left on device; the runs go on\n" * 2
    assert len(Path("r.csv").read_text().splitlines()) == 3


def test_markdown_and_percentiles() -> None:
    form = Form(markdown=True, percentiles={"p50": 0.5, "p99.99": 0.9999}, utf8=True)
    lines = bench_table(samples.three_targets(), form).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert table[0].startswith("| target | mode | path | p50 | p99.99 | max | p50 ratio |")
    assert table[1].startswith("| --- | --- | --- | ---: |")
    assert table[2].startswith("| slow | user | user | 14.5 µs") or table[2].startswith("| slow | user | user | 14.5µs")
    assert len({line.count("|") for line in table[:5]}) == 1
    assert "p90" not in " ".join(lines)
    narrow = bench_table(samples.three_targets(), Form(60, wide=False, percentiles={"p90": 0.9}))
    assert "p90" in narrow, "what was asked for does not give way"


def test_a_sweep_of_rates(echo_server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rate is a load, in the table, the JSON and the picture; each run has files of its own."""
    monkeypatch.chdir(tmp_path)
    target = f"127.0.0.1:{echo_server}"
    words = [
        target,
        "--rate=200,400",
        "--count=20",
        "--warmup=0",
        "--repeat=2",
        "--hdr=hdr",
        "--raw=raw",
        "--plot=x.png",
    ]
    assert command.run(parse(*words, "--json=x.json", "--percentiles=50,99.9")) == 0
    result = load(tmp_path / "x.json")
    assert [one.rate_per_s for one in result.loads()] == [200.0, 400.0]
    assert [one["offered_per_s"] for one in result.to_json()["targets"]] == [200.0, 400.0]
    assert headline(result)[0].startswith("open loop at 200, 400/s: 1 connection")
    names = {f"{target}-1x64B-{rate}-{number}" for rate in (200, 400) for number in (1, 2)}
    assert {path.stem for path in (tmp_path / "hdr").iterdir()} == names
    assert all(path.stat().st_size == 20 * 8 for path in (tmp_path / "raw").iterdir())
    assert (tmp_path / "x.png").stat().st_size > 5000
