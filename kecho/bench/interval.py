# SPDX-License-Identifier: MIT
"""The median of a figure's rounds, and the interval that holds the true one. Pure.

The unit is the round, not the request: the requests of one run share whatever the machine did meanwhile, so thousands
of them say little more than one. Every round counts the same, however many requests it had.

The interval is that of the sign test, between two order statistics: H. A. David and H. N. Nagaraja, Order Statistics,
3rd edition (2003), section 7.1; NIST/SEMATECH e-Handbook, 7.2.4. Of n independent values with the same median, fewer
than k lie below it with the probability of fewer than k heads in n throws of a coin. That holds whatever the
distribution: skewed, in two modes, different from round to round. So [x(k), x(n+1-k)] holds the median in 95 of 100
experiments or more; `coverage` has the exact figure for each n. A bootstrap of so few values does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """Holds the true median with probability `CONFIDENCE` or a little more."""

    low: float
    high: float


class Known(NamedTuple):
    """A figure of one round, known to lie between `low` and `high`: a histogram has a resolution."""

    low: float
    value: float
    high: float


def coverage(n: int, k: int) -> float:
    """The probability that [x(k), x(n+1-k)] of `n` values holds their median."""
    return 1.0 - math.ldexp(sum(math.comb(n, i) for i in range(k)), 1 - n)


def order(n: int) -> int:
    """The largest k for which `coverage` is enough, so that the interval is narrowest; 0 if there is none."""
    k = 0
    while coverage(n, k + 1) >= CONFIDENCE:
        k += 1
    return k


# With fewer rounds even the lowest and the highest are not far enough apart.
MIN_ROUNDS = next(n for n in range(1, 100) if order(n))


@dataclass(frozen=True)
class Ratio:
    """A ratio over the rounds: its median, and the interval of that; None for want of rounds."""

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
    """The median of ratios above 0; of an even number the geometric mean of both, so that a÷b is 1 ÷ (b÷a)."""
    ordered = sorted(ratios)
    n = len(ordered)
    return ordered[n // 2] if n % 2 else math.sqrt(ordered[n // 2 - 1] * ordered[n // 2])


# ---- whether a median says much ----

GAP = 1.25  # neighbouring rounds this far apart may be of two modes
SCATTER = 1.5  # rounds this far apart, all in all, scatter much


def modes(values: Sequence[float]) -> tuple[list[float], list[float]] | None:
    """The two groups that the values fall into; None if they do not.

    They do if the widest gap between neighbours, as a ratio, is above `GAP` and more than half of the whole range, and
    each side has more than one value: a single one is an outlier.
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
    """Whether the highest is far above the lowest."""
    return bool(values) and max(values) >= SCATTER * min(values)
