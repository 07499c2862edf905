# SPDX-License-Identifier: MIT
"""The commands of ``kecho-ctl``, one a module, and the parser made of them all."""

from __future__ import annotations

import argparse
from importlib import import_module

from kecho import __version__
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

files:
  /run/kecho/NAME         a service that is up: its state, log and control socket
  /var/cache/kecho        compiled BPF programs; may be removed at any time

exit status:
  0 done; 1 failed while running; 2 wrong usage; 3 this machine cannot (the message says what is missing)
"""

# The modules, in the order in which --help lists them. Each adds its parser, and with it `run`, which returns the exit
# code.
COMMANDS = ("up", "down", "status", "stats", "reset", "check", "logs", "bench", "plot", "tune", "doctor")


def build_parser(command: str = "") -> argparse.ArgumentParser:
    """The parser of one command, or else of the whole command line. Completion and the man page are made from it too.

    What other commands import is not loaded then: a service would hold it for as long as it is up.
    """
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
    for name in (command,) if command in COMMANDS else COMMANDS:
        import_module(f"kecho.cli.{name}").add(commands)
    return parser
