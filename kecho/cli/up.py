# SPDX-License-Identifier: MIT
"""``kecho-ctl up``: brings a service up."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kecho.backends.base import AUTO, MODES
from kecho.cli import values
from kecho.cli.options import Parser, folded, integer
from kecho.model import config
from kecho.model.errors import UsageError

# The options that not every mode has, by the field of Config that they set.
_OPTIONS = {
    "path": "--path",
    "limit_bytes": "--limit",
    "latency": "--no-latency",
    "keep_secret": "--keep-secret",
    "busy_poll_us": "--busy-poll",
    "cpus": "--cpus",
    "bench": "--bench",
    "inline": "--no-inline",
    "engine": "--engine",
}


_EXAMPLES = """\
examples:
  sudo kecho-ctl up                                      the best mode this machine can run
  sudo kecho-ctl up --mode sockmap --bind 0.0.0.0        for remote clients too
  sudo kecho-ctl up --mode user --name base --port 7007  a second service beside it
"""


def add(parser: Parser) -> None:
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "--mode", default="auto", metavar="MODE", help=f"how to echo: auto (default), {', '.join(MODES)}"
    )
    parser.add_argument("--name", default=config.DEFAULT_NAME, help="the name of the service (default %(default)s)")
    parser.add_argument(
        "--port", type=integer, default=config.DEFAULT_PORT, help="the port to listen on (default %(default)s)"
    )
    parser.add_argument(
        "--bind",
        action="append",
        metavar="ADDR",
        help=f"an address to listen on; repeatable (default {' and '.join(config.DEFAULT_BINDS)})",
    )
    parser.add_argument(
        "--backlog",
        type=integer,
        metavar="N",
        help="connections that may wait to be accepted (default: what net.core.somaxconn allows)",
    )
    parser.add_argument("--foreground", action="store_true", help="stay in the foreground; Ctrl-C ends the service")

    _add_own(parser.add_argument_group("options of some modes"))


def _add_own(group: argparse._ArgumentGroup) -> None:
    """Adds the options of `_OPTIONS`. Each is None where it is not given."""
    group.add_argument(
        "--path",
        help="sockmap: egress (as auto, the default) or ingress for local clients, or skb or user for all",
    )
    group.add_argument(
        "--limit",
        dest="limit_bytes",
        type=values.size,
        metavar="BYTES",
        help="sockmap: what a connection may have in flight in the kernel, 4K to 1024M "
        f"(default {config.DEFAULT_LIMIT_BYTES >> 20}M)",
    )
    group.add_argument(
        "--bench",
        type=integer,
        metavar="0|1",
        help="module: use an unbound workqueue (0, default) or a per-CPU one (1)",
    )
    group.add_argument(
        "--engine",
        metavar="NAME",
        help=f"user: the engine of the server, {' or '.join(config.ENGINES)} (default {config.ENGINES[0]})",
    )
    group.add_argument(
        "--busy-poll",
        dest="busy_poll_us",
        type=integer,
        metavar="US",
        help=f"user, engine {config.ENGINES[0]}: look for a request for US µs before sleeping, which costs a CPU "
        "(default 0)",
    )
    group.add_argument(
        "--cpus",
        type=values.cpu_list,
        metavar="LIST",
        help="user, sockmap: run the process of the service on these CPUs, as in 0,2-3 (default: any)",
    )
    group.add_argument(
        "--no-inline",
        dest="inline",
        action="store_false",
        default=None,
        help="module: echo on the workqueue, not in softirq",
    )
    group.add_argument(
        "--no-latency",
        dest="latency",
        action="store_false",
        default=None,
        help="sockmap, mirror: take no time stamps, only count",
    )
    group.add_argument(
        "--keep-secret",
        type=os.path.abspath,
        metavar="FILE",
        help="mirror: keep the secret in FILE, so that a restart keeps connections",
    )


def run(args: argparse.Namespace) -> int:
    from kecho.backends.base import backend, first_able, modes_with
    from kecho.service.client import Client
    from kecho.service.controller import run_background, run_foreground

    own = {field: value for field in _OPTIONS if (value := getattr(args, field)) is not None}
    if args.mode != "auto":
        backend(args.mode)
        for field in own:
            if args.mode not in modes_with(field):
                raise UsageError(f"{_OPTIONS[field]} is for --mode {', '.join(modes_with(field))}")
    service = _config_of(args, own)

    def bring_up(mode: str, why: str) -> int:
        def ready(line: str) -> None:
            print(folded(line + (f" (auto chose {mode}: {why})" if why else ""), sys.stdout), flush=True)

        if args.foreground:
            run_foreground(replace(service, mode=mode), backend(mode)(), ready)
            return 0
        line = run_background(replace(service, mode=mode), backend(mode)())
        try:
            ready(line)
        except OSError:  # stdout is closed: nobody would know that the service is up
            Client(service.name).down()
            raise
        return 0

    if args.mode != "auto":
        return bring_up(args.mode, "")
    return first_able([mode for mode in AUTO if all(mode in modes_with(field) for field in own)], bring_up)


def _config_of(args: argparse.Namespace, own: Mapping[str, Any]) -> config.Config:
    """The service that the options ask for; `own` are the options of its mode. Raises UsageError."""
    from kecho.kernel import features, sysctl

    binds = args.bind or [bind for bind in config.DEFAULT_BINDS if features.can_bind(bind)]
    backlog = sysctl.somaxconn() if args.backlog is None else args.backlog
    return config.Config(mode=args.mode, name=args.name, port=args.port, binds=tuple(binds), backlog=backlog, **own)
