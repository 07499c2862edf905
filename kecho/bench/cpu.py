# SPDX-License-Identifier: MIT
"""The CPU time of the whole machine during a run, as ``build/bench`` reads it from /proc/stat. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kecho.model.record import known

# The JSON of a CpuTime.
CPU_SHAPE = {
    **{"cpus": int, "elapsed_ns": int, "idle_ns": int, "steal_ns": int, "tick_ns": int},
    **{"client_ns?": int, "service_ns?": int},
}


@dataclass(frozen=True)
class CpuTime:
    """A span of `elapsed_ns` on a machine of `cpus`; the other times are sums over these.

    `steal_ns` is what the host of a virtual machine gave to others. It is busy time, too. /proc/stat counts in
    ticks of `tick_ns`. `client_ns` and `service_ns` are of the processes of client and service, by the scheduler's
    clock: without what the kernel does for them elsewhere, and without others.
    """

    cpus: int
    elapsed_ns: int
    idle_ns: int
    steal_ns: int
    tick_ns: int
    client_ns: int = 0
    service_ns: int = 0

    @classmethod
    def from_json(cls, obj: Mapping[str, Any] | None) -> CpuTime | None:
        """Of an object of this form; None of none: an older kecho did not look."""
        return cls(**{name: ns for name, ns in known(cls, obj).items() if ns is not None}) if obj else None

    @property
    def busy_ns(self) -> int:
        """The CPU time of everything that ran, ours or not."""
        return max(0, self.cpus * self.elapsed_ns - self.idle_ns)

    @property
    def error_ns(self) -> int:
        """By how much `busy_ns` may be off: idle and iowait are whole ticks, before and after."""
        return 2 * self.tick_ns

    @property
    def busy_cpus(self) -> float:
        """How many CPUs were busy, on average."""
        return self.busy_ns / self.elapsed_ns if self.elapsed_ns else 0.0
