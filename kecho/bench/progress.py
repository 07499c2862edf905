# SPDX-License-Identifier: MIT
"""A progress bar with the rate, on stderr while a benchmark runs, if a person is looking and it takes long enough."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kecho.bench.compare import Step
from kecho.bench.runner import Options, Progress
from kecho.model.units import plural

SILENT_S = 2.0
Show = Callable[[Step, Progress], None]


def share(progress: Progress, options: Options) -> float:
    """How much of one run is done, from 0 to 1, as far as its options tell."""
    if options.count:
        done = progress.requests / options.count
    elif options.burst:
        done = progress.requests / (options.burst * (options.rounds or 10))
    else:
        done = progress.elapsed_s / max(1e-3, (options.warmup_s or 0) + (options.duration_s or 0))
    return min(1.0, done)


def describe(options: Options) -> str:
    """The load, in short: ``100 connections, 64 B``."""
    return f"{plural(options.burst or options.connections, 'connection')}, {options.size_bytes:,} B"


def rate(before: Progress, now: Progress) -> float:
    """Requests a second between two progresses of one run."""
    return (now.requests - before.requests) / max(1e-3, now.elapsed_s - before.elapsed_s)


@contextmanager
def bar() -> Iterator[Show]:
    """Gives a function to call with each progress; draws nothing unless stdout and stderr are a terminal."""
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        yield lambda step, progress: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    drawing = Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[doing]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = drawing.add_task("bench", total=1.0, doing="")
    begin = time.monotonic()
    last: dict[int, Progress] = {}  # by the number of the step

    def show(step: Step, progress: Progress) -> None:
        before = last.get(step.number, progress)
        last[step.number] = progress
        if not drawing.live.is_started:
            if time.monotonic() - begin < SILENT_S:
                return
            drawing.start()
        running = progress.phase == before.phase == "run"
        drawing.update(
            task,
            description=f"{step.number + 1}/{step.total} {step.target.name}, {describe(step.options)}",
            completed=(step.number + share(progress, step.options)) / step.total,
            doing=f"{rate(before, progress):,.0f}/s" if running else progress.phase,
        )

    try:
        yield show
    finally:
        drawing.stop()
