# SPDX-License-Identifier: MIT
"""The median of a figure over its rounds, and a confidence interval for the true median. Pure.

The unit is the round, not the request. The requests of one run share the state of the machine, so a thousand of them
say little more than one. Every round has the same weight, whatever its number of requests.

The interval is that of the sign test, between two order statistics: H. A. David and H. N. Nagaraja, Order Statistics,
3rd edition (2003), section 7.1; NIST/SEMATECH e-Handbook, 7.2.4. Of n independent values with the same median, fewer
than k lie below it with the probability of fewer than k heads in n throws of a coin. This holds for every distribution:
skewed, bimodal, different from round to round. So [x(k), x(n+1-k)] holds the median in at least 95 of 100 experiments;
`coverage` has the exact figure for each n. A bootstrap of so few values does not reach that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """An interval that holds the true median with a probability of at least `CONFIDENCE`."""

    low: float
    high: float


class Known(NamedTuple):
    """A figure of one round. It lies between `low` and `high`, as a histogram has a finite resolution."""

    low: float
    value: float
    high: float


def coverage(n: int, k: int) -> float:
    """The probability that [x(k), x(n+1-k)] of `n` values holds their median."""
    return 1.0 - math.ldexp(sum(math.comb(n, i) for i in range(k)), 1 - n)


def order(n: int) -> int:
    """The largest k whose `coverage` is enough, which gives the narrowest interval; 0 if there is none."""
    k = 0
    while coverage(n, k + 1) >= CONFIDENCE:
        k += 1
    return k


# With fewer rounds not even [lowest, highest] has the coverage.
MIN_ROUNDS = next(n for n in range(1, 100) if order(n))


@dataclass(frozen=True)
class Ratio:
    """A ratio over the rounds: its median, and the interval of that, None with too few rounds."""

    value: float
    interval: Interval | None

    @classmethod
    def of(cls, rounds: Iterable[Known]) -> Ratio | None:
        """From the ratio of each round; None if there is no round."""
        known = list(rounds)
        if not known:
            return None
        k = order(len(known))
        interval = None
        if k:
            lows, highs = sorted(one.low for one in known), sorted(one.high for one in known)
            interval = Interval(lows[k - 1], highs[-k])
        return cls(middle([one.value for one in known]), interval)

    @property
    def verdict(self) -> int:
        """1 if the interval lies above 1, -1 if below, else 0; 0 without one."""
        if self.interval is None:
            return 0
        return (self.interval.low > 1) - (self.interval.high < 1)


def middle(ratios: Sequence[float]) -> float:
    """The median of ratios. For an even number it is the geometric mean of the two, so that a÷b is 1 ÷ (b÷a)."""
    ordered = sorted(ratios)
    n = len(ordered)
    return ordered[n // 2] if n % 2 else math.sqrt(ordered[n // 2 - 1] * ordered[n // 2])


# ---- rounds for which a median says little ----

GAP = 1.25  # a ratio of neighbouring rounds from which on they may belong to two modes
SCATTER = 1.5  # a ratio of the highest to the lowest round from which on they scatter


def modes(values: Sequence[float]) -> tuple[list[float], list[float]] | None:
    """The two groups of bimodal values; None if they are not bimodal.

    They are if the widest gap between neighbours, as a ratio, is above `GAP` and more than half of the whole range, and
    each side has more than one value. A single one is an outlier.
    """
    ordered = sorted(values)
    gaps = [math.log(ordered[i] / ordered[i - 1]) for i in range(2, len(ordered) - 1)]
    if not gaps:
        return None
    gap = max(gaps)
    if gap < math.log(GAP) or 2 * gap <= math.log(ordered[-1] / ordered[0]):
        return None
    at = 2 + gaps.index(gap)
    return ordered[:at], ordered[at:]


def scatters(values: Sequence[float]) -> bool:
    """Is the highest value far above the lowest?"""
    return bool(values) and max(values) >= SCATTER * min(values)
