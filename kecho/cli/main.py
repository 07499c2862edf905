# SPDX-License-Identifier: MIT
"""``kecho-ctl``: runs one command; an error is one line and an exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence

from kecho.cli.commands import build_parser
from kecho.cli.completion import print_completion
from kecho.model.errors import KechoError, one_line


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        parser = build_parser()
        args = parser.parse_args(argv)
        if args.print_completion:
            return print_completion(parser, args.print_completion)
        if args.command is None:
            parser.print_help()
            return 2
        return int(args.run(args))
    except KechoError as e:
        print(f"kecho-ctl: {one_line(e)}", file=sys.stderr)
        return e.exit_code
    except OSError as e:
        print(f"kecho-ctl: {one_line(e)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            os.write(2, b"\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
