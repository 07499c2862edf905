# SPDX-License-Identifier: MIT
"""How sure a ratio of two medians is: a bootstrap over the rounds of one benchmark. Pure.

Rounds are resampled, not requests: requests of one run share whatever the machine did during it, so that thousands of
them say little more than one does. A round is resampled whole, the runs of both targets together, because what
changes on the machine meanwhile meets both (the rounds are interleaved for that).

The interval is the expanded percentile interval of T. Hesterberg, "What Teachers Should Know About the Bootstrap",
The American Statistician 69 (2015) 371-386, section 4.4: the plain percentile interval of B. Efron, which is too narrow
for few rounds, at the probabilities that make it as wide as Student's t asks. It is widened by the histograms'
resolution, so that nothing finer than a bucket counts as a difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from kecho.bench.latency import Latency
from kecho.bench.result import CONFIDENCE, MIN_ROUNDS, Interval

RESAMPLES = 10_000

_NORMAL = NormalDist()


def ratio_interval(base: Sequence[Latency], other: Sequence[Latency], seed: int) -> Interval | None:
    """The interval of median of `base` ÷ median of `other`; both have one element a round, in the same order.

    None with fewer than `MIN_ROUNDS` rounds. The same `seed` gives the same interval.
    """
    rounds = len(base)
    if rounds < MIN_ROUNDS:
        return None
    drawn = np.random.default_rng(seed).multinomial(rounds, [1 / rounds] * rounds, size=RESAMPLES)
    base_low, base_high = _medians(base, drawn)
    other_low, other_high = _medians(other, drawn)
    tail = expanded_tail(rounds)
    low = np.quantile(base_low / np.maximum(other_high, 1), tail)
    high = np.quantile(base_high / np.maximum(other_low, 1), 1 - tail)
    return Interval(float(low), float(high))


def _medians(runs: Sequence[Latency], drawn: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The bucket, [low, high), that holds the median of each resample; `drawn` has a row a resample.

    The median of a mixture lies between the medians of its parts: only the buckets between those are looked at.
    """
    medians = [run.percentile(0.5) for run in runs]
    first, last = min(medians), max(medians)
    edges = sorted(
        {(low, high) for run in runs for low, high, _ in run.buckets if high > first and low <= last},
    )
    below = np.array([[sum(n for _, high, n in run.buckets if high <= first) for run in runs]]).T
    counts = np.zeros((len(runs), len(edges)), dtype=np.int64)
    column = {edge: i for i, edge in enumerate(edges)}
    for row, run in enumerate(runs):
        for low, high, n in run.buckets:
            if (low, high) in column:
                counts[row, column[low, high]] = n
    reached = drawn @ (counts.cumsum(axis=1) + below)
    total = drawn @ np.array([run.count for run in runs])
    rank = np.maximum(1, np.floor(0.5 * total + 0.5))  # as Latency.percentile has it
    index = (reached < rank[:, None]).sum(axis=1)
    low, high = np.array(edges).T
    return low[index], high[index]


def expanded_tail(n: int) -> float:
    """The probability at which to cut each tail of the bootstrap distribution of `n` samples (Hesterberg, 4.4)."""
    return _NORMAL.cdf(-math.sqrt(n / (n - 1)) * student(1 - (1 - CONFIDENCE) / 2, n - 1))


def student(p: float, df: int) -> float:
    """The quantile `p` of Student's t, by the expansion 26.7.5 of Abramowitz and Stegun; 1 % off at 2 degrees."""
    z = _NORMAL.inv_cdf(p)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / df**i for i, term in enumerate(terms))
