# SPDX-License-Identifier: MIT
"""The plan of a benchmark, made once from the command line. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kecho.bench.runner import DEFAULT_SEED, RunOptions
from kecho.system.limits import Needs

STDOUT = "-"


@dataclass(frozen=True)
class Plan:
    """What is measured (`targets`, `variants`), how (`sweep`, `repeats`), in which surroundings, and the outputs."""

    sweep: tuple[RunOptions, ...]
    repeats: int
    targets: tuple[str, ...] = ()  # services and addresses
    variants: tuple[str, ...] = ()  # of --compare, brought up for the benchmark
    server_cpus: str = ""  # of those with a process
    seed: int = DEFAULT_SEED  # of the payloads, and of the order within a round
    tuned: bool = False  # system limits are raised meanwhile
    veth: bool = False  # the client is in a network namespace of its own
    delay_ms: float = 0.0  # with veth: in each direction
    json: str | None = None  # a file, or STDOUT
    csv: str | None = None
    hdr: str | None = None  # a folder, with a file for each run
    raw: str | None = None
    plot: str | None = None
    wide: bool = False  # tables may be wider than the terminal
    markdown: bool = False
    percentiles: tuple[float, ...] = ()  # of the table, in percent; empty for the usual ones

    @property
    def needs(self) -> Needs:
        """What all runs against one server need of the system."""
        return needs_of(self.sweep, self.repeats)


def needs_of(sweep: Sequence[RunOptions], repeats: int) -> Needs:
    """What `repeats` runs of each of these options need of the system."""
    made = [_made(options) for options in sweep]
    return Needs.of_run(
        max(options.most_open for options in sweep),
        None if None in made else repeats * sum(n or 0 for n in made),
        paced=not any(options.crr for options in sweep),
    )


def _made(options: RunOptions) -> int | None:
    """The number of connections that a run makes in total; None if it makes as many as there is time for."""
    if options.crr:
        return None if options.count is None or options.warmup_s else options.count
    return options.requests if options.burst else options.most_open
