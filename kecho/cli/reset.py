# SPDX-License-Identifier: MIT
"""``kecho-ctl reset``: resets the counts of a service."""

from __future__ import annotations

import argparse

from kecho.cli.options import Parser, add_name
from kecho.model import config


def add(parser: Parser) -> None:
    add_name(parser)


def run(args: argparse.Namespace) -> int:
    from kecho.service.client import Client

    Client(args.name or config.DEFAULT_NAME).reset()
    return 0
