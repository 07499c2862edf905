# SPDX-License-Identifier: MIT
"""The commands of ``kecho-ctl``, one a module, and the parser made of them all."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from importlib import import_module

from kecho import __version__
from kecho.cli.completion import SHELLS
from kecho.cli.options import HelpFormatter, Parser

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

# In the order in which --help lists them. Each is a module, which adds its options, and runs the command.
COMMANDS = {
    "up": "bring a service up",
    "down": "take services down, and clear away what dead ones left",
    "status": "list services and their connections",
    "stats": "show echoes, bytes and latency, path by path, as the kernel has counted them",
    "reset": "count from here on",
    "check": "say by one line and the exit code whether a server echoes",
    "logs": "print the log of a service, which is empty where nothing went wrong",
    "bench": "measure the response time of services and of any echo server",
    "plot": "draw saved results of bench, and saved histograms of stats",
    "tune": "show which limits of the system a run would hit, and put back what a killed run left raised",
    "doctor": "say what this machine can run, what is missing and what mends it",
}


def build_parser(names: Collection[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """The parser of the command line, with the options of these commands. Completion and the man page have all.

    What other commands import is not loaded: --help needs none of it, and a service would hold it for as long as it is
    up.
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
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", parser_class=Parser)
    for name, text in COMMANDS.items():
        command = commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", formatter_class=HelpFormatter
        )
        if name in names:
            module = import_module(f"kecho.cli.{name}")
            module.add(command)
            command.set_defaults(run=module.run)
    return parser
