# SPDX-License-Identifier: MIT
"""What a benchmark measured, and where: an immutable record, its JSON, and what is computed from it. Pure but `Host`.

A `Run` is one execution of the load generator against one target. A `Target` is all runs of one target together.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kecho.bench.latency import Latency
from kecho.errors import KechoError, one_line
from kecho.snapshot import PathStats
from kecho.units import plural

SCHEMA = 1

_EMULATED = "QEMU TCG"  # the name that QEMU gives a processor which it emulates

_MODES = {"closed": "closed loop", "open": "open loop"}


@dataclass(frozen=True)
class Host:
    """The machine, as far as it bears on the numbers."""

    hostname: str
    kernel: str
    cpu: str
    cpus: int

    @classmethod
    def this(cls) -> Host:
        """The machine this runs on; `cpus` are those this process may use."""
        return cls(platform.node(), platform.release(), _cpu_model(), len(os.sched_getaffinity(0)))


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return " ".join(next(models, platform.machine()).split())


@dataclass(frozen=True)
class Run:
    """One execution. `mode` is empty for a server that is not ours, `path` where no path is known.

    `options` are bench's own words for what it did (connections, threads, size_bytes, …). `kernel` is what the
    service counted meanwhile, by path; None where there is no such count, and `why` then says so if it is a loss.
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

    @property
    def path(self) -> str:
        """The path that carried it, by the service's own count; several are joined by ``+``, the busiest first."""
        used = {name: stats.echoes for name, stats in (self.kernel or {}).items() if stats.echoes}
        return "+".join(sorted(used, key=lambda name: -used[name]))

    def mismatch(self) -> str:
        """How the service's count contradicts the client's; empty if it does not.

        Bytes are compared, since a large message is several echoes. The service also counts what the client does
        not: the warm-up, and requests under way when the time was up.
        """
        if self.kernel is None:
            return ""
        measured = self.latency.count
        size = self.options["size_bytes"]
        counted = sum(stats.bytes for stats in self.kernel.values())
        slack = self.options["connections"] * self.options.get("depth", 1)
        exact = self.options.get("warmup_s") == 0 or "warmup_requests" in self.options
        least = (measured + self.options.get("warmup_requests", 0)) * size
        if counted < least:
            return f"the service counted {least - counted:,} bytes less than the client received"
        if exact and counted > least + slack * size:
            return f"the service counted {counted - least:,} bytes more than the client received: had it other clients?"
        return ""

    def to_json(self) -> dict[str, Any]:
        obj: dict[str, Any] = {
            "target": self.target,
            "mode": self.mode,
            "path": self.path,
            "endpoint": self.endpoint,
            "repeat": self.repeat,
            "options": dict(self.options),
            "elapsed_ns": self.elapsed_ns,
            "interrupted": self.interrupted,
            "latency_ns": self.latency.to_json(),
            "kernel": {name: stats.to_json() for name, stats in self.kernel.items()} if self.kernel else None,
        }
        if self.why:
            obj["why"] = {"kernel": self.why}
        return obj

    @classmethod
    def from_json(cls, obj: Mapping[str, Any]) -> Run:
        kernel = obj["kernel"]
        return cls(
            obj["target"],
            obj["mode"],
            obj["endpoint"],
            obj["repeat"],
            obj["options"],
            obj["elapsed_ns"],
            obj["interrupted"],
            Latency.from_json(obj["latency_ns"]),
            {name: PathStats.from_json(stats) for name, stats in kernel.items()} if kernel else None,
            obj.get("why", {}).get("kernel", ""),
        )


@dataclass(frozen=True)
class Target:
    """All runs of one target, merged."""

    name: str
    mode: str
    path: str
    endpoint: str
    latency: Latency
    elapsed_ns: int
    kernel: Mapping[str, PathStats] | None

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Target:
        """From the runs of one target, at least one."""
        paths = dict.fromkeys(path for run in runs for path in run.path.split("+") if path)
        return cls(
            runs[0].target,
            runs[0].mode,
            "+".join(paths),
            runs[0].endpoint,
            Latency.merged(run.latency for run in runs),
            sum(run.elapsed_ns for run in runs),
            _added(runs),
        )

    @property
    def label(self) -> str:
        """Name, and mode and path where they say more: ``kecho (sockmap msg)``."""
        more = " ".join(word for word in (self.mode, self.path) if word and word != self.name)
        if self.mode == self.path == "user":
            more = "" if self.name == "user" else "user"
        return f"{self.name} ({more})" if more else self.name


def _added(runs: Sequence[Run]) -> Mapping[str, PathStats] | None:
    """The kernel's counts of all runs together; None unless every run has them."""
    total: dict[str, PathStats] = {}
    for run in runs:
        if run.kernel is None:
            return None
        for name, stats in run.kernel.items():
            total[name] = _plus(total[name], stats) if name in total else stats
    return total


