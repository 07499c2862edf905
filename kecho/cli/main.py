# SPDX-License-Identifier: MIT
"""``kecho-ctl``: runs one command; an error is one line and an exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence

from kecho.cli import output
from kecho.cli.commands import build_parser
from kecho.cli.completion import print_completion
from kecho.cli.options import say
from kecho.model.errors import KechoError, one_line


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code. Without `argv` it is the program, and ends by SIGPIPE as others do."""
    if argv is None:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        sys.unraisablehook = _again
    output.prepare()
    code = _told(lambda: _run(argv))
    return _told(sys.stdout.flush) or code


def _again(unraisable: sys.UnraisableHookArgs) -> None:
    """Python ignores what a destructor raises. A signal that came meanwhile counts a moment later."""
    match unraisable.exc_value:
        case KeyboardInterrupt():
            number = int(signal.SIGINT)
        case SystemExit(code=int(code)) if code > 128:  # kecho.system.tune
            number = code - 128
        case _:
            sys.__unraisablehook__(unraisable)
            return
    threading.Timer(0.01, os.kill, (os.getpid(), number)).start()


def _run(argv: Sequence[str] | None) -> int:
    words = sys.argv[1:] if argv is None else argv
    parser = build_parser(words[:1])
    try:
        args = parser.parse_args(words)
    except SystemExit as e:  # after --help or --version
        return int(e.code or 0)
    if args.print_completion:
        return print_completion(build_parser(), args.print_completion)
    if args.command is None:
        parser.print_help()
        return 2
    return int(args.run(args))


def _told(step: Callable[[], int | None]) -> int:
    """Runs a step and returns its exit code. Says an error in one line, which a terminal may fold."""
    try:
        return step() or 0
    except KechoError as e:
        code, line = e.exit_code, one_line(e)
    except OSError as e:
        code, line = 1, one_line(e)
    except KeyboardInterrupt:
        code, line = 130, ""
    with contextlib.suppress(OSError):  # stderr is closed
        if line:
            say(line)
        else:
            print(file=sys.stderr)  # below ^C
    return code


if __name__ == "__main__":
    sys.exit(main())
