# SPDX-License-Identifier: MIT
"""The histogram against its C twin, value by value, and against a sorted list of the same samples."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
from collections.abc import Callable, Sequence

import native_support
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kecho.model.histogram import PERCENTILES, SLOTS, Histogram, bounds, slot

U64 = st.integers(0, 2**64 - 1)
# As many small values as large ones, in terms of octaves.
LATENCIES = st.integers(0, 63).flatmap(lambda bits: st.integers(0, 2 ** (bits + 1) - 1))

PROGRAM = r"""
#include <stdio.h>
#include "hist.h"

int main(void)
{
	unsigned long long value;

	printf("%u\n", HIST_SLOTS);
	while (scanf("%llu", &value) == 1)
		printf("%llu\n", hist_slot(value));
	return 0;
}
"""

Twin = Callable[[Sequence[int]], list[int]]


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Twin:
    """Asks hist_slot() of bpf/hist.h; the first number of the answer is HIST_SLOTS."""
    program = native_support.bpf_twin(PROGRAM, tmp_path_factory.mktemp("twin"))

    def ask(values: Sequence[int]) -> list[int]:
        text = "\n".join(map(str, values))
        done = subprocess.run([program], input=text, capture_output=True, text=True, check=True)
        return [int(line) for line in done.stdout.split()]

    return ask


def test_twin_small_values(twin: Twin) -> None:
    values = range(70001)
    assert twin(values) == [SLOTS, *map(slot, values)]


def test_twin_powers_of_two(twin: Twin) -> None:
    values = [2**n + d for n in range(64) for d in (-1, 0, 1)] + [2**64 - 1]
    assert twin(values) == [SLOTS, *map(slot, values)]


def test_twin_edges_of_all_slots(twin: Twin) -> None:
    edges = [edge for index in range(SLOTS) for edge in (bounds(index)[0], bounds(index)[1] - 1)]
    assert twin(edges) == [SLOTS, *(index for index in range(SLOTS) for _ in range(2))]


# One process answers for the whole list; hypothesis makes a list of many values at a time.
@given(values=st.lists(U64 | LATENCIES, min_size=50, max_size=200))
def test_twin_random(twin: Twin, values: list[int]) -> None:
    assert twin(values) == [SLOTS, *map(slot, values)]


def test_slots_tile_the_numbers() -> None:
    tiles = [bounds(index) for index in range(SLOTS)]
    assert tiles[0][0] == 0
    assert tiles[-1][1] == 2**64
    assert all(left[1] == right[0] for left, right in itertools.pairwise(tiles))


@given(U64 | LATENCIES)
def test_reported_value_is_off_by_a_sixteenth_at_most(value: int) -> None:
    low, high = bounds(slot(value))
    assert low <= value < high
    reported = Histogram.of([value]).percentile(0.5)
    assert reported is not None
    assert abs(reported - value) <= value / 16


@given(st.lists(LATENCIES, min_size=1), st.sampled_from([*PERCENTILES.values(), 0.0, 1.0]))
def test_percentile_against_sorted_list(values: list[int], q: float) -> None:
    oracle = sorted(values)[max(1, math.ceil(q * len(values))) - 1]
    reported = Histogram.of(values).percentile(q)
    assert reported is not None
    assert slot(reported) == slot(oracle)


@given(st.lists(LATENCIES, min_size=1))
def test_count_and_max(values: list[int]) -> None:
    histogram = Histogram.of(values)
    assert histogram.count == len(values)
    assert histogram.max == bounds(slot(max(values)))[1] - 1


def test_empty() -> None:
    assert Histogram().count == 0
    assert Histogram().percentile(0.5) is None
    assert Histogram().max is None
    assert Histogram().to_json()["p99"] is None


@given(st.dictionaries(st.integers(0, 7), st.lists(LATENCIES)))
def test_cpus_are_kept_apart_and_merged(by_cpu: dict[int, list[int]]) -> None:
    total = Histogram()
    for cpu, values in by_cpu.items():
        total += Histogram.of(values, cpu)
    everything = Histogram.of([value for values in by_cpu.values() for value in values])
    assert total.merged() == everything.merged()
    assert {cpu: sum(counts.values()) for cpu, counts in total.cpus.items()} == {
        cpu: len(values) for cpu, values in by_cpu.items() if values
    }


@given(st.lists(LATENCIES), st.lists(LATENCIES), st.integers(0, 3))
def test_subtraction_undoes_addition(before: list[int], after: list[int], cpu: int) -> None:
    earlier, interval = Histogram.of(before, 0), Histogram.of(after, cpu)
    assert ((earlier + interval) - earlier).merged() == interval.merged()
    assert ((earlier + interval) - interval).merged() == earlier.merged()


def test_subtraction_of_a_later_snapshot_is_refused() -> None:
    with pytest.raises(ValueError, match="not an earlier snapshot"):
        Histogram.of([5]) - Histogram.of([5, 5])
    with pytest.raises(ValueError, match="not an earlier snapshot"):
        Histogram.of([5], cpu=0) - Histogram.of([5], cpu=1)


@given(st.dictionaries(st.integers(0, 3), st.lists(U64, min_size=1)))
def test_json_round_trip(by_cpu: dict[int, list[int]]) -> None:
    original = Histogram({cpu: Histogram.of(values).merged() for cpu, values in by_cpu.items()})
    text = json.dumps(original.to_json())
    assert Histogram.from_json(json.loads(text)) == original


def test_json_shape() -> None:
    obj = (Histogram.of([900] * 17, 1) + Histogram.of([3], 0)).to_json()
    assert obj["count"] == 18
    assert obj["per_cpu"] == [
        {"cpu": 0, "count": 1, "buckets": [[3, 4, 1]]},
        {"cpu": 1, "count": 17, "buckets": [[896, 960, 17]]},
    ]
    assert (obj["p50"], obj["max"]) == (927, 959)


def test_from_arrays() -> None:
    arrays = {0: [0] * SLOTS, 2: [0] * SLOTS}
    arrays[2][slot(1000)] = 4
    assert Histogram.from_arrays(arrays) == Histogram.of([1000] * 4, cpu=2)
