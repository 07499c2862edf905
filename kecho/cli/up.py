# SPDX-License-Identifier: MIT
"""``kecho-ctl up``: brings a service up."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from typing import Any

from kecho.backends.base import AUTO, MODES
from kecho.cli.options import Subparsers, add_command, integer
from kecho.model import config
from kecho.model.errors import UsageError

# Options that only some modes have, by their names in the parsed arguments.
_ONLY = {
    "path": ("sockmap",),
    "limit": ("sockmap",),
    "no_latency": ("sockmap", "mirror"),
    "keep_secret": ("mirror",),
    "bench": ("module",),
    "no_inline": ("module",),
    "engine": ("user",),
}


def add(commands: Subparsers) -> None:
    """Adds the command to the parser."""
    parser = add_command(
        commands,
        "up",
        run,
        "bring a service up",
        """\
examples:
  sudo kecho-ctl up                                      the best mode this machine can run
  sudo kecho-ctl up --mode sockmap --bind 0.0.0.0        for remote clients too
  sudo kecho-ctl up --mode user --name base --port 7007  a second service beside it
""",
    )
    parser.add_argument("--mode", default="auto", metavar="MODE", help=f"auto (default), {', '.join(MODES)}")
    parser.add_argument("--name", default=config.DEFAULT_NAME, help="of the service (default %(default)s)")
    parser.add_argument("--port", type=integer, default=config.DEFAULT_PORT, help="default %(default)s")
    parser.add_argument(
        "--bind",
        action="append",
        metavar="ADDR",
        help=f"address to listen on; repeatable (default {' and '.join(config.DEFAULT_BINDS)})",
    )
    parser.add_argument(
        "--backlog",
        type=integer,
        default=config.DEFAULT_BACKLOG,
        metavar="N",
        help="connections that may wait to be accepted (default %(default)s)",
    )
    parser.add_argument(
        "--path",
        help="sockmap: local clients by egress (auto, default) or ingress, others by skb; or all by skb, or by user",
    )
    parser.add_argument(
        "--limit",
        type=integer,
        metavar="BYTES",
        help=f"sockmap: what a connection may have on its way in the kernel (default {config.DEFAULT_LIMIT_BYTES})",
    )
    parser.add_argument(
        "--bench",
        type=integer,
        metavar="0|1",
        help="module: 0 (default) an unbound workqueue, 1 a per-CPU one",
    )
    parser.add_argument(
        "--engine",
        metavar="NAME",
        help=f"user: what the server waits with, {' or '.join(config.ENGINES)} (default {config.ENGINES[0]})",
    )
    parser.add_argument(
        "--no-inline", action="store_true", default=None, help="module: echo on the workqueue, not in softirq"
    )
    parser.add_argument(
        "--no-latency", action="store_true", default=None, help="sockmap, mirror: take no time stamps, only count"
    )
    parser.add_argument(
        "--keep-secret", metavar="FILE", help="mirror: where it is, or is to be; a restart then keeps every connection"
    )
    parser.add_argument("--foreground", action="store_true", help="stay, and end on Ctrl-C")


def run(args: argparse.Namespace) -> int:
    """Runs it; returns the exit code."""
    from kecho.backends.base import backend, first_able
    from kecho.kernel import features
    from kecho.service.client import Client
    from kecho.service.controller import run_background, run_foreground

    given = {option: modes for option, modes in _ONLY.items() if getattr(args, option) is not None}
    mode = args.mode
    if mode != "auto":
        backend(mode)
        for option, modes in given.items():
            if mode not in modes:
                raise UsageError(f"--{option.replace('_', '-')} is for --mode {', '.join(modes)}")
    binds = tuple(args.bind) if args.bind else tuple(b for b in config.DEFAULT_BINDS if features.can_bind(b))
    chosen = {field: value for field, value in _fields(args).items() if value is not None}
    service = config.Config(mode=mode, name=args.name, port=args.port, binds=binds, backlog=args.backlog, **chosen)

    def bring_up(mode: str, why: str) -> int:
        def ready(line: str) -> None:
            print(line + (f" (auto chose {mode}: {why})" if why else ""), flush=True)

        if args.foreground:
            run_foreground(replace(service, mode=mode), ready)
            return 0
        line = run_background(replace(service, mode=mode))
        try:
            ready(line)
        except OSError:  # nobody will know that it is up
            Client(service.name).down()
            raise
        return 0

    if mode != "auto":
        return bring_up(mode, "")
    return first_able([one for one in AUTO if all(one in modes for modes in given.values())], bring_up)


def _fields(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of a Config that only some modes have; None for what was not given."""
    return {
        "path": args.path,
        "limit_bytes": args.limit,
        "latency": False if args.no_latency else None,
        "bench": args.bench,
        "inline": False if args.no_inline else None,
        "engine": args.engine,
        "keep_secret": None if args.keep_secret is None else os.path.abspath(args.keep_secret),
    }
