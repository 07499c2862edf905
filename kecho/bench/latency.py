# SPDX-License-Identifier: MIT
"""The latencies of one run, as ``build/bench`` prints them: exact moments and a histogram of three digits. Pure."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kecho.model.histogram import PERCENTILES, rank


@dataclass(frozen=True)
class Latency:
    """Samples in nanoseconds. `buckets` are (low, high, count) for values in [low, high), in order, none empty.

    `unsent` more requests were due and never sent. They count as slower than all samples, by an unknown time.
    """

    count: int = 0
    min: int = 0
    max: int = 0
    mean: float = 0.0
    stdev: float = 0.0
    buckets: tuple[tuple[int, int, int], ...] = ()
    unsent: int = 0

    @classmethod
    def from_json(cls, obj: Mapping[str, Any], unsent: int = 0) -> Latency:
        """The inverse of `to_json`. Reads the ``latency_ns`` of ``build/bench --json`` too."""
        buckets = tuple((int(low), int(high), int(n)) for low, high, n in obj["buckets"])
        latency = cls(obj["count"], obj["min"], obj["max"], obj["mean"], obj["stdev"], buckets, unsent)
        if sum(n for _, _, n in buckets) != latency.count:
            raise ValueError("the buckets do not add up to the count")
        return latency

    def bucket(self, q: float) -> tuple[int, int] | None:
        """The bucket [low, high) that holds percentile `q` of all due requests; None if that request was never sent."""
        left = rank(q, self.count + self.unsent)
        for low, high, n in self.buckets:
            left -= n
            if left <= 0:
                return low, high
        return None

    def percentile(self, q: float) -> int | None:
        """The highest value in the bucket of `q`, at most `max`; None as for `bucket`, or without samples."""
        found = self.bucket(q)
        return min(found[1] - 1, self.max) if found else None

    @functools.cached_property
    def percentiles(self) -> Mapping[str, int | None]:
        """The percentiles of `PERCENTILES`, by name."""
        return {name: self.percentile(q) for name, q in PERCENTILES.items()}

    def to_json(self) -> dict[str, Any]:
        """The object ``latency_ns`` of ``build/bench --json``."""
        return {
            "count": self.count,
            "min": self.min,
            "mean": round(self.mean, 3),
            "stdev": round(self.stdev, 3),
            **self.percentiles,
            "max": self.max,
            "buckets": [list(bucket) for bucket in self.buckets],
        }
