# SPDX-License-Identifier: MIT
"""What a service has done so far: the one schema of ``stats --json``, the control socket and the Python API. Pure.

docs/metrics.md describes every field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kecho.histogram import Histogram

SCHEMA = 1


@dataclass(frozen=True)
class PathStats:
    """One path. `latency` is None where nothing can observe it; `why` then says so."""

    echoes: int = 0
    bytes: int = 0
    fallbacks: int = 0
    latency: Histogram | None = field(default_factory=Histogram)
    why: str = ""

    def __sub__(self, other: PathStats) -> PathStats:
        latency = None
        if self.latency is not None and other.latency is not None:
            latency = self.latency - other.latency
        return PathStats(
            self.echoes - other.echoes,
            self.bytes - other.bytes,
            self.fallbacks - other.fallbacks,
            latency,
            self.why,
        )

    def to_json(self) -> dict[str, Any]:
        obj: dict[str, Any] = {
            "echoes": self.echoes,
            "bytes": self.bytes,
            "fallbacks": self.fallbacks,
            "latency_ns": self.latency.to_json() if self.latency is not None else None,
        }
        if self.latency is None:
            obj["why"] = {"latency_ns": self.why}
        return obj

    @classmethod
    def from_json(cls, obj: Mapping[str, Any]) -> PathStats:
        latency = obj["latency_ns"]
        return cls(
            obj["echoes"],
            obj["bytes"],
            obj["fallbacks"],
            Histogram.from_json(latency) if latency is not None else None,
            obj.get("why", {}).get("latency_ns", ""),
        )


@dataclass(frozen=True)
class Connections:
    """Connections of a service since it came up (or since `reset`); `active` is now."""

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

    `since_ns` is when the counting began, by start or reset, on the clock of time.monotonic_ns().
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

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "name": self.name,
            "mode": self.mode,
            "port": self.port,
            "uptime_s": round(self.uptime_s, 6),
            "since_ns": self.since_ns,
            "kernel": self.kernel,
            "connections": vars(self.connections),
            "paths": {name: stats.to_json() for name, stats in self.paths.items()},
        }

    @classmethod
    def from_json(cls, obj: Mapping[str, Any]) -> Snapshot:
        """The inverse of `to_json`. Raises ValueError on another schema."""
        if obj.get("schema") != SCHEMA:
            raise ValueError(f"schema {obj.get('schema')}, this version reads {SCHEMA}")
        return cls(
            obj["name"],
            obj["mode"],
            obj["port"],
            obj["uptime_s"],
            obj["kernel"],
            Connections(**obj["connections"]),
            {name: PathStats.from_json(stats) for name, stats in obj["paths"].items()},
            obj["since_ns"],
        )
