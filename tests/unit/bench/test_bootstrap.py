# SPDX-License-Identifier: MIT
"""Intervals of ratios: they cover what is true as often as they say, and tell nothing apart that is the same."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import result_samples as samples

from kecho.bench import bootstrap
from kecho.bench.bootstrap import expanded_tail, ratio_interval, student
from kecho.bench.latency import Latency
from kecho.bench.result import MIN_ROUNDS

REQUESTS = 21


def rounds(rng: random.Random, median_ns: float, drifts: list[float], noise: float = 0.03) -> list[Latency]:
    """A run a round: its median is off by its drift and by noise of its own, its requests by a tenth around it."""
    made = []
    for drift in drifts:
        middle = median_ns * drift * rng.lognormvariate(0, noise)
        made.append(samples.latency([round(middle * (0.9 + 0.2 * i / (REQUESTS - 1))) for i in range(REQUESTS)]))
    return made


def coverage(ratio: float, count: int, experiments: int) -> float:
    """In how many of the experiments, each of `count` rounds, the interval holds the true ratio."""
    rng = random.Random(20261123)
    held = 0
    for seed in range(experiments):
        drifts = [rng.lognormvariate(0, 0.2) for _ in range(count)]
        base = rounds(rng, 14_000 * ratio, drifts)
        found = ratio_interval(base, rounds(rng, 14_000, drifts), seed)
        assert found is not None
        held += found.low <= ratio <= found.high
    return held / experiments


@pytest.mark.parametrize(("ratio", "count"), [(1.0, MIN_ROUNDS), (8.0, 10)])
def test_coverage(monkeypatch: pytest.MonkeyPatch, ratio: float, count: int) -> None:
    """Of 400 experiments with known ratio 95 % have to cover; 0.92 and 0.99 are three standard errors off and more."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 1000)
    assert 0.92 <= coverage(ratio, count, 400) <= 0.99


def test_a_small_difference_shows_in_spite_of_drift() -> None:
    """The machine gets three times slower meanwhile; both targets do, and one of them is a tenth slower."""
    drifts = [1 + i / 5 for i in range(10)]
    rng = random.Random(1)
    found = ratio_interval(rounds(rng, 11_000, drifts, 0.01), rounds(rng, 10_000, drifts, 0.01), 1)
    assert found is not None
    assert 1.0 < found.low < 1.1 < found.high < 1.2


def test_the_same_seed_gives_the_same_interval() -> None:
    rng = random.Random(2)
    base, other = (rounds(rng, ns, [1.0] * 8) for ns in (2000, 1000))
    assert ratio_interval(base, other, 5) == ratio_interval(base, other, 5)
    assert ratio_interval(base, other, 5) != ratio_interval(base, other, 6)


def test_nothing_finer_than_a_bucket_is_a_difference() -> None:
    """5000 and 5001 ns share a bucket, 5000 and 5004 lie in neighbours: neither may look like a difference."""
    runs = {ns: [samples.latency([ns])] * 10 for ns in (5000, 5001, 5004, 5100)}
    for ns, differs in ((5001, False), (5004, False), (5100, True)):
        found = ratio_interval(runs[5000], runs[ns], 1)
        assert found is not None
        assert (found.high < 1) is differs
        assert found.low < 1


@pytest.mark.parametrize("count", [0, 1, MIN_ROUNDS - 1])
def test_too_few_rounds_give_no_interval(count: int) -> None:
    assert ratio_interval([samples.latency([2000])] * count, [samples.latency([1000])] * count, 1) is None


def test_medians_are_those_of_the_resampled_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against an oracle that merges the requests of the rounds drawn, for every draw of three runs."""
    runs = [samples.latency([1000 + 7 * i for i in range(n)]) for n in (5, 40, 300)]
    draws = [draw for draw in itertools.product(range(4), repeat=3) if sum(draw) == 3]
    low, high = bootstrap._medians(runs, bootstrap.np.array(draws))
    for i, draw in enumerate(draws):
        merged = Latency.merged([run for run, times in zip(runs, draw, strict=True) for _ in range(times)])
        assert low[i] <= merged.percentile(0.5) < high[i]
        assert samples.hdr_bounds(int(low[i])) == (low[i], high[i])


@pytest.mark.parametrize(("df", "t"), [(5, 2.5706), (9, 2.2622), (30, 2.0423), (1000, 1.9623)])
def test_student_is_that_of_the_tables(df: int, t: float) -> None:
    assert student(0.975, df) == pytest.approx(t, rel=1e-3)


def test_the_tail_of_many_rounds_is_the_plain_one() -> None:
    assert expanded_tail(10**6) == pytest.approx(0.025, rel=1e-3)
    assert expanded_tail(10) < expanded_tail(20) < 0.025
    assert math.isclose(expanded_tail(10), 0.0085, rel_tol=0.02)
