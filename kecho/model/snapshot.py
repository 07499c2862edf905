# SPDX-License-Identifier: MIT
"""What a service has done so far: the one schema of ``stats --json``, the control socket and the Python API. Pure.

docs/metrics.md describes every field.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kecho.model import shape
from kecho.model.histogram import Histogram
from kecho.model.record import known, picked, plain

SCHEMA = 1

# What is read of the objects that `to_json` makes.
PATH_SHAPE: shape.Shape = {
    "echoes": int,
    "bytes": int,
    "fallbacks": int,
    "latency_ns?": {"per_cpu": [{"cpu": int, "buckets": [[int]]}]},
    "why?": {"latency_ns?": str},
}
CONNECTIONS_SHAPE: shape.Shape = dict.fromkeys(("active", "total", "rejected", "aborted"), int)
_SHAPE = {
    **{"name": str, "mode": str, "port": int, "uptime_s": float, "kernel": str, "since_ns": int},
    **{"connections": CONNECTIONS_SHAPE, "paths": {"*": PATH_SHAPE}},
}
_COUNTS = ("echoes", "bytes", "fallbacks")
_IDENTITY = ("name", "mode", "port")


@dataclass(frozen=True)
class PathStats:
    """One path. `latency` is None where nothing can observe it; `why` then says so."""

    echoes: int = 0
    bytes: int = 0
    fallbacks: int = 0
    latency: Histogram | None = field(default_factory=Histogram)
    why: str = ""

    def __add__(self, other: PathStats) -> PathStats:
        return self._combined(other, operator.add)

    def __sub__(self, other: PathStats) -> PathStats:
        return self._combined(other, operator.sub)

    def _combined(self, other: PathStats, how: Callable[[Any, Any], Any]) -> PathStats:
        observed = self.latency is not None and other.latency is not None
        return PathStats(
            **{name: how(getattr(self, name), getattr(other, name)) for name in _COUNTS},
            latency=how(self.latency, other.latency) if observed else None,
            why=self.why or other.why,
        )

    def to_json(self) -> dict[str, Any]:
        obj = {**plain(self, _COUNTS), "latency_ns": self.latency.to_json() if self.latency is not None else None}
        if self.latency is None:
            obj["why"] = {"latency_ns": self.why}
        return obj

    @classmethod
    def from_json(cls, obj: Mapping[str, Any]) -> PathStats:
        latency = obj.get("latency_ns")
        return cls(
            **picked(obj, _COUNTS),
            latency=Histogram.from_json(latency) if latency is not None else None,
            why=obj.get("why", {}).get("latency_ns", ""),
        )


@dataclass(frozen=True)
class Connections:
    """Connections of a service since it came up or was reset; `active` are those open now."""

    active: int = 0
    total: int = 0
    rejected: int = 0
    aborted: int = 0

    def __sub__(self, other: Connections) -> Connections:
        return Connections(
            self.active, self.total - other.total, self.rejected - other.rejected, self.aborted - other.aborted
        )


@dataclass(frozen=True)
class Snapshot:
    """A service at one moment. The difference of two is what happened between them.

    `since_ns` is when the counting began, at the start or the last reset, on the clock of time.monotonic_ns().
    """

    name: str
    mode: str
    port: int
    uptime_s: float
    kernel: str
    connections: Connections
    paths: Mapping[str, PathStats]
    since_ns: int = 0

    def __sub__(self, other: Snapshot) -> Snapshot:
        """What happened since `other`; `uptime_s` becomes the length of the interval.

        Raises ValueError if the service was reset or started anew between the two.
        """
        if self.since_ns != other.since_ns:
            raise ValueError(f"{self.name} began to count anew in between")
        return replace(
            self,
            uptime_s=self.uptime_s - other.uptime_s,
            connections=self.connections - other.connections,
            paths={name: stats - other.paths[name] for name, stats in self.paths.items()},
        )

    def __add__(self, later: Snapshot) -> Snapshot:
        """Two intervals of one service as one. Raises ValueError for different services."""
        if (self.name, self.mode) != (later.name, later.mode):
            raise ValueError(f"{self.name} ({self.mode}) and {later.name} ({later.mode}) are different services")
        both = {name: later.paths[name] + stats for name, stats in self.paths.items() if name in later.paths}
        return replace(later, uptime_s=self.uptime_s + later.uptime_s, paths={**self.paths, **later.paths, **both})

    def since(self, earlier: Snapshot, now_ns: int) -> Snapshot:
        """What happened since `earlier`, or since the last reset if that came later.

        `now_ns` is when this snapshot was taken, on the clock of `since_ns`.
        """
        if self.since_ns == earlier.since_ns:
            return self - earlier
        return replace(self, uptime_s=(now_ns - self.since_ns) / 1e9)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            **plain(self, _IDENTITY),
            "uptime_s": round(self.uptime_s, 6),
            "since_ns": self.since_ns,
            "kernel": self.kernel,
            "connections": vars(self.connections),
            "paths": {name: stats.to_json() for name, stats in self.paths.items()},
        }

    @classmethod
    def from_json(cls, obj: Mapping[str, Any]) -> Snapshot:
        """The inverse of `to_json`. Raises ValueError on another schema, and on what makes no sense."""
        if obj.get("schema") != SCHEMA:
            raise ValueError(f"schema {obj.get('schema')}, this version reads {SCHEMA}")
        shape.check(obj, _SHAPE, "the answer")
        return cls(
            **picked(obj, _IDENTITY),
            uptime_s=obj["uptime_s"],
            kernel=obj["kernel"],
            connections=Connections(**known(Connections, obj["connections"])),
            paths={name: PathStats.from_json(stats) for name, stats in obj["paths"].items()},
            since_ns=obj["since_ns"],
        )
