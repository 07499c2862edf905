# SPDX-License-Identifier: MIT
"""What a benchmark measured, and where: an immutable record, its JSON, and what is computed from it. Pure.

A `Run` is one execution of the load generator against one target. A `Target` is all runs of one target under one
`Load` together. A `Result` is one call of ``kecho-ctl bench``.
"""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kecho.bench.host import Host
from kecho.bench.latency import Latency
from kecho.model.errors import KechoError, one_line
from kecho.model.record import picked, plain
from kecho.model.snapshot import PathStats
from kecho.model.units import plural
from kecho.system.limits import ListenCounts

SCHEMA = 1

CONFIDENCE = 0.95
# The extremes of n rounds hold the true median with probability 1 - 2/2**n (sign test). Below six that is less than
# 95 %, so no interval made of them can be a 95 % one.
MIN_ROUNDS = 6

# What bench calls its ways to load a server, in words.
_MODES = {
    "closed": "closed loop",
    "open": "open loop at {rate_per_s:,g}/s",
    "crr": "connect-request-response",
    "pipeline": "pipelined, {depth} deep",
}
_RUN_FIELDS = ("target", "mode", "endpoint", "repeat", "options", "elapsed_ns", "interrupted")
_RESULT_FIELDS = ("date", "version", "command", "baseline", "interrupted")
_EMULATED = "QEMU TCG"  # the name that QEMU gives a processor which it emulates


@dataclass(frozen=True, order=True)
class Load:
    """What a sweep varies."""

    connections: int
    size_bytes: int


@dataclass(frozen=True)
class Run:
    """One execution. `mode` is empty for a server that is not ours, `path` where no path is known.

    `options` are bench's own words for what it did (connections, threads, size_bytes, …). `kernel` is what the
    service counted meanwhile, by path; None where there is no such count, and `why` then says so if it is a loss.
    `listened` is what listeners dropped meanwhile.
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

    @property
    def path(self) -> str:
        """The path that carried it, by the service's own count; several are joined by ``+``, the busiest first."""
        used = {name: stats.echoes for name, stats in (self.kernel or {}).items() if stats.echoes}
        return "+".join(sorted(used, key=lambda name: -used[name]))

    @property
    def load(self) -> Load:
        return Load(self.options["connections"], self.options["size_bytes"])

    @property
    def inside(self) -> PathStats | None:
        """What the service counted, over all its paths."""
        return _over_paths(self.kernel)

    @property
    def counts_exactly(self) -> bool:
        """Whether `kernel` is without the warm-up."""
        return not self.options.get("warmup_s") or bool(self.options.get("held"))

    def mismatch(self) -> str:
        """How the service's count contradicts the client's; empty if it does not.

        Bytes are compared, since a large message is several echoes. The service also counts what the client does
        not: requests of the warm-up that were under way when it ended, and without ``held`` all of the warm-up.
        """
        if self.kernel is None:
            return ""
        measured = self.latency.count
        size = self.options["size_bytes"]
        counted = sum(stats.bytes for stats in self.kernel.values())
        slack = self.options["connections"] * self.options.get("depth", 1)
        least = measured * size
        if counted < least:
            return f"the service counted {least - counted:,} bytes less than the client received"
        if self.counts_exactly and counted > least + slack * size:
            return f"the service counted {counted - least:,} bytes more than the client received: had it other clients?"
        return ""

    def overload(self) -> str:
        """How many requests of an open loop were due and never sent, in words; empty if none."""
        unsent = self.options.get("unsent", 0)
        return (
            f"{plural(unsent, 'request')} of round {self.repeat + 1} never sent: the rate is too high" if unsent else ""
        )

    def to_json(self) -> dict[str, Any]:
        obj: dict[str, Any] = {
            **plain(self, _RUN_FIELDS),
            "path": self.path,
            "latency_ns": self.latency.to_json(),
            "kernel": {name: stats.to_json() for name, stats in self.kernel.items()} if self.kernel else None,
        }
        if self.why:
            obj["why"] = {"kernel": self.why}
        if self.listened:
            obj["listen"] = asdict(self.listened)
        return obj

    @classmethod
    def from_json(cls, obj: Mapping[str, Any]) -> Run:
        kernel = obj["kernel"]
        return cls(
            **picked(obj, _RUN_FIELDS),
            latency=Latency.from_json(obj["latency_ns"]),
            kernel={name: PathStats.from_json(stats) for name, stats in kernel.items()} if kernel else None,
            why=obj.get("why", {}).get("kernel", ""),
            listened=ListenCounts(**obj["listen"]) if "listen" in obj else None,
        )


