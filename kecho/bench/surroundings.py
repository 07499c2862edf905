# SPDX-License-Identifier: MIT
"""What surrounds the runs of a benchmark: limits, raised or such that they show, and where the client is."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

from kecho import diag, kernel, topology, tune
from kecho.bench.runner import Options
from kecho.bench.targets import Where
from kecho.errors import KechoError
from kecho.limits import Limits, Needs, distortions, wanted

DEFAULT_ROUNDS = 10  # of a burst (bench-options.c)


def needs_of(sweep: Sequence[Options], repeats: int, paced: bool) -> Needs:
    """What all runs against one server ask of the system's limits. Pure. `paced`: see Needs.of_run."""
    connections = [options.burst or options.connections for options in sweep]
    rounds = [options.rounds or DEFAULT_ROUNDS if options.burst else 1 for options in sweep]
    made = repeats * sum(n * times for n, times in zip(connections, rounds, strict=True))
    return Needs.of_run(max(connections), made, paced)


@contextlib.contextmanager
def entered(
    needs: Needs, tuned: bool, veth: bool, delay_ms: float, report: tune.Report
) -> Iterator[topology.Remote | None]:
    """Raises limits and makes a place for the client, if it is to be; undone in the end. Where the client then is.

    Puts back first what a killed run left raised, if that is for this process to do.
    """
    if os.geteuid() == 0:
        try:
            tune.restore(report)
        except KechoError as e:  # no reason not to measure
            report(str(e))
    with contextlib.ExitStack() as stack:
        if tuned:
            # Behind veth the client has ports of its own.
            stack.enter_context(tune.raised(replace(needs, made=0) if veth else needs, report))
        yield stack.enter_context(topology.veth(delay_ms)) if veth else None


def placed(targets: Sequence[Where], client: topology.Remote | None) -> list[Where]:
    """The targets as the client reaches them. Raises KechoError for one that it cannot reach."""
    if client is None:
        return list(targets)
    return [replace(target, host=client.reach(target.host, target.port), client=client) for target in targets]


def warnings(targets: Sequence[Where], needs: Needs, client: topology.Remote | None) -> list[str]:
    """What of the limits will show in the figures, a sentence each."""
    limits = Limits.now()
    if client:
        limits = topology.limits_there(limits)
    found = distortions(needs, limits, _backlogs(targets), client is not None)
    if found and wanted(needs, limits):
        found.append("--tune raises limits for the time of the run")
    return found


def _backlogs(targets: Sequence[Where]) -> dict[str, int]:
    """How many connections may wait at each target that is on this machine."""
    found = {}
    for target in targets:
        if kernel.can_bind(target.host):
            backlogs = [one.backlog for one in diag.listeners(target.port) if one.takes(target.host)]
            if backlogs:
                found[target.name] = min(backlogs)
    return found
