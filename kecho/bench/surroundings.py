# SPDX-License-Identifier: MIT
"""The surroundings of a benchmark's runs: limits, raised or reported, and the client's network namespace."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

from kecho.bench.plan import Plan
from kecho.bench.targets import Target
from kecho.kernel import features, sockets
from kecho.model.errors import KechoError, Unavailable
from kecho.system import topology, tune
from kecho.system.limits import Limits, Needs, distortions, wanted


@contextlib.contextmanager
def entered(plan: Plan, report: tune.Report) -> Iterator[topology.ClientNetns | None]:
    """Raises limits and makes the client's namespace, if planned; undoes both in the end. Gives the namespace or None.

    As root it first restores limits that a killed run left raised.
    """
    if os.geteuid() == 0:
        try:
            tune.restore(report)
        except KechoError as e:  # measuring can go on
            report(str(e))
    with contextlib.ExitStack() as stack:
        if plan.tuned:
            # Behind veth the client has ports of its own. All connections may wait, as a server may accept slowly.
            needs = plan.needs
            made = 0 if plan.veth else needs.made
            stack.enter_context(tune.raised(replace(needs, waiting=needs.connections, made=made), report))
        yield stack.enter_context(topology.veth(plan.delay_ms)) if plan.veth else None


def placed(targets: Sequence[Target], client: topology.ClientNetns | None) -> list[Target]:
    """The targets with the addresses at which the client reaches them. Raises KechoError for one that it cannot."""
    if client is None:
        return list(targets)
    return [replace(target, host=client.reach(target.host, target.port), client=client) for target in targets]


def warnings(targets: Sequence[Target], needs: Needs, client: topology.ClientNetns | None) -> list[str]:
    """How the limits will distort the figures, a sentence each."""
    limits = Limits.now()
    if client:
        limits = topology.limits_there(limits)
    found = distortions(needs, limits, _backlogs(targets), client is not None)
    if found and wanted(needs, limits):
        found.append("--tune raises limits for the time of the run")
    return found


def _backlogs(targets: Sequence[Target]) -> dict[str, int]:
    """The accept queue of each target on this machine, by name, as far as the kernel tells."""
    found = {}
    with contextlib.suppress(Unavailable):
        for target in targets:
            if features.can_bind(target.host):
                backlogs = [one.backlog for one in sockets.listeners(target.port) if one.takes(target.host)]
                if backlogs:
                    found[target.name] = min(backlogs)
    return found
