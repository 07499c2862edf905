# SPDX-License-Identifier: MIT
"""``kecho-ctl plot``: draws saved results of bench."""

from __future__ import annotations

import argparse

from kecho.cli import values
from kecho.cli.options import Parser

_EXAMPLES = """\
examples:
  kecho-ctl bench --json=result.json && kecho-ctl plot result.json -o result.png
  kecho-ctl plot results/last.json -o out.svg      the last run in this checkout
  kecho-ctl plot monday.json friday.json -o out.png
"""


def add(parser: Parser) -> None:
    parser.epilog = _EXAMPLES
    parser.add_argument("results", nargs="+", metavar="RESULT", help="a file that `kecho-ctl bench --json=FILE` wrote")
    parser.add_argument(
        "-o", "--output", type=values.picture, required=True, metavar="FILE", help="the picture: .png, .svg or .pdf"
    )


def run(args: argparse.Namespace) -> int:
    from kecho.bench.result import load
    from kecho.show import bench_plot

    bench_plot.plot_bench({path: load(path) for path in args.results}, args.output)
    return 0
