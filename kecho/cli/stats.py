# SPDX-License-Identifier: MIT
"""``kecho-ctl stats``: shows echoes, bytes and latency histograms."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kecho.cli.options import Parser, is_number, positive, width
from kecho.cli.values import picture
from kecho.model import config
from kecho.model.errors import UsageError

if TYPE_CHECKING:
    from kecho.model.snapshot import Snapshot
    from kecho.service.client import Client


_EXAMPLES = """\
examples:
  kecho-ctl stats                    since the service came up
  kecho-ctl stats 1                  a line a second for each path, until Ctrl-C
  kecho-ctl stats base 1 10          ten of them, of the service called base
  kecho-ctl stats 1 10 --histogram   the histogram of each interval
  kecho-ctl stats 1 10 --json        one object a line
  kecho-ctl stats --plot latency.png
"""


def add(parser: Parser) -> None:
    parser.epilog = _EXAMPLES
    parser.usage = "%(prog)s [options] [NAME] [INTERVAL [COUNT]]"
    parser.add_argument(
        "words",
        nargs="*",
        metavar="NAME INTERVAL COUNT",
        help=f"the service (default {config.DEFAULT_NAME}), the seconds of an interval, the number of intervals",
    )
    parser.add_argument("--name", help="the name of the service, if it looks like a number")
    parser.add_argument("--histogram", action="store_true", help="with INTERVAL: show histograms in place of lines")
    parser.add_argument("--per-cpu", action="store_true", help="show the histogram of each CPU too")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line (docs/metrics.md)")
    parser.add_argument(
        "--plot", type=picture, metavar="FILE", help="draw the histogram of what is shown: .png, .svg or .pdf"
    )


def run(args: argparse.Namespace) -> int:
    from kecho.service.client import Client

    words = list(args.words)
    name = words.pop(0) if words and not is_number(words[0]) else None
    if name and args.name:
        raise UsageError(f"{name} and --name {args.name}: name one service")
    if len(words) > 2:
        raise UsageError(f"{words[2]}: there is nothing after COUNT")
    interval = positive(words[0], "INTERVAL", float) if words else None
    count = positive(words[1], "COUNT", int) if words[1:] else None
    service = Client(name or args.name or config.DEFAULT_NAME)
    if interval is None:
        snapshot = service.snapshot()
        _draw(snapshot, args)
        _show(snapshot, args)
        return 0
    _watch(service, interval, count, args)
    return 0


def _watch(service: Client, interval_s: float, count: int | None, args: argparse.Namespace) -> None:
    """Shows the intervals. In the end, or on Ctrl-C, it draws what was shown."""
    from kecho.show import stats_lines

    shown = 0
    first = last = service.snapshot()
    try:
        for now in _every(service, interval_s, count):
            since = now.since(last, time.monotonic_ns())
            last = now  # first, so that a Ctrl-C as soon as the line is out finds it drawn
            if args.json or args.histogram or args.per_cpu:
                _show(since, args, interval=True)
            else:
                if shown % stats_lines.HEADER_EVERY == 0:
                    print(stats_lines.header())
                for line in stats_lines.interval_lines(since, time.time()):
                    print(line, flush=True)
                    shown += 1
    finally:
        if last is not first:
            _draw(last.since(first, time.monotonic_ns()), args)


def _every(service: Client, interval_s: float, count: int | None) -> Iterator[Snapshot]:
    due = time.monotonic()
    while count is None or count > 0:
        due += interval_s
        time.sleep(max(0.0, due - time.monotonic()))
        yield service.snapshot()
        count = None if count is None else count - 1


def _draw(snapshot: Snapshot, args: argparse.Namespace) -> None:
    if args.plot:
        from kecho.show.stats_plot import plot_stats

        plot_stats(snapshot, args.plot)


def _show(snapshot: Snapshot, args: argparse.Namespace, interval: bool = False) -> None:
    from kecho.show import terminal

    if args.json:
        print(json.dumps(snapshot.to_json()), flush=True)
        return
    text = terminal.stats_text(snapshot, per_cpu=args.per_cpu, width=width(), interval=interval)
    print(text, end="\n" if interval else "", flush=True)
