# SPDX-License-Identifier: MIT
"""``kecho-ctl --print-completion``: the completion script of a shell, made by shtab."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from kecho.backends.base import MODES
from kecho.model import config
from kecho.model.errors import Unavailable

SHELLS = ("bash", "zsh", "fish")
# The values to complete for an option or argument of this name.
_WORDS = {"mode": ("auto", *MODES), "path": config.PATH_CHOICES, "engine": config.ENGINES}
_SERVICES = {"name", "target", "targets", "words"}
_FILES = {"plot", "csv", "json", "output", "results"}


def print_completion(parser: argparse.ArgumentParser, shell: str) -> int:
    """Prints the script; returns the exit code. Raises Unavailable without shtab."""
    try:
        import shtab
    except ImportError as e:
        raise Unavailable("the completion script is made by shtab, which is not installed", "pip install shtab") from e
    for action in _actions(parser):
        complete: Any = None
        if action.dest in _WORDS:
            complete = shtab.cmd(f"printf '%s\\n' {' '.join(_WORDS[action.dest])}")
        elif action.dest in _SERVICES:
            complete = shtab.cmd("ls /run/kecho 2>/dev/null")
        elif action.dest in _FILES and action.nargs != 0:
            complete = shtab.FILE
        if complete:
            action.complete = complete  # type: ignore[attr-defined]
    print(shtab.complete(parser, shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The actions of the parser and of its commands' parsers."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
