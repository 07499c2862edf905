# SPDX-License-Identifier: MIT
"""``kecho-ctl down``: takes services down."""

from __future__ import annotations

import argparse

from kecho.cli.options import Subparsers, add_command, add_name
from kecho.model import config


def add(commands: Subparsers) -> None:
    """Adds the command to the parser."""
    parser = add_command(commands, "down", run, "take services down, and clear away what dead ones left")
    add_name(parser, "*")
    parser.add_argument("--all", action="store_true", help="every service")


def run(args: argparse.Namespace) -> int:
    """Runs it; returns the exit code."""
    from kecho.service import rundir
    from kecho.service.client import Client

    for name in rundir.names() if args.all else args.name or [config.DEFAULT_NAME]:
        Client(name).down()
        print(f"{name} is down")
    return 0
