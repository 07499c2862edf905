# SPDX-License-Identifier: MIT
"""What surrounds the runs of a benchmark: limits, raised or such that they show, and where the client is."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

from kecho.bench.runner import Options
from kecho.bench.targets import Where
from kecho.kernel import features, sockets
from kecho.model.errors import KechoError
from kecho.system import topology, tune
from kecho.system.limits import Limits, Needs, distortions, wanted

DEFAULT_ROUNDS = 10  # of a burst (bench-options.c)


def needs_of(sweep: Sequence[Options], repeats: int) -> Needs:
    """What all runs against one server ask of the system's limits. Pure."""
    made = [_made(options) for options in sweep]
    return Needs.of_run(
        max(options.burst or options.connections for options in sweep),
        None if None in made else repeats * sum(n or 0 for n in made),
        paced=not any(options.crr for options in sweep),
    )


def _made(options: Options) -> int | None:
    """The connections that a run makes, one after another or at once; None for as many as there is time for."""
    if options.crr:
        return None if options.count is None or options.warmup_s else options.count
    return options.burst * (options.rounds or DEFAULT_ROUNDS) if options.burst else options.connections


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
            # Behind veth the client has ports of its own. And let all wait: a server may be slow to accept.
            made = 0 if veth else needs.made
            stack.enter_context(tune.raised(replace(needs, waiting=needs.connections, made=made), report))
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
        if features.can_bind(target.host):
            backlogs = [one.backlog for one in sockets.listeners(target.port) if one.takes(target.host)]
            if backlogs:
                found[target.name] = min(backlogs)
    return found
