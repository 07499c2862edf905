# SPDX-License-Identifier: MIT
"""``kecho-ctl status``: lists services and their connections."""

from __future__ import annotations

import argparse
import json
from typing import Any

from kecho.cli.options import Parser, add_wide, columns, say, table_width
from kecho.model.errors import KechoError, Unavailable


def add(parser: Parser) -> None:
    parser.add_argument("name", nargs="*", metavar="NAME", help="show only these services, with all their connections")
    parser.add_argument("--json", action="store_true", help="print an object (docs/metrics.md)")
    add_wide(parser)


def run(args: argparse.Namespace) -> int:
    """Returns the exit code: 1 if a service that it lists is not up."""
    from kecho.service import client, rundir
    from kecho.show import terminal

    found = client.status_json()
    if args.name:
        known = {service["name"] for service in found["services"]}
        if missing := [name for name in args.name if name not in known]:
            raise KechoError(f"no service {missing[0]} is up")
        found["services"] = [service for service in found["services"] if service["name"] in args.name]
    for service in found["services"]:
        _add_sockets(service)
    for line in filter(None, map(rundir.damage, rundir.entries())):
        say(line)
    if args.json:
        print(json.dumps(found))
    else:
        room = table_width(args.wide)
        print(terminal.status_text(found["services"], width=room), end="")
        print(terminal.listen_text(found["services"], width=columns()), end="")
        print(terminal.sockets_text(found["services"], None if args.name else 10, room), end="")
    return 0 if all(service["state"] == "up" for service in found["services"]) else 1


def _add_sockets(service: dict[str, Any]) -> None:
    from kecho.backends.base import why_no_sockets
    from kecho.kernel import procfs, sockets

    service["sockets"] = None
    if service["state"] != "up":
        service["why"] = {"sockets": "the service is not up"}
    elif service["netns"] != procfs.netns_inode():
        service["why"] = {"sockets": "the service is in another network namespace"}
    elif why := why_no_sockets(service["mode"]):
        service["why"] = {"sockets": why}
    else:
        try:
            service["sockets"] = sockets.connections(service["port"])
        except Unavailable as error:
            service["why"] = {"sockets": str(error)}
