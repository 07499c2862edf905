# SPDX-License-Identifier: MIT
"""Log-linear histograms, kept apart by CPU: the arithmetic of ``bpf/hist.h`` on the reading side. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# The twin of bpf/hist.h; tests/unit/model/test_histogram.py holds both sides together, value by value.
SUB_BITS = 3
SUB = 1 << SUB_BITS
SLOTS = (64 - SUB_BITS + 1) * SUB

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


def slot(value: int) -> int:
    """The slot that counts `value` (0 ≤ value < 2**64)."""
    if value < SUB:
        return value
    shift = value.bit_length() - 1 - SUB_BITS
    return (shift << SUB_BITS) + (value >> shift)


def rank(q: float, count: int) -> int:
    """The rank of percentile `q` among `count` samples, counted from 1: nearest rank, ⌈q·count⌉.

    Every percentile in kecho follows this rule. It is computed in whole millionths, since 0.999 * 7000 is more than
    6993 in floating point.
    """
    return max(1, -(-round(q * 1_000_000) * count // 1_000_000))


def bounds(index: int) -> tuple[int, int]:
    """The values that slot `index` counts, as [low, high)."""
    if index < SUB:
        return index, index + 1
    shift = (index >> SUB_BITS) - 1
    low = (SUB + (index & (SUB - 1))) << shift
    return low, low + (1 << shift)


@dataclass(frozen=True)
class Histogram:
    """Counts by CPU and slot; the unit is that of the values (nanoseconds for every latency in kecho)."""

    cpus: Mapping[int, Mapping[int, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Iterable[int], cpu: int = 0) -> Histogram:
        """A histogram of `values`, all counted on one CPU."""
        return cls({cpu: Counter(map(slot, values))})

    @classmethod
    def from_arrays(cls, arrays: Mapping[int, Sequence[int]]) -> Histogram:
        """From one array of `SLOTS` counts for each CPU, as the kernel keeps them."""
        return cls({cpu: {i: n for i, n in enumerate(counts) if n} for cpu, counts in arrays.items() if any(counts)})

    @classmethod
    def from_json(cls, obj: Mapping[str, Any]) -> Histogram:
        """From the ``latency_ns`` object that `to_json` makes."""
        return cls({c["cpu"]: {slot(low): n for low, _, n in c["buckets"]} for c in obj["per_cpu"]})

    def merged(self) -> dict[int, int]:
        """Counts by slot over all CPUs, in order of slot."""
        total: Counter[int] = Counter()
        for counts in self.cpus.values():
            total.update(counts)
        return dict(sorted(total.items()))

    @property
    def count(self) -> int:
        """All samples."""
        return sum(sum(counts.values()) for counts in self.cpus.values())

    def percentile(self, q: float) -> int | None:
        """The middle of the slot that holds the sample of rank `rank(q, count)`; None without samples."""
        counts = self.merged()
        left = rank(q, sum(counts.values()))
        for index, n in counts.items():
            left -= n
            if left <= 0:
                low, high = bounds(index)
                return (low + high - 1) // 2
        return None

    @property
    def max(self) -> int | None:
        """The largest value that the highest slot in use can hold; None if there is no sample."""
        counts = self.merged()
        return bounds(max(counts))[1] - 1 if counts else None

    def __add__(self, other: Histogram) -> Histogram:
        return self._combine(other, 1)

    def __sub__(self, other: Histogram) -> Histogram:
        """What was counted since `other`. Raises ValueError if `other` is not an earlier snapshot."""
        return self._combine(other, -1)

    def _combine(self, other: Histogram, sign: int) -> Histogram:
        cpus: dict[int, dict[int, int]] = {}
        for cpu in sorted({*self.cpus, *other.cpus}):
            mine, theirs = self.cpus.get(cpu, {}), other.cpus.get(cpu, {})
            counts = {i: mine.get(i, 0) + sign * theirs.get(i, 0) for i in {*mine, *theirs}}
            if any(n < 0 for n in counts.values()):
                raise ValueError("not an earlier snapshot of the same histogram")
            counts = {i: n for i, n in counts.items() if n}
            if counts:
                cpus[cpu] = counts
        return Histogram(cpus)

    def to_json(self) -> dict[str, Any]:
        """The ``latency_ns`` object of docs/metrics.md."""
        return {
            "count": self.count,
            **{name: self.percentile(q) for name, q in PERCENTILES.items()},
            "max": self.max,
            "per_cpu": [
                {
                    "cpu": cpu,
                    "count": sum(counts.values()),
                    "buckets": [[*bounds(i), n] for i, n in sorted(counts.items())],
                }
                for cpu, counts in sorted(self.cpus.items())
            ],
        }
