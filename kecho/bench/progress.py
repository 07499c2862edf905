# SPDX-License-Identifier: MIT
"""A line with progress and rate on stderr, while a benchmark runs in a terminal."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kecho.bench.rounds import Step
from kecho.bench.runner import Progress, RunOptions
from kecho.model.units import plural, uptime

SILENT_S = 2.0
_BAR_COLUMNS = 24
Show = Callable[[Step, Progress], None]


def share(progress: Progress, options: RunOptions) -> float:
    """The part of one run that is done, from 0 to 1, as far as its options say."""
    if options.requests:
        done = progress.requests / options.requests
    else:
        done = progress.elapsed_s / max(1e-3, (options.warmup_s or 0) + (options.duration_s or 0))
    return min(1.0, done)


def describe(options: RunOptions) -> str:
    """The load, in short: ``100 connections, 64 B``."""
    return f"{plural(options.most_open, 'connection')}, {options.size_bytes:,} B"


def rate(before: Progress, now: Progress) -> float:
    """Requests a second between two progresses of one run."""
    return (now.requests - before.requests) / max(1e-3, now.elapsed_s - before.elapsed_s)


@contextmanager
def bar() -> Iterator[Show]:
    """Gives a function to call with each progress. It draws only if stdout and stderr are a terminal."""
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        yield lambda step, progress: None
        return
    begin = time.monotonic()
    last: dict[int, Progress] = {}  # by the number of the step

    def show(step: Step, progress: Progress) -> None:
        before = last.get(step.number, progress)
        last[step.number] = progress
        elapsed_s = time.monotonic() - begin
        if elapsed_s < SILENT_S:
            return
        done = (step.number + share(progress, step.options)) / step.total
        running = progress.phase == before.phase == "run"
        parts = (
            f"{step.number + 1}/{step.total} {step.target.name}, {describe(step.options)}",
            f"[{'#' * round(done * _BAR_COLUMNS):{_BAR_COLUMNS}}]",
            f"{rate(before, progress):,.0f}/s" if running else progress.phase,
            f"{uptime(elapsed_s * (1 - done) / done)} left" if done else "",
        )
        columns = shutil.get_terminal_size().columns - 1
        print(f"\r{'  '.join(parts)[:columns]}\x1b[K", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
