# SPDX-License-Identifier: MIT
"""``kecho-ctl plot``: draws saved results of bench, and saved histograms of stats."""

from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING

from kecho.cli import values
from kecho.cli.options import Parser
from kecho.model.errors import KechoError, UsageError, one_line

if TYPE_CHECKING:
    from kecho.model.snapshot import Snapshot

_EXAMPLES = """\
Several results of bench are drawn into one picture, and so are several files of stats. The intervals in a file of stats
are added up.

examples:
  kecho-ctl bench --json=result.json && kecho-ctl plot result.json -o result.png
  kecho-ctl plot results/last.json -o out.svg      the last run in this checkout
  kecho-ctl plot monday.json friday.json -o out.png
  kecho-ctl stats 1 60 --json >minute.json && kecho-ctl plot minute.json -o minute.png
"""


def add(parser: Parser) -> None:
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "results",
        nargs="+",
        metavar="RESULT",
        help="a file that `kecho-ctl bench --json=FILE` or `kecho-ctl stats --json >FILE` wrote",
    )
    parser.add_argument(
        "-o", "--output", type=values.picture, required=True, metavar="FILE", help="the picture: .png, .svg or .pdf"
    )


def run(args: argparse.Namespace) -> int:
    from kecho.bench import result
    from kecho.show import bench_plot, stats_plot

    snapshots = {path: found for path in args.results if (found := _snapshot(path))}
    results = {path: result.load(path) for path in args.results if path not in snapshots}
    if results and snapshots:
        raise UsageError("results of bench and histograms of stats do not fit into one picture")
    if results:
        bench_plot.plot_bench(results, args.output)
    else:
        stats_plot.plot_stats(list(snapshots.values()), args.output)
    return 0


def _snapshot(path: str) -> Snapshot | None:
    """What ``stats --json`` wrote to a file, its intervals added up; None for another file. Raises KechoError."""
    from kecho.model.snapshot import Snapshot

    try:
        objects = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, RecursionError):
        return None
    if not objects or not all(isinstance(obj, dict) and "paths" in obj for obj in objects):
        return None
    try:
        return functools.reduce(Snapshot.__add__, map(Snapshot.from_json, objects))
    except (ValueError, KeyError, TypeError) as e:
        raise KechoError(f"{path}: {one_line(e)}") from e
