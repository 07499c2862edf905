# SPDX-License-Identifier: MIT
"""``kecho-ctl reset``: resets the counts of a service."""

from __future__ import annotations

import argparse

from kecho.cli.options import Subparsers, add_command, add_name
from kecho.model import config


def add(commands: Subparsers) -> None:
    parser = add_command(commands, "reset", run, "count from here on")
    add_name(parser)


def run(args: argparse.Namespace) -> int:
    from kecho.service.client import Client

    Client(args.name or config.DEFAULT_NAME).reset()
    return 0
