# SPDX-License-Identifier: MIT
"""All rounds of one target under one load, and how two targets compare. Pure.

Every figure is the median over the rounds, so that each round has the same weight.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kecho.bench import interval
from kecho.bench.interval import Known, Ratio
from kecho.bench.latency import Latency
from kecho.bench.run import Load, Run
from kecho.model.histogram import PERCENTILES
from kecho.model.snapshot import PathStats

_VERDICTS = {1: "faster", -1: "slower", 0: "undecided"}


def median(values: Iterable[float | None]) -> float | None:
    """The median, in which None (a percentile that was never sent) is above all numbers; None without values."""
    ordered = sorted(math.inf if value is None else value for value in values)
    found = statistics.median(ordered) if ordered else math.inf
    return found if math.isfinite(found) else None


@dataclass(frozen=True)
class Summary:
    """The runs of one target under one load."""

    runs: tuple[Run, ...]  # one for each round, at least one

    @property
    def name(self) -> str:
        return self.runs[0].target

    @property
    def mode(self) -> str:
        return self.runs[0].mode

    @property
    def load(self) -> Load:
        return self.runs[0].load

    @functools.cached_property
    def path(self) -> str:
        """The paths that carried the runs, in the form of `Run.path`."""
        return "+".join(dict.fromkeys(path for run in self.runs for path in run.path.split("+") if path))

    @property
    def label(self) -> str:
        """The name, with mode and path if they add something: ``kecho (sockmap egress)``."""
        words = (self.mode, self.path)
        more = " ".join(dict.fromkeys(word for word in words if word and word not in self.name.split(":")))
        return f"{self.name} ({more})" if more else self.name

    # ---- outside ----

    @property
    def requests(self) -> int:
        return sum(run.latency.count for run in self.runs)

    def percentile(self, q: float) -> float | None:
        """The median of the rounds' percentile `q`; None for one that was never sent or answered in half of them."""
        return median(run.latency.percentile(q) for run in self.runs)

    @functools.cached_property
    def percentiles(self) -> Mapping[str, float | None]:
        """The percentiles of `PERCENTILES`, by name."""
        return {name: self.percentile(q) for name, q in PERCENTILES.items()}

    @functools.cached_property
    def answered(self) -> tuple[Latency, ...]:
        """The latencies of the rounds in which a request was answered. A slow server may answer none in a round."""
        return tuple(run.latency for run in self.runs if run.latency.count)

    @property
    def min(self) -> int:
        return min((one.min for one in self.answered), default=0)

    @property
    def max(self) -> int:
        return max((one.max for one in self.answered), default=0)

    @functools.cached_property
    def requests_per_s(self) -> float | None:
        return median(rate for run in self.runs if (rate := run.requests_per_s) is not None)

    @property
    def bytes_per_s(self) -> float | None:
        """Payload answered a second, in each direction."""
        return None if self.requests_per_s is None else self.requests_per_s * self.load.size_bytes

    @functools.cached_property
    def cpu_ns(self) -> float | None:
        """The machine's CPU time a request."""
        return median(run.cpu_ns.value for run in self.runs if run.cpu_ns)

    @functools.cached_property
    def burst_ns(self) -> float | None:
        """How long a burst took."""
        took = [run.options["burst_ns"]["p50"] for run in self.runs if "burst_ns" in run.options]
        return median(took) if took else None

    @functools.cached_property
    def p50s(self) -> tuple[int, ...]:
        """The p50 of each round that has one."""
        return tuple(p50 for run in self.runs if (p50 := run.latency.percentiles["p50"]))

    # ---- inside ----

    @functools.cached_property
    def kernel(self) -> Mapping[str, PathStats] | None:
        """The service's counts over all rounds, by path; None unless every round has them."""
        total: dict[str, PathStats] = {}
        for run in self.runs:
            if run.kernel is None:
                return None
            for name, stats in run.kernel.items():
                total[name] = total[name] + stats if name in total else stats
        return total

    def inside_percentiles(self, path: str) -> Mapping[str, float | None]:
        """The percentiles that the service measured on a path, by name; None for one without a sample."""
        stats = [run.kernel[path].latency for run in self.runs if run.kernel and path in run.kernel]
        found = [latency for latency in stats if latency is not None and latency.count]
        return {name: median(latency.percentile(q) for latency in found) for name, q in PERCENTILES.items()}

    def to_json(self) -> dict[str, Any]:
        """The object of ``targets`` in docs/metrics.md, without the comparison."""
        latencies = self.answered or (Latency(),)
        mean = statistics.fmean(one.mean for one in latencies)
        square = statistics.fmean(one.stdev**2 + one.mean**2 for one in latencies)
        obj: dict[str, Any] = {
            "target": self.name,
            "mode": self.mode,
            "path": self.path,
            "connections": self.load.connections,
            "size_bytes": self.load.size_bytes,
            "requests_per_s": self.requests_per_s,
            "bytes_per_s": self.bytes_per_s,
            "cpu_ns_per_request": self.cpu_ns,
            "latency_ns": {
                "count": self.requests,
                "min": self.min,
                "mean": round(mean, 3),
                "stdev": round(math.sqrt(max(0.0, square - mean**2)), 3),
                **self.percentiles,
                "max": self.max,
            },
            "p50_rounds_ns": list(self.p50s),
            "kernel": {name: self._path_json(name, stats) for name, stats in self.kernel.items()}
            if self.kernel
            else None,
        }
        if self.burst_ns is not None:
            obj["burst_ns"] = self.burst_ns
        if self.load.rate_per_s:
            obj["offered_per_s"] = self.load.rate_per_s
        return obj

    def _path_json(self, name: str, stats: PathStats) -> dict[str, Any]:
        """Counts and percentiles of a path. The buckets are in the runs."""
        obj = stats.to_json()
        if stats.latency is not None:
            del obj["latency_ns"]["per_cpu"]
            obj["latency_ns"] |= self.inside_percentiles(name)
        return obj


