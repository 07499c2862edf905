# SPDX-License-Identifier: MIT
"""One run of the load generator against one target: what it was asked, what it measured, what the service counted."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kecho.bench.cpu import CpuTime
from kecho.bench.interval import Known
from kecho.bench.latency import Latency
from kecho.model.record import known, picked, plain
from kecho.model.snapshot import PathStats
from kecho.system.limits import ListenCounts

_OLD_NAMES = {"msg": "ingress", "sockmap:msg": "sockmap:ingress", "rounds": "bursts", "round_ns": "burst_ns"}
_FIELDS = ("target", "mode", "endpoint", "repeat", "options", "elapsed_ns", "interrupted")


@dataclass(frozen=True, order=True)
class Load:
    """What a sweep varies. `rate_per_s` is what an open loop has due a second, 0 for other workloads."""

    connections: int
    size_bytes: int
    rate_per_s: float = 0.0


@dataclass(frozen=True)
class Run:
    """One run. `target` is a name. `mode` is empty for a server that is not ours, `path` if it is not known.

    `options` are what the load generator reports that it did (connections, threads, size_bytes, …). `kernel` is what
    the service counted during the run, by path; None if there is no count, and then `why` may say why. `listened` is
    what listeners dropped during the run. `cpu` is the machine's CPU time during the measured part, `cpu_before` just
    before the run, when only others worked.
    """

    target: str
    mode: str
    endpoint: str
    repeat: int
    options: Mapping[str, Any]
    elapsed_ns: int
    interrupted: bool
    latency: Latency
    kernel: Mapping[str, PathStats] | None = None
    why: str = ""
    listened: ListenCounts | None = None
    cpu: CpuTime | None = None
    cpu_before: CpuTime | None = None

    @property
    def load(self) -> Load:
        return Load(self.options["connections"], self.options["size_bytes"], self.options.get("rate_per_s", 0.0))

    @property
    def path(self) -> str:
        """The path that carried the run, as the service counted. Several are joined by ``+``, the busiest first."""
        used = {name: stats.echoes for name, stats in (self.kernel or {}).items() if stats.echoes}
        return "+".join(sorted(used, key=lambda name: -used[name]))

    @property
    def requests_per_s(self) -> float | None:
        """Requests answered a second; None if it took no time."""
        return self.latency.count / self.elapsed_ns * 1e9 if self.elapsed_ns else None

    @property
    def bytes_per_s(self) -> float | None:
        """Payload answered a second, in each direction; None if it took no time."""
        return None if self.requests_per_s is None else self.requests_per_s * self.load.size_bytes

    @property
    def cpu_ns(self) -> Known | None:
        """The machine's CPU time for each request; None if it is not known, or too short to be told."""
        if self.cpu is None or not self.latency.count or self.cpu.busy_ns <= self.cpu.error_ns:
            return None
        busy, error = self.cpu.busy_ns, self.cpu.error_ns
        return Known(*(ns / self.latency.count for ns in (busy - error, busy, busy + error)))

    @property
    def own_cpu_ns(self) -> float | None:
        """The CPU time of the client's and the service's processes for each request; None if it is not known."""
        if self.cpu is None or not self.latency.count or not self.cpu.client_ns:
            return None
        return (self.cpu.client_ns + self.cpu.service_ns) / self.latency.count

    @functools.cached_property
    def inside(self) -> PathStats | None:
        """What the service counted, over all paths that carried something; None if none did."""
        busy = [stats for stats in (self.kernel or {}).values() if stats.echoes]
        return functools.reduce(operator.add, busy) if busy else None

    @property
    def counts_exactly(self) -> bool:
        """Does `kernel` leave out the warm-up?"""
        return not self.options.get("warmup_s") or bool(self.options.get("held"))

    def surplus_bytes(self) -> int:
        """The bytes that the service counted beyond the client's count; below 0 if it counted less. 0 if they agree.

        Bytes are compared, since a large message is several echoes. The service also counts requests that were in
        flight at the end of the warm-up, and without ``held`` the whole warm-up: that is no contradiction.
        """
        if self.kernel is None:
            return 0
        size = self.load.size_bytes
        surplus = sum(stats.bytes for stats in self.kernel.values()) - self.latency.count * size
        in_flight = self.load.connections * int(self.options.get("depth", 1))
        if surplus > 0 and (not self.counts_exactly or surplus <= in_flight * size):
            return 0
        return surplus

    def to_json(self) -> dict[str, Any]:
        """An object of ``runs`` in docs/metrics.md."""
        obj: dict[str, Any] = {
            **plain(self, _FIELDS),
            "path": self.path,
            "requests_per_s": self.requests_per_s,
            "bytes_per_s": self.bytes_per_s,
            "cpu_ns_per_request": self.cpu_ns.value if self.cpu_ns else None,
            "latency_ns": self.latency.to_json(),
            "kernel": {name: stats.to_json() for name, stats in self.kernel.items()} if self.kernel else None,
        }
        if self.why:
            obj["why"] = {"kernel": self.why}
        if self.listened:
            obj["listen"] = asdict(self.listened)
        spans = {"cpu": self.cpu, "cpu_before": self.cpu_before}
        obj |= {name: asdict(span) for name, span in spans.items() if span}
        return obj

    @classmethod
    def from_json(cls, obj: Mapping[str, Any]) -> Run:
        """The inverse of `to_json`. Unknown fields are ignored.

        Raises KeyError for a missing one, ValueError for a load of nothing.
        """
        kernel, listen = obj.get("kernel"), obj.get("listen")
        options = {renamed(name): value for name, value in obj["options"].items()}
        for name in ("connections", "threads", "size_bytes"):
            if options[name] == 0:
                raise ValueError(f"a run's options.{name} is 0")
        return cls(
            **{**picked(obj, _FIELDS), "target": renamed(obj["target"]), "options": options},
            latency=Latency.from_json(obj["latency_ns"], obj["options"].get("unsent", 0)),
            kernel={renamed(name): PathStats.from_json(stats) for name, stats in kernel.items()} if kernel else None,
            why=obj.get("why", {}).get("kernel", ""),
            listened=ListenCounts(**known(ListenCounts, listen)) if listen else None,
            cpu=CpuTime.from_json(obj.get("cpu")),
            cpu_before=CpuTime.from_json(obj.get("cpu_before")),
        )


def renamed(name: str) -> str:
    """The current name of a path, target or option that old results have under another one."""
    return _OLD_NAMES.get(name, name)