def _over_paths(kernel: Mapping[str, PathStats] | None) -> PathStats | None:
    """The sum of all paths that carried something; None if none did, or none is known."""
    busy = [stats for stats in (kernel or {}).values() if stats.echoes]
    return functools.reduce(operator.add, busy) if busy else None


@dataclass(frozen=True)
class Target:
    """All runs of one target under one load."""

    runs: tuple[Run, ...]  # at least one

    @property
    def name(self) -> str:
        return self.runs[0].target

    @property
    def mode(self) -> str:
        return self.runs[0].mode

    @property
    def load(self) -> Load:
        return self.runs[0].load

    @functools.cached_property
    def path(self) -> str:
        """The paths that carried it, as `Run.path` has them."""
        return "+".join(dict.fromkeys(path for run in self.runs for path in run.path.split("+") if path))

    @functools.cached_property
    def latency(self) -> Latency:
        """As the client saw it, over all runs."""
        return Latency.merged(run.latency for run in self.runs)

    @functools.cached_property
    def kernel(self) -> Mapping[str, PathStats] | None:
        """The service's counts of all runs together, by path; None unless every run has them."""
        total: dict[str, PathStats] = {}
        for run in self.runs:
            if run.kernel is None:
                return None
            for name, stats in run.kernel.items():
                total[name] = total[name] + stats if name in total else stats
        return total

    @property
    def inside(self) -> PathStats | None:
        """What the service counted, over all its paths."""
        return _over_paths(self.kernel)

    @property
    def label(self) -> str:
        """Name, and mode and path where they say more: ``kecho (sockmap msg)``."""
        words = (self.mode, self.path)
        more = " ".join(dict.fromkeys(word for word in words if word and word not in self.name.split(":")))
        return f"{self.name} ({more})" if more else self.name


