# SPDX-License-Identifier: MIT
"""``kecho-ctl down``: takes services down."""

from __future__ import annotations

import argparse

from kecho.cli.options import Parser, add_name, say
from kecho.model import config
from kecho.model.errors import KechoError, one_line


def add(parser: Parser) -> None:
    add_name(parser, "*")
    parser.add_argument("--all", action="store_true", help="take every service down")


def run(args: argparse.Namespace) -> int:
    from kecho.service import rundir
    from kecho.service.client import Client

    failed: list[KechoError] = []
    for name in rundir.names() if args.all else args.name or [config.DEFAULT_NAME]:
        try:
            Client(name).down()
        except KechoError as e:
            failed.append(e)
        else:
            print(f"{name} is down")
    for error in failed[:-1]:
        say(one_line(error))
    if failed:
        raise failed[-1]
    return 0
