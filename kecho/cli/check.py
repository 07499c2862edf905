# SPDX-License-Identifier: MIT
"""``kecho-ctl check``: connects to an echo server, has a payload echoed, and compares every byte. For health checks."""

from __future__ import annotations

import argparse
import json
import os
import socket
import time

from kecho.cli.options import Parser, positive
from kecho.model import config
from kecho.model.errors import KechoError, one_line

_PAYLOAD_BYTES = 4096
_TIMEOUT_S = 5.0


_EXAMPLES = """\
Connects, sends 4,096 random bytes, shuts down its side, and compares what comes back to the end.

examples:
  kecho-ctl check                      the service called kecho
  kecho-ctl check base && echo well
  kecho-ctl check [::1]:7 --timeout 1  anybody's echo server
"""


def add(parser: Parser) -> None:
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "target",
        nargs="?",
        default=config.DEFAULT_NAME,
        help="the name of a service, or HOST:PORT (default %(default)s)",
    )
    parser.add_argument(
        "--timeout", metavar="S", help=f"wait S seconds at most for the whole echo (default {_TIMEOUT_S:g})"
    )
    parser.add_argument("--json", action="store_true", help="print an object: target, endpoint, ok, bytes, why")


def run(args: argparse.Namespace) -> int:
    """Returns the exit code: 1 if the server does not echo, or not the right bytes."""
    from kecho.bench import targets

    timeout_s = positive(args.timeout, "--timeout", float) or _TIMEOUT_S
    (target,) = targets.choose([args.target])
    who = args.target if args.target == target.endpoint else f"{args.target} ({target.endpoint})"
    sent = os.urandom(_PAYLOAD_BYTES)
    try:
        why = _compare(sent, _echo(target.host, target.port, sent, time.monotonic() + timeout_s))
    except TimeoutError:
        why = f"no whole echo within {timeout_s:g} s"
    except OSError as e:
        why = one_line(e)
    if args.json:
        found = {"target": args.target, "endpoint": target.endpoint, "ok": not why, "bytes": len(sent)}
        print(json.dumps({**found, "why": why or None}))
        return 1 if why else 0
    if why:
        raise KechoError(f"{who} does not echo: {why}")
    print(f"{who} echoes: {len(sent):,} bytes, each as it was sent")
    return 0


def _echo(host: str, port: int, sent: bytes, deadline_s: float) -> bytes:
    """Sends, and returns all that comes back. Raises TimeoutError once the deadline (time.monotonic) has passed."""
    received = bytearray()
    with socket.create_connection((host, port), _left(deadline_s)) as sock:
        sock.sendall(sent)
        sock.shutdown(socket.SHUT_WR)
        while len(received) <= len(sent):
            sock.settimeout(_left(deadline_s))
            if not (data := sock.recv(65536)):
                break
            received += data
    return bytes(received)


def _left(deadline_s: float) -> float:
    left = deadline_s - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _compare(sent: bytes, received: bytes) -> str:
    """How an echo differs from what was sent; "" if it does not."""
    if received == sent:
        return ""
    if len(received) > len(sent):
        return f"more than the {len(sent):,} bytes that were sent came back"
    differs = next((i for i, (a, b) in enumerate(zip(sent, received, strict=False)) if a != b), None)
    if differs is not None:
        return f"byte {differs:,} came back as another"
    return f"it ended after {len(received):,} of {len(sent):,} bytes"