@dataclass(frozen=True)
class Interval:
    """Within which a ratio of medians lies, with probability `CONFIDENCE` (kecho/bench/bootstrap.py)."""

    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A target against the baseline under the same load. `interval` is None for want of rounds."""

    ratio: float  # p50 of the baseline ÷ p50 of the target: how many times faster it is
    interval: Interval | None
    rounds: int

    @property
    def verdict(self) -> str:
        """``faster`` or ``slower`` where the interval supports it, else ``undecided``; empty without one."""
        if self.interval is None:
            return ""
        return "faster" if self.interval.low > 1 else "slower" if self.interval.high < 1 else "undecided"

    def to_json(self) -> dict[str, Any]:
        """The fields of a comparison in an object of ``targets``."""
        return {
            "ratio_p50": self.ratio,
            "ratio_p50_interval": [self.interval.low, self.interval.high] if self.interval else None,
            "rounds": self.rounds,
            "verdict": self.verdict or None,
        }


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
    left_out: Mapping[str, str] = field(default_factory=dict)  # what --compare named and this machine cannot, and why

    @functools.cached_property
    def _targets(self) -> tuple[Target, ...]:
        together: dict[tuple[Load, str], list[Run]] = {}
        for run in self.runs:
            together.setdefault((run.load, run.target), []).append(run)
        loads = {load: i for i, load in enumerate(self.loads())}
        merged = (Target(tuple(runs)) for runs in together.values())
        return tuple(sorted(merged, key=lambda target: (loads[target.load], target.name != self.baseline)))

    def targets(self) -> tuple[Target, ...]:
        """Each target's runs merged, load by load; the baseline first, the others in the order they were run."""
        return self._targets

    def loads(self) -> tuple[Load, ...]:
        """Every load once, in the order of the sweep."""
        return tuple(dict.fromkeys(run.load for run in self.runs))

    @property
    def seed(self) -> int:
        """Of the payloads, and of the resampling."""
        return int(self.runs[0].options.get("seed", 1)) if self.runs else 1

    def compare(self, target: Target) -> Comparison | None:
        """`target` against the baseline under the same load; None without samples of either."""
        base = next((t for t in self.targets() if t.name == self.baseline and t.load == target.load), None)
        if base is None or not base.latency.count or not target.latency.count:
            return None
        ratio = base.latency.percentile(0.5) / max(1, target.latency.percentile(0.5))
        if target is base:
            return Comparison(ratio, None, len(base.runs))
        from kecho.bench import bootstrap  # takes numpy along

        # A round counts if both were measured in it.
        ours, theirs = ({run.repeat: run.latency for run in t.runs if run.latency.count} for t in (base, target))
        rounds = sorted(ours.keys() & theirs.keys())
        interval = bootstrap.ratio_interval([ours[i] for i in rounds], [theirs[i] for i in rounds], self.seed)
        return Comparison(ratio, interval, len(rounds))

    def ratio(self, target: Target) -> float | None:
        """p50 of the baseline ÷ p50 of `target`; None without samples of either."""
        found = self.compare(target)
        return found.ratio if found else None

    def headline(self) -> list[str]:
        """What was done, in parts that belong side by side."""
        if not self.runs:
            return ["nothing was measured"]
        options = self.runs[0].options
        repeats = 1 + max(run.repeat for run in self.runs)
        loads = self.loads()
        connections = list(dict.fromkeys(load.connections for load in loads))
        sizes = list(dict.fromkeys(load.size_bytes for load in loads))
        parts = [
            f"{_MODES.get(options['mode'], options['mode']).format(**options)}: {_several(connections, 'connection')}",
            _several(list(dict.fromkeys(run.options["threads"] for run in self.runs)), "thread"),
            f"{', '.join(f'{size:,}' for size in sizes)} B",
        ]
        if "rounds" in options:
            parts.append(plural(options["rounds"], "round"))
        if cpus := options.get("cpus"):
            parts.append(f"client on CPU {cpus}")
        if options.get("topology") == "veth":
            delay_ms = options["delay_ms"]
            parts.append("client behind veth" + (f", {delay_ms:g} ms each way" if delay_ms else ""))
        if repeats > 1:
            parts.append(f"{repeats} interleaved runs each")
        return parts

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
        found = [c for t in self.targets() if t.name != self.baseline and (c := self.compare(t))]
        if any(comparison.interval is None for comparison in found):
            notes.append(f"a ratio of fewer than {MIN_ROUNDS} rounds has no interval: --repeat {MIN_ROUNDS} or more")
        notes += (f"{name} is left out: {why}" for name, why in self.left_out.items())
        for run in self.runs:
            dropped = run.listened.note() if run.listened else ""
            notes += (f"{run.target}: {text}" for text in (run.why, run.mismatch(), run.overload(), dropped) if text)
        return list(dict.fromkeys(notes))

    def to_json(self) -> dict[str, Any]:
        """The object of ``kecho-ctl bench --json``, with the merged figures in ``targets`` for other programs."""
        return {
            "schema": SCHEMA,
            "kind": "bench",
            "host": asdict(self.host),
            **plain(self, _RESULT_FIELDS),
            "seed": self.seed,
            "left_out": dict(self.left_out),
            "targets": [self._target_json(target) for target in self.targets()],
            "runs": [run.to_json() for run in self.runs],
        }

    def _target_json(self, target: Target) -> dict[str, Any]:
        comparison = self.compare(target)
        return {
            "target": target.name,
            "mode": target.mode,
            "path": target.path,
            **asdict(target.load),
            "latency_ns": _without(target.latency.to_json(), "buckets"),
            "kernel": {name: _brief(stats) for name, stats in target.kernel.items()} if target.kernel else None,
            **(comparison.to_json() if comparison else {"ratio_p50": None}),
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
            **picked(obj, _RESULT_FIELDS),
            runs=tuple(Run.from_json(run) for run in obj["runs"]),
            left_out=obj.get("left_out", {}),
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


def _without(obj: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in obj.items() if key != name}


def _brief(stats: PathStats) -> dict[str, Any]:
    """A path without its buckets: those are in the runs."""
    obj = stats.to_json()
    return {**obj, "latency_ns": _without(obj["latency_ns"], "per_cpu") if stats.latency is not None else None}


def _several(numbers: Sequence[int], noun: str) -> str:
    """``1 connection``, ``1, 10, 100 connections``."""
    if len(numbers) == 1:
        return plural(numbers[0], noun)
    return f"{', '.join(f'{n:,}' for n in numbers)} {noun}s"
