# SPDX-License-Identifier: MIT
"""``kecho-ctl stats``: shows echoes, bytes and latency histograms."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from kecho.cli.options import Subparsers, add_command, positive, width
from kecho.model import config


def add(commands: Subparsers) -> None:
    """Adds the command to the parser."""
    parser = add_command(
        commands,
        "stats",
        run,
        "show echoes, bytes and latency histograms, path by path",
        """\
examples:
  kecho-ctl stats                    since the service came up
  kecho-ctl stats 1                  what each second brought, until Ctrl-C
  kecho-ctl stats 1 10 --json        ten of them, one object a line
  kecho-ctl stats --plot latency.png
""",
    )
    parser.add_argument("interval", nargs="?", metavar="INTERVAL", help="seconds; show what each one brought")
    parser.add_argument("count", nargs="?", metavar="COUNT", help="end after that many")
    parser.add_argument("--name", default=config.DEFAULT_NAME, help="of the service (default %(default)s)")
    parser.add_argument("--per-cpu", action="store_true", help="each CPU by itself too")
    parser.add_argument("--json", action="store_true", help="print an object a line (docs/metrics.md)")
    parser.add_argument("--plot", metavar="FILE", help="draw the histograms into FILE (.png, .svg, .pdf)")


def run(args: argparse.Namespace) -> int:
    """Runs it; returns the exit code."""
    from kecho.service.client import Client
    from kecho.show import terminal

    # `stats NAME` is what one types after `down NAME`.
    if args.interval is not None and not args.interval[:1].isdigit() and args.count is None:
        args.name, args.interval = args.interval, None
    interval = positive(args.interval, "INTERVAL", float)
    count = positive(args.count, "COUNT", int)
    service = Client(args.name)
    last = service.snapshot()
    if interval is None:
        _show(last, args)
        return 0
    due = time.monotonic()
    while count is None or count > 0:
        due += interval
        time.sleep(max(0.0, due - time.monotonic()))
        now = service.snapshot()
        since = now.since(last, time.monotonic_ns())
        if args.json:
            print(json.dumps(since.to_json()), flush=True)
        else:
            print(terminal.stats_text(since, per_cpu=args.per_cpu, width=width(), interval=True), flush=True)
        last = now
        count = None if count is None else count - 1
    if args.plot:
        _show(last, args)
    return 0


def _show(snapshot: Any, args: argparse.Namespace) -> None:
    from kecho.show import terminal

    if args.plot:
        from kecho.show.stats_plot import plot_stats

        plot_stats(snapshot, args.plot)
    if args.interval is not None:
        return
    if args.json:
        print(json.dumps(snapshot.to_json()))
    else:
        print(terminal.stats_text(snapshot, per_cpu=args.per_cpu, width=width()), end="")
