# SPDX-License-Identifier: MIT
"""Results of ``kecho-ctl bench`` as a DataFrame with a row for each run. docs/metrics.md describes the columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from kecho.bench import result as results
from kecho.bench.result import Result
from kecho.bench.run import Run
from kecho.model.histogram import PERCENTILES


def load(*paths: str | Path) -> pd.DataFrame:
    """All runs of results saved with ``--json=FILE``, in order. Raises KechoError for a file that is no result."""
    return frame({str(path): results.load(path) for path in paths})


def frame(results: Mapping[str, Result]) -> pd.DataFrame:
    """The runs of results, given by file name; latencies in nanoseconds. Missing figures are NaN."""
    return pd.DataFrame([row for file, result in results.items() for row in _rows(file, result)])


def save_csv(result: Result, path: Path) -> None:
    """Writes the table of one result, without the column `file`. Raises OSError."""
    frame({"": result}).drop(columns="file").to_csv(path, index=False)


def _rows(file: str, result: Result) -> Iterator[dict[str, Any]]:
    host = result.host
    exact = ("min", "mean", "stdev", "max")
    baseline = {(run.load, run.repeat): run for run in result.runs if run.target == result.baseline}
    for run in result.runs:
        yield {
            "file": file,
            "date": result.date,
            "hostname": host.hostname,
            "kernel": host.kernel,
            "cpu": host.cpu,
            "cpus": host.cpus,
            "governor": host.governor,
            "version": result.version,
            "target": run.target,
            "baseline": run.target == result.baseline,
            "mode": run.mode,
            "path": run.path,
            "workload": run.options["mode"],
            "offered_per_s": run.options.get("rate_per_s"),
            "depth": run.options.get("depth"),
            "connections": run.load.connections,
            "threads": run.options["threads"],
            "size_bytes": run.load.size_bytes,
            "client_cpus": run.options.get("cpus") or "",
            "server_cpus": run.options.get("server_cpus", ""),
            "topology": run.options.get("topology", ""),
            "delay_ms": run.options.get("delay_ms"),
            "seed": result.seed,
            "repeat": run.repeat,
            "interrupted": run.interrupted,
            "elapsed_ns": run.elapsed_ns,
            "requests": run.latency.count,
            "unsent": run.latency.unsent,
            "rate_per_s": run.requests_per_s,
            "bytes_per_s": run.bytes_per_s,
            "cpu_ns_per_request": run.cpu_ns.value if run.cpu_ns else None,
            "own_cpu_ns_per_request": run.own_cpu_ns,
            "busy_cpus": run.cpu.busy_cpus if run.cpu else None,
            "busy_cpus_before": run.cpu_before.busy_cpus if run.cpu_before else None,
            "steal_ns": run.cpu.steal_ns if run.cpu else None,
            **_ratios(run, baseline.get((run.load, run.repeat))),
            **{f"{name}_ns": getattr(run.latency, name) if run.latency.count else None for name in exact},
            **{f"{name}_ns": ns for name, ns in run.latency.percentiles.items()},
            "burst_p50_ns": run.options.get("burst_ns", {}).get("p50"),
            "listen_drops": run.listened.drops if run.listened else None,
            **_inside(run),
        }


def _ratios(run: Run, base: Run | None) -> dict[str, float | None]:
    """The ratios of p50 and CPU time (baseline ÷ run), and requests a second (run ÷ baseline), within the round."""
    ours, theirs = (one.latency.percentiles["p50"] if one else None for one in (base, run))
    before, now = (one.requests_per_s if one else None for one in (base, run))
    first, second = (one.cpu_ns if one else None for one in (base, run))
    return {
        "ratio_p50": ours / theirs if ours and theirs else None,
        "ratio_rate_per_s": now / before if before and now else None,
        "ratio_cpu": first.value / second.value if first and second else None,
    }


def _inside(run: Run) -> dict[str, Any]:
    """What the service counted over all its paths."""
    inside = run.inside
    counts = {name: getattr(inside, name, None) for name in ("echoes", "bytes", "fallbacks")}
    latency = inside.latency if inside else None
    figures = {name: latency.percentile(q) if latency else None for name, q in PERCENTILES.items()}
    figures["max"] = latency.max if latency else None
    return {f"inside_{name}": n for name, n in counts.items()} | {
        f"inside_{name}_ns": ns for name, ns in figures.items()
    }