@dataclass(frozen=True)
class Comparison:
    """A target against the baseline, over the rounds in which both were measured."""

    p50: Ratio  # baseline ÷ target: how many times faster the target is
    requests_per_s: Ratio | None  # target ÷ baseline: how many times as many the target answers
    cpu: Ratio | None  # baseline ÷ target, of CPU time a request: how many times less the target takes
    own_cpu: Ratio | None  # the same of their processes alone
    rounds: int

    @property
    def verdict(self) -> str:
        """``faster`` or ``slower`` if the interval excludes 1, else ``undecided``; empty without an interval."""
        return _VERDICTS[self.p50.verdict] if self.p50.interval else ""

    @property
    def disagreement(self) -> float:
        """The ratio of p50 divided by that of requests a second: 1 if they agree."""
        return self.p50.value / self.requests_per_s.value if self.requests_per_s else 1.0

    def to_json(self) -> dict[str, Any]:
        """The fields of a comparison in an object of ``targets``."""
        ratios = {"p50": self.p50, "requests_per_s": self.requests_per_s, "cpu": self.cpu, "own_cpu": self.own_cpu}
        return {
            **{f"ratio_{name}": ratio.value if ratio else None for name, ratio in ratios.items()},
            **{
                f"ratio_{name}_interval": list(ratio.interval) if ratio and ratio.interval else None
                for name, ratio in ratios.items()
            },
            "rounds": self.rounds,
            "verdict": self.verdict or None,
        }


def compare(base: Summary, other: Summary) -> Comparison | None:
    """Compares two targets; None if there is no round in which both were measured."""
    p50 = Ratio.of(_p50_ratios(base, other))
    if p50 is None:
        return None
    rate, cpu, own = (Ratio.of(ratios(base, other)) for ratios in (_rate_ratios, _cpu_ratios, _own_cpu_ratios))
    rounds = sum(1 for _ in _p50_ratios(base, other))
    if other is base:  # the baseline itself has no interval
        one = Ratio(1.0, None)
        return Comparison(one, one if rate else None, one if cpu else None, one if own else None, rounds)
    return Comparison(p50, rate, cpu, own, rounds)


def _pairs(base: Summary, other: Summary) -> Iterator[tuple[Run, Run]]:
    """The two runs of each round that has both."""
    ours, theirs = ({run.repeat: run for run in one.runs} for one in (base, other))
    for repeat in sorted(ours.keys() & theirs.keys()):
        yield ours[repeat], theirs[repeat]


def _p50_ratios(base: Summary, other: Summary) -> Iterator[Known]:
    """The ratio of p50 in each round, with the bounds that follow from the width of the buckets."""
    for ours, theirs in _pairs(base, other):
        first, second = ours.latency.bucket(0.5), theirs.latency.bucket(0.5)
        if first and second:
            low, high = first[0] / second[1], first[1] / max(1, second[0])
            value = (ours.latency.percentiles["p50"] or 0) / (theirs.latency.percentiles["p50"] or 1)
            yield Known(low, value, high)


def _rate_ratios(base: Summary, other: Summary) -> Iterator[Known]:
    for ours, theirs in _pairs(base, other):
        if ours.requests_per_s and theirs.requests_per_s:
            ratio = theirs.requests_per_s / ours.requests_per_s
            yield Known(ratio, ratio, ratio)


def _cpu_ratios(base: Summary, other: Summary) -> Iterator[Known]:
    """The ratio of CPU time a request in each round, with the bounds that follow from the ticks of /proc/stat."""
    for ours, theirs in _pairs(base, other):
        if (first := ours.cpu_ns) and (second := theirs.cpu_ns):
            yield Known(first.low / second.high, first.value / second.value, first.high / second.low)


def _own_cpu_ratios(base: Summary, other: Summary) -> Iterator[Known]:
    for ours, theirs in _pairs(base, other):
        if ours.own_cpu_ns and theirs.own_cpu_ns:
            ratio = ours.own_cpu_ns / theirs.own_cpu_ns
            yield Known(ratio, ratio, ratio)


def modes(summary: Summary) -> tuple[list[float], list[float]] | None:
    """The two groups of the rounds' p50, if they are bimodal."""
    return interval.modes(summary.p50s)


def scatters(summary: Summary) -> bool:
    """Are the rounds' p50 far apart?"""
    return interval.scatters(summary.p50s)
