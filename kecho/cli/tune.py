# SPDX-License-Identifier: MIT
"""``kecho-ctl tune``: shows which limits of the system a run would hit."""

from __future__ import annotations

import argparse
import json

from kecho.cli.options import Parser, columns, integer
from kecho.model.errors import UsageError

_EXAMPLES = """\
`bench --tune` raises these limits for the time of the run.

examples:
  kecho-ctl tune --connections 15000      what so many connections at once need
  sudo kecho-ctl tune --restore           after a run that was killed; the next bench as root does it too
"""


def add(parser: Parser) -> None:
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "--connections",
        type=integer,
        default=10000,
        metavar="N",
        help="how many connections a run has at once (default %(default)s)",
    )
    parser.add_argument("--restore", action="store_true", help="restore the limits that a killed run left raised")
    parser.add_argument("--json", action="store_true", help="print an object (docs/metrics.md)")


def run(args: argparse.Namespace) -> int:
    from kecho.system import limits, tune

    if args.restore:
        said: list[str] = []
        said += map(tune.still_needed, tune.restore(said.append))
        print("\n".join(said or ["nothing was left raised"]))
        return 0
    connections = args.connections
    if connections < 1:
        raise UsageError(f"--connections {connections}: must be a number above 0")
    found = limits.examine(limits.Needs.of_run(connections, connections, paced=False), tune.current())
    print(json.dumps(found) if args.json else limits.text(found, columns()))
    return 0
