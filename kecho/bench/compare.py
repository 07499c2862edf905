# SPDX-License-Identifier: MIT
"""Measures several targets in turn, A B A B …, and notes what each service counted during exactly its own runs."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from kecho.bench.result import Run
from kecho.bench.runner import Options, Progress, measure
from kecho.bench.targets import Where
from kecho.model.errors import KechoError
from kecho.model.snapshot import PathStats, Snapshot
from kecho.system.limits import ListenCounts


@dataclass(frozen=True)
class Step:
    """One run that is about to be made: the `number`-th of `total`."""

    target: Where
    options: Options
    repeat: int
    number: int
    total: int


def pin(options: Options, alone: bool) -> Options:
    """Where the client runs: unless `cpus` says otherwise, `alone` on the last CPU that this process may use."""
    if options.cpus == "none":
        return replace(options, cpus=None)
    if options.cpus is None and alone:
        return replace(options, cpus=str(max(os.sched_getaffinity(0))))
    return options


def steps(targets: Sequence[Where], sweep: Sequence[Options], repeats: int) -> Iterator[Step]:
    """Interleaved, A B A B …, so that what changes on the machine meanwhile meets all targets of a load alike."""
    order = itertools.product(sweep, range(repeats), targets)
    total = len(sweep) * repeats * len(targets)
    for number, (options, repeat, target) in enumerate(order):
        yield Step(target, options, repeat, number, total)


def run(step: Step, on_progress: Callable[[Progress], None] = lambda _: None) -> Run:
    """Makes one run. Raises KechoError that names the target or its address."""
    target = step.target
    before: Snapshot | None = None

    def look() -> None:
        nonlocal before
        before = target.snapshot() if target.snapshot else None

    listened = ListenCounts.now()
    try:
        look()
        # What the service counts in the warm-up is not of this run.
        on_hold = look if target.snapshot and step.options.warmup_s else None
        measured = measure(target.host, target.port, step.options, on_progress, on_hold, target.client)
    except KechoError as e:
        if e.exit_code == 1 and target.endpoint not in str(e) and target.name not in str(e):
            raise KechoError(f"{target.name}: {e}") from e
        raise
    kernel, why = _counted(target, before)
    return Run(
        target.name,
        target.mode,
        target.endpoint,
        step.repeat,
        {**measured.options, "cpus": step.options.cpus, **_place(target)},
        measured.elapsed_ns,
        measured.interrupted,
        measured.latency,
        kernel,
        why,
        ListenCounts.now() - listened,
    )


def _place(target: Where) -> dict[str, object]:
    """Where the client was."""
    if target.client is None:
        return {"topology": "loopback"}
    return {"topology": "veth", "delay_ms": target.client.delay_ms}


def _counted(target: Where, before: Snapshot | None) -> tuple[Mapping[str, PathStats] | None, str]:
    """What the service counted since `before`, or why that is not known."""
    if target.snapshot is None or before is None:
        return None, ""
    try:
        return (target.snapshot() - before).paths, ""
    except KechoError as e:
        return None, f"no counts of the service: {e}"
    except (ValueError, KeyError):
        return None, "no counts of the service: it was reset or started anew meanwhile"
