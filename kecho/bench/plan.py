# SPDX-License-Identifier: MIT
"""What a benchmark is to do: made once from the command line, read by everything else. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kecho.bench.runner import RunOptions
from kecho.system.limits import Needs

DEFAULT_ROUNDS = 10  # of a burst (native/bench/options.c)
STDOUT = "-"


@dataclass(frozen=True)
class Plan:
    """`targets` and `variants` are what is measured, `sweep` is how, the rest in which surroundings and where to."""

    sweep: tuple[RunOptions, ...]
    repeats: int
    targets: tuple[str, ...] = ()  # services and addresses
    variants: tuple[str, ...] = ()  # to be brought up for this
    seed: int = 1  # of the payloads, and of the order within a round
    tuned: bool = False  # limits of the system are raised meanwhile
    veth: bool = False  # the client is in a network namespace of its own
    delay_ms: float = 0.0  # with that, on each way
    json: str | None = None  # a file, or STDOUT
    csv: str | None = None
    plot: str | None = None

    @property
    def connections(self) -> int:
        """The most that are open at once."""
        return max(options.burst or options.connections for options in self.sweep)

    @property
    def needs(self) -> Needs:
        """What all runs against one server ask of the system's limits."""
        return needs_of(self.sweep, self.repeats)


def needs_of(sweep: Sequence[RunOptions], repeats: int) -> Needs:
    """What so many runs of each ask of the system's limits."""
    made = [_made(options) for options in sweep]
    return Needs.of_run(
        max(options.burst or options.connections for options in sweep),
        None if None in made else repeats * sum(n or 0 for n in made),
        paced=not any(options.crr for options in sweep),
    )


def _made(options: RunOptions) -> int | None:
    """The connections that a run makes, one after another or at once; None for as many as there is time for."""
    if options.crr:
        return None if options.count is None or options.warmup_s else options.count
    return options.burst * (options.rounds or DEFAULT_ROUNDS) if options.burst else options.connections
