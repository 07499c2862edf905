# SPDX-License-Identifier: MIT
"""``kecho-ctl logs``: prints the log of a service, which has messages longer than a line."""

from __future__ import annotations

import argparse

from kecho.cli.options import Parser, add_name
from kecho.model import config
from kecho.model.errors import KechoError


def add(parser: Parser) -> None:
    add_name(parser)


def run(args: argparse.Namespace) -> int:
    from kecho.service import rundir

    name = args.name or config.DEFAULT_NAME
    if name not in rundir.names():
        raise KechoError(f"no service {name} is up, and none has left a log")
    try:
        text = (rundir.directory(name) / "log").read_text(errors="replace")
    except FileNotFoundError:
        return 0
    print(text, end="" if text.endswith("\n") or not text else "\n")
    return 0
