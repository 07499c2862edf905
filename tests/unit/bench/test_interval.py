# SPDX-License-Identifier: MIT
"""Intervals of ratios: their coverage is as promised, and equal targets are not told apart."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence

import pytest
import result_samples as samples

from kecho.bench import interval
from kecho.bench.interval import CONFIDENCE, MIN_ROUNDS, Interval, Known, Ratio, coverage, order
from kecho.bench.summary import Comparison, Summary, compare

EXPERIMENTS = 4000
TRUE = 3.0


def ratio_of(values: Sequence[float]) -> Ratio:
    found = Ratio.of(Known(value, value, value) for value in values)
    assert found
    return found


# Ratios of rounds, whose true median is TRUE.


def one_mode(rng: random.Random, n: int) -> list[float]:
    return [TRUE * rng.lognormvariate(0, 0.3) for _ in range(n)]


def skewed(rng: random.Random, n: int) -> list[float]:
    return [TRUE * rng.expovariate(math.log(2)) for _ in range(n)]


def two_modes(rng: random.Random, n: int) -> list[float]:
    """Half of the rounds six times faster than the others, with nothing between: the median is at the upper edge."""
    high = [rng.random() < 0.51 for _ in range(n)]
    edge = 0.01 / 0.51  # so much of the upper mode lies below the true median
    return [TRUE * (1 + (rng.random() - edge) * 0.2) if up else TRUE / 6 * rng.uniform(0.9, 1.1) for up in high]


def worsening(rng: random.Random, n: int) -> list[float]:
    """Rounds of different distributions: each scatters more than the last."""
    return [TRUE * rng.lognormvariate(0, 0.05 * (i + 1)) for i in range(n)]


Shape = Callable[[random.Random, int], list[float]]
SHAPES = [one_mode, skewed, two_modes, worsening]


def plain_percentile(values: Sequence[float], rng: random.Random) -> Interval:
    """Efron's percentile bootstrap of the median, which is wrong for so few rounds."""
    draws = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(200))
    return Interval(draws[5], draws[194])


def too_wide(values: Sequence[float], _: random.Random) -> Interval:
    return Interval(min(values) * 0.9, max(values) * 1.1)


def ours(values: Sequence[float], _: random.Random) -> Interval:
    found = ratio_of(values).interval
    assert found
    return found


def is_right(
    make: Callable[[Sequence[float], random.Random], Interval],
    shape: Shape,
    n: int,
    experiments: int,
) -> bool:
    """Is the coverage that of the theory for so many rounds (at least 95 %), to 4 sigma?"""
    rng = random.Random(n)
    held = 0
    for _ in range(experiments):
        low, high = make(shape(rng, n), rng)
        held += low <= TRUE <= high
    exact = coverage(n, order(n))
    return abs(held / experiments - exact) <= 4 * math.sqrt(exact * (1 - exact) / experiments)


@pytest.mark.parametrize("n", range(MIN_ROUNDS, 21))
@pytest.mark.parametrize("shape", SHAPES)
def test_covers_as_often_as_it_says(shape: Shape, n: int) -> None:
    assert is_right(ours, shape, n, EXPERIMENTS)


@pytest.mark.parametrize("n", [7, 10, 20])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_plain_percentile_interval_would_not_pass(shape: Shape, n: int) -> None:
    assert not is_right(plain_percentile, shape, n, 1500)


@pytest.mark.parametrize("n", [9, 12, 20])
@pytest.mark.parametrize("shape", SHAPES)
def test_nor_would_one_that_is_far_too_wide(shape: Shape, n: int) -> None:
    assert not is_right(too_wide, shape, n, EXPERIMENTS)


def test_coverage_is_exact() -> None:
    """Compares with tables of the sign test. From MIN_ROUNDS on the coverage is never below CONFIDENCE."""
    assert coverage(6, 1) == 1 - 2 / 64
    assert coverage(20, 6) == pytest.approx(0.9586, abs=1e-4)
    assert [order(n) for n in range(1, 21)] == [0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 5, 5, 5, 6]
    assert MIN_ROUNDS == 6
    for n in range(MIN_ROUNDS, 200):
        assert CONFIDENCE <= coverage(n, order(n)) < 0.993
        assert coverage(n, order(n) + 1) < CONFIDENCE or order(n) + 1 > (n + 1) // 2


