# SPDX-License-Identifier: MIT
"""The commands of ``kecho-ctl``, one a module, and the parser made of them all."""

from __future__ import annotations

import argparse

from kecho import __version__
from kecho.cli import bench, check, doctor, down, logs, plot, reset, stats, status, tune, up
from kecho.cli.completion import SHELLS
from kecho.cli.options import HelpFormatter, Parser, Subparsers

_DESCRIPTION = "Run a TCP echo service that never leaves the kernel, and measure it."
_EPILOG = """\
examples:
  sudo kecho-ctl up --mode sockmap       bring a service up; returns when it answers
  kecho-ctl status                       what is up
  kecho-ctl stats                        latency histograms, from inside the kernel
  kecho-ctl stats 1                      echoes, rate and percentiles of each second
  kecho-ctl bench                        measure what is up
  kecho-ctl check                        does it echo?
  sudo kecho-ctl down                    and take it down
  kecho-ctl doctor                       what this machine can run

exit status:
  0 done; 1 failed while running; 2 wrong usage; 3 this machine cannot (the message says what is missing)
"""

# In the order in which --help lists them. Each adds its parser, and with it `run`, which returns the exit code.
COMMANDS = (
    up.add,
    down.add,
    status.add,
    stats.add,
    reset.add,
    check.add,
    logs.add,
    bench.add,
    plot.add,
    tune.add,
    doctor.add,
)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line. Completion and the man page are made from it too."""
    parser = Parser(
        prog="kecho-ctl",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kecho {__version__}")
    parser.add_argument(
        "--print-completion",
        choices=SHELLS,
        metavar="SHELL",
        help=f"print the completion script for {', '.join(SHELLS)}",
    )
    commands: Subparsers = parser.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", parser_class=Parser
    )
    for add in COMMANDS:
        add(commands)
    return parser
