# SPDX-License-Identifier: MIT
"""The result of one ``kecho-ctl bench``: an immutable record, and its JSON. docs/metrics.md describes every field."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kecho.bench.cpu import CPU_SHAPE
from kecho.bench.host import Host
from kecho.bench.run import Load, Run, renamed
from kecho.bench.summary import Comparison, Summary, compare
from kecho.model import shape
from kecho.model.errors import KechoError, one_line
from kecho.model.record import known, picked, plain
from kecho.model.snapshot import PATH_SHAPE

SCHEMA = 1
_RUN_SHAPE = {
    "target": str,
    "mode": str,
    "endpoint": str,
    "repeat": int,
    "options": {
        **{"mode": str, "connections": int, "threads": int, "size_bytes": int},
        **{"seed?": int, "cpus?": str, "topology?": str, "warmup_s?": float},
        **{"server_cpus?": str, "shared?": str, "busy_poll_us?": int},
        **{"delay_ms?": float, "depth?": int, "bursts?": int, "burst_ns?": {"p50": float}},
        **{"rounds?": int, "round_ns?": {"p50": float}},  # old names of bursts
        **{"rate_per_s?": float, "unsent?": int, "late_ns?": {"mean": float, "max": float}},
    },
    "elapsed_ns": int,
    "interrupted": bool,
    "latency_ns": {"count": int, "min": int, "max": int, "mean": float, "stdev": float, "buckets": [[int]]},
    "kernel?": {"*": PATH_SHAPE},
    "why?": {"kernel?": str},
    "listen?": {"overflows": int, "drops": int},
    **{"cpu?": CPU_SHAPE, "cpu_before?": CPU_SHAPE},
}
# What is read of the object that `to_json` makes.
_SHAPE = {
    "host": {
        **{"hostname": str, "kernel": str, "cpu": str, "cpus": int, "governor?": str},
        **{"mitigations?": {}, "sysctls?": {}, "versions?": {}},
    },
    **{"date": str, "version": str, "command": str, "baseline": str, "interrupted": bool},
    **{"left_out?": {}, "failed?": {}, "order?": [str]},
    "runs": [_RUN_SHAPE],
}
_FIELDS = ("date", "version", "command", "baseline", "interrupted")


@dataclass(frozen=True)
class Result:
    """All runs of one benchmark. Ratios are taken only within one result."""

    host: Host
    date: str  # of the start, ISO 8601 with the zone
    version: str
    command: str
    baseline: str
    runs: tuple[Run, ...]  # in the order made
    interrupted: bool = False  # before all runs were complete
    left_out: Mapping[str, str] = field(default_factory=dict)  # variants that this machine cannot run, and why
    failed: Mapping[str, str] = field(default_factory=dict)  # targets that failed and were not measured again, and why
    order: tuple[str, ...] = ()  # of the targets on the command line

    def loads(self) -> tuple[Load, ...]:
        """The loads in the order of the sweep."""
        return tuple(dict.fromkeys(run.load for run in self.runs))

    @functools.cached_property
    def targets(self) -> tuple[Summary, ...]:
        """A summary for each load and target: load by load, the baseline first, the others in `order`."""
        together: dict[tuple[Load, str], list[Run]] = {}
        for run in self.runs:
            together.setdefault((run.load, run.target), []).append(run)
        loads = {load: i for i, load in enumerate(self.loads())}
        names = {name: i for i, name in enumerate(dict.fromkeys((*self.order, *(run.target for run in self.runs))))}
        names[self.baseline] = -1
        return tuple(
            Summary(tuple(together[key])) for key in sorted(together, key=lambda k: (loads[k[0]], names[k[1]]))
        )

    @functools.cached_property
    def _comparisons(self) -> Mapping[tuple[Load, str], Comparison | None]:
        bases = {one.load: one for one in self.targets if one.name == self.baseline}
        return {
            (one.load, one.name): compare(bases[one.load], one) if one.load in bases else None for one in self.targets
        }

    def compare(self, target: Summary) -> Comparison | None:
        """Compares `target` with the baseline under the same load; None if the baseline has no such run."""
        return self._comparisons[target.load, target.name]

    @property
    def seed(self) -> int:
        """The seed of the payloads, and of the order within a round."""
        return int(self.runs[0].options.get("seed") or 1) if self.runs else 1

    def to_json(self) -> dict[str, Any]:
        """The object of ``kecho-ctl bench --json``. Its ``targets`` are computed from ``runs``, for other programs."""
        return {
            "schema": SCHEMA,
            "kind": "bench",
            "host": asdict(self.host),
            **plain(self, _FIELDS),
            "seed": self.seed,
            "left_out": dict(self.left_out),
            "failed": dict(self.failed),
            "order": list(self.order),
            "targets": [self._target_json(target) for target in self.targets],
            "runs": [run.to_json() for run in self.runs],
        }

    def _target_json(self, target: Summary) -> dict[str, Any]:
        comparison = self.compare(target)
        return {**target.to_json(), **(comparison.to_json() if comparison else {"ratio_p50": None})}

    @classmethod
    def from_json(cls, obj: Mapping[str, Any]) -> Result:
        """The inverse of `to_json`. Unknown fields are ignored.

        Raises ValueError on another kind or schema, and on what is missing or makes no sense.
        """
        if obj.get("kind") != "bench":
            raise ValueError("not a result of kecho-ctl bench")
        if obj.get("schema") != SCHEMA:
            raise ValueError(f"schema {obj.get('schema')}, this version reads {SCHEMA}")
        shape.check(obj, _SHAPE)
        return cls(
            Host(**known(Host, obj["host"])),
            **{**picked(obj, _FIELDS), "baseline": renamed(obj["baseline"])},
            runs=tuple(Run.from_json(run) for run in obj["runs"]),
            left_out=obj.get("left_out") or {},
            failed=obj.get("failed") or {},
            order=tuple(obj.get("order") or ()),
        )


def load(path: str | Path) -> Result:
    """The result that ``--json=FILE`` wrote to `path`. Raises KechoError."""
    try:
        obj = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as e:
        raise KechoError(one_line(e)) from e
    except (ValueError, RecursionError) as e:
        raise KechoError(f"{path}: not JSON: {one_line(e)}") from e
    try:
        return Result.from_json(obj)
    except AttributeError as e:
        raise KechoError(f"{path}: not a result of kecho-ctl bench") from e
    except ValueError as e:
        raise KechoError(f"{path}: {one_line(e)}") from e