def test_rounds_of_unequal_counts_count_the_same() -> None:
    rng = random.Random(3)
    values = one_mode(rng, 12)
    base = [
        samples.run("slow", [round(9e6 * value)] * rng.choice((1, 3000)), repeat=i) for i, value in enumerate(values)
    ]
    other = [samples.run("fast", [9_000_000] * rng.choice((1, 3000)), repeat=i) for i in range(12)]
    found = compare(Summary(tuple(base)), Summary(tuple(other)))
    assert found and found.p50.interval
    expected = ratio_of(values)
    assert expected.interval
    assert found.p50.value == pytest.approx(expected.value, rel=2e-3)
    assert found.p50.interval == pytest.approx(expected.interval, rel=3e-3)


def compared(base_ns: Sequence[int], other_ns: Sequence[int]) -> Comparison:
    one, two = (
        Summary(tuple(samples.run(name, [ns] * 5, repeat=i) for i, ns in enumerate(medians)))
        for name, medians in (("slow", base_ns), ("fast", other_ns))
    )
    found = compare(one, two)
    assert found
    return found


def test_a_small_difference_shows_in_spite_of_drift() -> None:
    """The machine becomes three times slower during the rounds; one of two targets is a tenth slower than the other."""
    drifts = [1 + i / 5 for i in range(10)]
    found = compared([round(11_000 * drift) for drift in drifts], [round(10_000 * drift) for drift in drifts])
    assert found.verdict == "faster"
    assert found.p50.value == pytest.approx(1.1, rel=1e-3)


@pytest.mark.parametrize(
    ("ns", "verdict"), [(5001, "undecided"), (5004, "undecided"), (5100, "slower"), (4900, "faster")]
)
def test_nothing_finer_than_a_bucket_is_a_difference(ns: int, verdict: str) -> None:
    """5000 and 5001 ns share a bucket, 5000 and 5004 lie in neighbours: neither may look like a difference."""
    assert compared([5000] * 10, [ns] * 10).verdict == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(1.0, 2.0, 0), (0.5, 1.0, 0), (1.0, 1.0, 0), (1.001, 2.0, 1), (0.5, 0.999, -1)]
)
def test_an_interval_that_touches_1_decides_nothing(low: float, high: float, verdict: int) -> None:
    assert Ratio(1.0, Interval(low, high)).verdict == verdict


@pytest.mark.parametrize("count", range(1, MIN_ROUNDS))
def test_too_few_rounds_give_no_interval(count: int) -> None:
    assert ratio_of([2.0] * count) == Ratio(2.0, None)


def test_no_round_gives_no_ratio() -> None:
    assert Ratio.of([]) is None


def test_the_median_of_an_odd_number_is_the_one_in_the_middle() -> None:
    assert ratio_of([9.0, 1.0, 2.0, 4.0, 3.0]).value == 3.0
    assert ratio_of([1.0, 2.0, 8.0, 9.0]).value == 4.0


def test_a_ratio_turned_round_is_its_inverse() -> None:
    values = one_mode(random.Random(1), 8)
    one, other = ratio_of(values), ratio_of([1 / value for value in values])
    assert one.value == pytest.approx(1 / other.value)
    assert one.interval and other.interval
    assert one.interval == pytest.approx((1 / other.interval.high, 1 / other.interval.low))


@pytest.mark.parametrize(
    ("values", "groups"),
    [
        ([10] * 4 + [60] * 6, ([10] * 4, [60] * 6)),
        ([60, 10, 61, 11], ([10, 11], [60, 61])),
        ([10, 10, 10, 60], None),  # an outlier
        ([10, 60], None),
        ([10, 11, 12, 13, 14, 15, 16], None),  # scattered evenly
        ([10, 10, 12, 12], None),  # too near
        ([10, 12, 16, 20, 26, 33], None),  # the widest gap is one of many
        ([10, 11.5, 13, 15], None),  # nor are those after next neighbours
        ([4, 4, 5, 5], ([4, 4], [5, 5])),  # just far enough
        ([10, 10, 20, 20, 60], None),  # less than half of the range, with an outlier above
        ([3, 10, 10, 20, 20], None),  # or below
        ([10, 10, 20, 20, 40], None),  # just half
        ([], None),
    ],
)
def test_modes(values: list[float], groups: tuple[list[float], list[float]] | None) -> None:
    assert interval.modes(values) == groups


def test_scatter_begins_at_one_and_a_half() -> None:
    assert interval.scatters([10, 15]) and not interval.scatters([10, 14.9])
    assert not interval.scatters([]) and not interval.scatters([5])
