# SPDX-License-Identifier: MIT
"""Lists of CPUs, and what two CPUs share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kecho.kernel import cpus
from kecho.model.errors import UsageError


@pytest.mark.parametrize(("text", "found"), [("0", {0}), ("0,2-3", {0, 2, 3}), ("5-5", {5})])
def test_lists(text: str, found: set[int]) -> None:
    assert cpus.parse(text) == found


@pytest.mark.parametrize("text", ["", "x", "1-", "3-1", "0,,1", "-1", "0 1", "٣", "99999"])
def test_no_lists(text: str) -> None:
    with pytest.raises(ValueError, match="not a list of CPUs"):
        cpus.parse(text)


def test_it_runs_there() -> None:
    before = os.sched_getaffinity(0)
    try:
        cpus.run_on(str(max(before)))
        assert os.sched_getaffinity(0) == {max(before)}
    finally:
        os.sched_setaffinity(0, before)
    with pytest.raises(UsageError, match=r"^--cpus 9999: must be a list of CPUs that this machine has"):
        cpus.run_on("9999")


def test_what_two_share(tmp_path: Path) -> None:
    """As on a machine with two threads a core, and two cores a cache."""
    for name, text in (
        ("topology/thread_siblings_list", "0,4"),
        ("cache/index0/shared_cpu_list", "0,4"),
        ("cache/index3/shared_cpu_list", "0-1,4-5"),
    ):
        file = tmp_path / "cpu0" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    assert [cpus.shared(0, other, tmp_path) for other in (0, 4, 1, 2)] == ["CPU", "core", "cache", "nothing"]
    assert cpus.shared(7, 1, tmp_path) == "", "of CPU 7 nothing is known"
