# SPDX-License-Identifier: MIT
"""``kecho-ctl up``: brings a service up."""

from __future__ import annotations

import argparse
from dataclasses import replace

from kecho.backends.base import MODES
from kecho.cli.options import Subparsers, add_command, integer
from kecho.model import config


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
        default="auto",
        help="sockmap: auto (default) serves local clients by msg and remote ones by skb; or msg, or skb",
    )
    parser.add_argument(
        "--limit",
        type=integer,
        default=config.DEFAULT_LIMIT_BYTES,
        metavar="BYTES",
        help="sockmap: what a connection may have on its way in the kernel (default %(default)s)",
    )
    parser.add_argument(
        "--bench",
        type=integer,
        default=0,
        metavar="0|1",
        help="module: 0 (default) an unbound workqueue, 1 a per-CPU one",
    )
    parser.add_argument(
        "--engine",
        default=config.ENGINES[0],
        metavar="NAME",
        help=f"user: what the server waits with, {' or '.join(config.ENGINES)} (default %(default)s)",
    )
    parser.add_argument("--no-inline", action="store_true", help="module: echo on the workqueue, not in softirq")
    parser.add_argument("--no-latency", action="store_true", help="sockmap: take no time stamps, only count")
    parser.add_argument("--foreground", action="store_true", help="stay, and end on Ctrl-C")


def run(args: argparse.Namespace) -> int:
    """Runs it; returns the exit code."""
    from kecho.backends.base import backend, choose
    from kecho.kernel import features
    from kecho.service.controller import run_background, run_foreground

    mode, why = args.mode, ""
    if mode != "auto":
        backend(mode)
    binds = tuple(args.bind) if args.bind else tuple(b for b in config.DEFAULT_BINDS if features.can_bind(b))
    service = config.Config(
        mode=mode,
        name=args.name,
        port=args.port,
        binds=binds,
        backlog=args.backlog,
        path=args.path,
        limit_bytes=args.limit,
        latency=not args.no_latency,
        bench=args.bench,
        inline=not args.no_inline,
        engine=args.engine,
    )
    if mode == "auto":
        mode, why = choose()
        service = replace(service, mode=mode)

    def ready(line: str) -> None:
        print(line + (f" (auto chose {mode}: {why})" if why else ""), flush=True)

    if args.foreground:
        run_foreground(service, ready)
    else:
        ready(run_background(service))
    return 0
