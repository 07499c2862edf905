# SPDX-License-Identifier: MIT
"""CPUs: lists of them, as in ``0,2-3``, and what two of them share."""

from __future__ import annotations

import os
import re
from pathlib import Path

from kecho.model.errors import UsageError

_SYSFS = Path("/sys/devices/system/cpu")


def parse(text: str) -> frozenset[int]:
    """The CPUs of a list. Raises ValueError."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", part)
        if not match or (match[2] and int(match[2]) < int(match[1])):
            raise ValueError(f"{text!r} is not a list of CPUs, like 0,2-3")
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return frozenset(found)


def run_on(text: str) -> None:
    """Runs this thread, and what it starts from now on, on these CPUs. Raises UsageError if it may use none of them."""
    try:
        os.sched_setaffinity(0, parse(text))
    except (OSError, ValueError) as e:
        raise UsageError(f"--cpus {text}: must be a list of CPUs that this machine has, like 0,2-3") from e


def shared(one: int, other: int, sysfs: Path = _SYSFS) -> str:
    """The closest that two CPUs share: ``CPU``, ``core``, ``cache`` (of any level); ``nothing``, or "" if unknown."""
    if one == other:
        return "CPU"
    folder = sysfs / f"cpu{one}"
    core = folder / "topology/thread_siblings_list"
    caches = sorted(folder.glob("cache/index*/shared_cpu_list"))
    try:
        if other in parse(core.read_text().strip()):
            return "core"
        if any(other in parse(cache.read_text().strip()) for cache in caches):
            return "cache"
    except (OSError, ValueError):
        return ""
    return "nothing"
