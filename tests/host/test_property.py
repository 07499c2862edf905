# SPDX-License-Identifier: MIT
"""Whatever a client does, in whatever order, every byte comes back in order and once: hypothesis looks for what breaks.

The same examples every time. `make soak HOURS=` looks on with new ones.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import interleaving
import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("KECHO_TEST_EXAMPLES", "25"))


@pytest.fixture(scope="module", params=interleaving.LANES)
def lane(request: pytest.FixtureRequest) -> Iterator[interleaving.Lane]:
    """One service for all examples: what one leaves behind, the next one meets."""
    try:
        with interleaving.lane(request.param) as found:
            yield found
    except interleaving.NotHere as e:
        pytest.skip(str(e))


@pytest.mark.timeout(900)
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],  # shrinking repeats what may take a minute to hang; soak.py's seeds replay as well
    suppress_health_check=list(HealthCheck),
)
@given(rng=st.randoms(use_true_random=False), connections=st.integers(1, 3))
def test_interleavings(lane: interleaving.Lane, rng: random.Random, connections: int) -> None:
    scripts = [interleaving.make_script(rng) for _ in range(connections)]
    for script in scripts:
        note(repr(script))
    interleaving.run_round(lane, scripts)
