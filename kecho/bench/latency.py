# SPDX-License-Identifier: MIT
"""Latencies as ``build/bench`` reports them: exact moments and a histogram of three significant digits. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kecho.model.histogram import PERCENTILES


@dataclass(frozen=True)
class Latency:
    """Samples in nanoseconds. `buckets` are (low, high, count) for values in [low, high), in order, none empty."""

    count: int = 0
    min: int = 0
    max: int = 0
    mean: float = 0.0
    stdev: float = 0.0
    buckets: tuple[tuple[int, int, int], ...] = ()

    @classmethod
    def from_json(cls, obj: Mapping[str, Any]) -> Latency:
        """The inverse of `to_json`, and what reads the ``latency_ns`` of ``build/bench --json``."""
        buckets = tuple((int(low), int(high), int(n)) for low, high, n in obj["buckets"])
        latency = cls(obj["count"], obj["min"], obj["max"], obj["mean"], obj["stdev"], buckets)
        if sum(n for _, _, n in buckets) != latency.count:
            raise ValueError("the buckets do not add up to the count")
        return latency

    @classmethod
    def merged(cls, parts: Iterable[Latency]) -> Latency:
        """All samples of `parts`; count, min, max and buckets are exact, mean and deviation to rounding."""
        some = [part for part in parts if part.count]
        if not some:
            return cls()
        count = sum(part.count for part in some)
        mean = sum(part.count * part.mean for part in some) / count
        square = sum(part.count * (part.stdev**2 + part.mean**2) for part in some) / count
        counts: Counter[tuple[int, int]] = Counter()
        for part in some:
            for low, high, n in part.buckets:
                counts[low, high] += n
        return cls(
            count,
            min(part.min for part in some),
            max(part.max for part in some),
            mean,
            math.sqrt(max(0.0, square - mean**2)),
            tuple((low, high, n) for (low, high), n in sorted(counts.items())),
        )

    def percentile(self, q: float) -> int:
        """HdrHistogram's rule: the highest value equivalent to that at rank ⌊q·count + ½⌋, at least 1, at most `max`.

        0 without samples.
        """
        rank = max(1, math.floor(q * self.count + 0.5))
        for _, high, n in self.buckets:
            rank -= n
            if rank <= 0:
                return min(high - 1, self.max)
        return self.max

    def to_json(self) -> dict[str, Any]:
        """The object that ``build/bench --json`` has as ``latency_ns``."""
        return {
            "count": self.count,
            "min": self.min,
            "mean": round(self.mean, 3),
            "stdev": round(self.stdev, 3),
            **{name: self.percentile(q) for name, q in PERCENTILES.items()},
            "max": self.max,
            "buckets": [list(bucket) for bucket in self.buckets],
        }
