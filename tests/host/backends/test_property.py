# SPDX-License-Identifier: MIT
"""Every byte comes back in order and once, whatever a client does in whatever order. hypothesis draws the scripts.

The examples are the same in every run. `make soak HOURS=` goes on with new ones.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import interleaving
import pytest
import support
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


def soak(*args: object) -> subprocess.Popen[str]:
    command = [sys.executable, support.HERE / "soak.py", "--lane=epoll", *args]
    return subprocess.Popen(
        list(map(str, command)), env=support.clean_env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_soak_replays_a_seed() -> None:
    totals = set()
    for _ in range(2):
        with soak("--seed=10", "--rounds=2") as process:
            out, err = process.communicate(timeout=100)
            assert process.returncode == 0, err
        assert "seed 10, lanes epoll" in out and "in order, once" in out
        assert not Path(f"/tmp/kecho-soak-{process.pid}").exists()
        (connections,) = re.findall(r"epoll +2 rounds +(\d+) connections", out)
        totals.add(connections)
    assert len(totals) == 1 and totals != {"0"}


def test_soak_reports_when_interrupted() -> None:
    with soak("--hours=1") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("seed ")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
        assert "echoed and compared in" in out and "in order, once" in out