def _plus(a: PathStats, b: PathStats) -> PathStats:
    latency = a.latency + b.latency if a.latency is not None and b.latency is not None else None
    return PathStats(a.echoes + b.echoes, a.bytes + b.bytes, a.fallbacks + b.fallbacks, latency, a.why or b.why)


@dataclass(frozen=True)
class Result:
    """One call of ``kecho-ctl bench``: ratios are taken within it and nowhere else."""

    host: Host
    date: str  # of the start, ISO 8601 with the zone
    version: str
    command: str
    baseline: str
    runs: tuple[Run, ...]
    interrupted: bool = False  # before all runs were made in full

    def targets(self) -> tuple[Target, ...]:
        """Each target's runs merged; the baseline first, the others in the order they were run."""
        names = dict.fromkeys(run.target for run in self.runs)
        merged = [Target.of([run for run in self.runs if run.target == name]) for name in names]
        return tuple(sorted(merged, key=lambda target: target.name != self.baseline))

    def ratio(self, target: Target) -> float | None:
        """p50 of the baseline ÷ p50 of `target`: how many times faster it is; None without samples of either."""
        base = next((t.latency for t in self.targets() if t.name == self.baseline), None)
        if base is None or not base.count or not target.latency.count:
            return None
        return base.percentile(0.5) / max(1, target.latency.percentile(0.5))

    def headline(self) -> list[str]:
        """What was done and where, in parts that belong side by side."""
        if not self.runs:
            return ["nothing was measured"]
        options = self.runs[0].options
        repeats = 1 + max(run.repeat for run in self.runs)
        parts = [
            f"{_MODES.get(options['mode'], options['mode'])}: {plural(options['connections'], 'connection')}",
            plural(options["threads"], "thread"),
            f"{options['size_bytes']:,} B",
        ]
        if "rounds" in options:
            parts.append(plural(options["rounds"], "round"))
        if cpus := options.get("cpus"):
            parts.append(f"client on CPU {cpus}")
        if repeats > 1:
            parts.append(f"{repeats} interleaved runs each")
        return [*parts, f"kernel {self.host.kernel}", self.host.cpu, f"{self.host.cpus} CPUs"]

    def notes(self) -> list[str]:
        """What a reader of the numbers must know, a sentence each."""
        notes = []
        if self.interrupted:
            notes.append("interrupted: this is what was measured until then")
        if _EMULATED in self.host.cpu:
            notes.append(
                f"measured in a virtual machine whose processor is emulated, Linux {self.host.kernel}: "
                "compare these rows with each other only"
            )
        for target in self.targets():
            runs = [run for run in self.runs if run.target == target.name]
            notes += dict.fromkeys(f"{target.name}: {run.why}" for run in runs if run.why)
            mismatches = dict.fromkeys(text for run in runs if (text := run.mismatch()))
            notes += (f"{target.name}: {text}" for text in mismatches)
        return notes

    def to_json(self) -> dict[str, Any]:
        """The object of ``kecho-ctl bench --json``, with the merged figures in ``targets`` for other programs."""
        targets = []
        for target in self.targets():
            latency = target.latency.to_json()
            del latency["buckets"]
            targets.append(
                {
                    "target": target.name,
                    "mode": target.mode,
                    "path": target.path,
                    "latency_ns": latency,
                    "ratio_p50": self.ratio(target),
                }
            )
        return {
            "schema": SCHEMA,
            "kind": "bench",
            "host": asdict(self.host),
            "date": self.date,
            "version": self.version,
            "command": self.command,
            "baseline": self.baseline,
            "interrupted": self.interrupted,
            "targets": targets,
            "runs": [run.to_json() for run in self.runs],
        }

    @classmethod
    def from_json(cls, obj: Mapping[str, Any]) -> Result:
        """The inverse of `to_json`. Raises ValueError on another kind or schema, KeyError on a missing field."""
        if obj.get("kind") != "bench":
            raise ValueError("not a result of kecho-ctl bench")
        if obj.get("schema") != SCHEMA:
            raise ValueError(f"schema {obj.get('schema')}, this version reads {SCHEMA}")
        return cls(
            Host(**obj["host"]),
            obj["date"],
            obj["version"],
            obj["command"],
            obj["baseline"],
            tuple(Run.from_json(run) for run in obj["runs"]),
            obj["interrupted"],
        )

    def save(self, path: Path) -> None:
        """Writes the JSON to `path`. Raises KechoError."""
        try:
            path.write_text(json.dumps(self.to_json()) + "\n", encoding="utf-8")
        except OSError as e:
            raise KechoError(one_line(e)) from e


def load(path: str | Path) -> Result:
    """The result that `Result.save` wrote to `path`. Raises KechoError."""
    try:
        obj = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as e:
        raise KechoError(one_line(e)) from e
    except ValueError as e:
        raise KechoError(f"{path}: not JSON: {one_line(e)}") from e
    try:
        return Result.from_json(obj)
    except (KeyError, TypeError, AttributeError) as e:
        raise KechoError(f"{path}: not a result of kecho-ctl bench") from e
    except ValueError as e:
        raise KechoError(f"{path}: {one_line(e)}") from e
