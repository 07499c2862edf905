# SPDX-License-Identifier: MIT
"""A progress bar on stderr while a benchmark runs, if a person is looking and it takes long enough."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kecho.bench.compare import Step
from kecho.bench.runner import Options, Progress

SILENT_S = 2.0
Show = Callable[[Step, Progress, Options], None]


def share(progress: Progress, options: Options) -> float:
    """How much of one run is done, from 0 to 1, as far as its options tell."""
    if options.count:
        done = progress.requests / options.count
    elif options.burst:
        done = progress.requests / (options.burst * (options.rounds or 10))
    else:
        done = progress.elapsed_s / max(1e-3, (options.warmup_s or 0) + (options.duration_s or 0))
    return min(1.0, done)


@contextmanager
def bar() -> Iterator[Show]:
    """Gives a function to call with each progress; draws nothing unless stderr is a terminal."""
    if not sys.stderr.isatty():
        yield lambda step, progress, options: None
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

    def show(step: Step, progress: Progress, options: Options) -> None:
        if not drawing.live.is_started:
            if time.monotonic() - begin < SILENT_S:
                return
            drawing.start()
        rate = progress.requests / progress.elapsed_s if progress.elapsed_s else 0.0
        doing = f"{rate:,.0f}/s" if progress.phase == "run" else progress.phase
        drawing.update(
            task,
            description=f"{step.target.name} {step.repeat + 1}",
            completed=(step.number + share(progress, options)) / step.total,
            doing=doing,
        )

    try:
        yield show
    finally:
        drawing.stop()
