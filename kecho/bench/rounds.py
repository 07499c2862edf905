# SPDX-License-Identifier: MIT
"""The rounds of a benchmark: each measures every target once, with what the service counted during exactly that run."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from kecho.bench.plan import Plan
from kecho.bench.result import Result
from kecho.bench.run import Run
from kecho.bench.runner import Progress, RunOptions, run_bench
from kecho.bench.targets import Target
from kecho.kernel import cpus, procfs
from kecho.model.errors import KechoError
from kecho.model.snapshot import PathStats, Snapshot
from kecho.system.limits import ListenCounts


@dataclass(frozen=True)
class Step:
    """One run to be made: the `number`-th of `total`; `ends_round` if it is the last of its round."""

    target: Target
    options: RunOptions
    repeat: int
    number: int
    total: int
    ends_round: bool = False


def steps(plan: Plan, targets: Sequence[Target]) -> Iterator[Step]:
    """The runs in order. Every round measures each target once, so that changes on the machine affect all alike.

    The order is drawn for each round: in A B A B … a target would always come after the same other one.
    """
    draw = random.Random(plan.seed)
    total = len(plan.sweep) * plan.repeats * len(targets)
    number = 0
    for options, repeat in itertools.product(plan.sweep, range(plan.repeats)):
        order = draw.sample(targets, len(targets))
        for target in order:
            own = _with_files(plan, options, target, repeat)
            yield Step(target, own, repeat, number, total, target is order[-1])
            number += 1


def _with_files(plan: Plan, options: RunOptions, target: Target, repeat: int) -> RunOptions:
    """The options with the names of the run's own files, if the plan has folders for them."""
    load = f"{options.most_open}x{options.size_bytes}B" + (f"-{options.rate_per_s:.15g}" if options.rate_per_s else "")
    name = f"{target.name.replace('/', '_')}-{load}-{repeat + 1}"
    return replace(
        options,
        hdr=f"{plan.hdr}/{name}.hlog" if plan.hdr else None,
        raw=f"{plan.raw}/{name}.u64" if plan.raw else None,
    )


def make_all(
    plan: Plan,
    targets: Sequence[Target],
    empty: Result,
    show: Callable[[Step, Progress], None],
    save: Callable[[Result], None],
) -> Result:
    """Makes all runs, or those until Ctrl-C, of which the last may be partial. Calls `save` after each round.

    A target that fails is not measured again; the others go on. Raises KechoError if nothing could be measured.
    """
    result = empty
    try:
        for step in steps(plan, targets):
            name = step.target.name
            if name not in result.failed:
                try:
                    done = make_run(step, functools.partial(show, step))
                except KechoError as e:
                    if e.exit_code != 1:  # the fault is not the target's
                        raise
                    result = replace(result, failed={**result.failed, name: str(e)})
                else:
                    if done.latency.count or not done.interrupted:
                        result = replace(result, runs=(*result.runs, done))
                    if done.interrupted:
                        return replace(result, interrupted=True)
            if step.ends_round and result.runs:
                save(result)
    except KeyboardInterrupt:
        return replace(result, interrupted=True)
    if not any(run.latency.count for run in result.runs):
        raise KechoError(next(iter(result.failed.values()), "no request was answered"))
    return result


def make_run(step: Step, on_progress: Callable[[Progress], None] = lambda _: None) -> Run:
    """Makes one run. Raises KechoError that names the target or its address."""
    target = step.target
    before: Snapshot | None = None

    def look() -> None:
        nonlocal before
        before = target.snapshot() if target.snapshot else None

    listened = ListenCounts.now()
    try:
        look()
        # The service's count starts after the warm-up.
        on_hold = look if target.snapshot and step.options.warmup_s else None
        pids = procfs.session(target.pid) if target.pid else ()
        options = replace(step.options, service=",".join(map(str, pids)) or None)
        measured = run_bench(target.host, target.port, options, on_progress, on_hold, target.client)
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
        {**measured.options, "cpus": step.options.cpus, **_place(target), **_placed(target, step.options)},
        measured.elapsed_ns,
        measured.interrupted,
        measured.latency,
        kernel,
        why,
        ListenCounts.now() - listened,
        measured.cpu,
        measured.cpu_before,
    )


def _place(target: Target) -> dict[str, object]:
    """The place of the client, for the run's options."""
    if target.client is None:
        return {"topology": "loopback"}
    return {"topology": "veth", "delay_ms": target.client.delay_ms}


def _placed(target: Target, options: RunOptions) -> dict[str, object]:
    """The CPUs of the service, if it has its own, and what it shares with the client."""
    if not target.cpus:
        return {}
    ours, theirs = (cpus.parse(text) if text else frozenset() for text in (options.cpus, target.cpus))
    known = len(ours) == len(theirs) == 1
    return {"server_cpus": target.cpus, "shared": cpus.shared(min(ours), min(theirs)) if known else ""}


def _counted(target: Target, before: Snapshot | None) -> tuple[Mapping[str, PathStats] | None, str]:
    """The service's counts since `before`, or the reason why they are not known."""
    if target.snapshot is None or before is None:
        return None, ""
    try:
        return (target.snapshot() - before).paths, ""
    except KechoError as e:
        return None, f"no counts of the service: {e}"
    except (ValueError, KeyError):
        return None, "no counts of the service: it was reset or started anew meanwhile"
