# SPDX-License-Identifier: MIT
"""Shared by the commands: their parsers, types of values, and the width of the output."""

from __future__ import annotations

import argparse
import itertools
import re
import shutil
import sys
import textwrap
from collections.abc import Callable
from typing import Any, NoReturn, TextIO, TypeVar

from kecho.model import config
from kecho.model.errors import UsageError

T = TypeVar("T", int, float)

_LEAST_COLUMNS = 20  # for what is said of a command in an example


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Sentences fill the terminal's width; lines that begin with spaces, examples, keep to themselves.

    What such a line says after its command goes on below where it began, if that leaves room. No word is broken.
    """

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines: list[str] = []
        for shaped, group in itertools.groupby(text.splitlines(), lambda line: line[:1] in ("", " ")):
            if shaped:
                for line in group:
                    lines += textwrap.wrap(line, width, subsequent_indent=_below(line, width), break_on_hyphens=False)
                    lines += [] if line else [""]
            else:
                lines += textwrap.wrap(" ".join(group), width, break_on_hyphens=False)
        return "".join(f"{indent}{line}\n" for line in lines)


def _below(line: str, width: int) -> str:
    """The indent of what does not fit into a line: where two spaces or more end its first part, if there is room."""
    first = re.match(r" *\S.*?  +(?=\S)", line)
    return " " * (first.end() if first and first.end() + _LEAST_COLUMNS <= width else 6)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line that names the argument. Options may stand among the arguments of a list.

    `alone` are options whose value may only follow a ``=``, with the value that they have without one: the word after
    them is another argument.
    """

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.alone: dict[str, str] = {}

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = sys.argv[1:] if args is None else args
        found, left = super().parse_known_args(
            [f"{word}={self.alone[word]}" if word in self.alone else word for word in words], namespace
        )
        # argparse gives a list only what stands before the next option.
        several = next((one for one in self._get_positional_actions() if one.nargs in ("*", "+")), None)
        if several and not any(word.startswith("-") for word in left):
            setattr(found, several.dest, [*getattr(found, several.dest), *left])
        elif left:
            self.error(f"unrecognized arguments: {' '.join(left)}")
        return found, []

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def add_name(parser: argparse.ArgumentParser, nargs: str = "?") -> None:
    parser.add_argument(
        "name", nargs=nargs, metavar="NAME", help=f"the name of the service (default {config.DEFAULT_NAME})"
    )


def integer(text: str) -> int:
    """A whole number, for argparse: ASCII digits with a sign, of limited length."""
    if not re.fullmatch(r"-?[0-9]{1,30}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def is_number(text: str) -> bool:
    """Is `text` a number, and not the name of a service?"""
    return re.fullmatch(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?", text, re.IGNORECASE) is not None


def positive(text: str | None, what: str, kind: Callable[[str], T]) -> T | None:
    """The value of an argument called `what`, above 0 and below 10^9; None for None. Raises UsageError."""
    if text is None:
        return None
    try:
        value = kind(text) if is_number(text) else None
    except ValueError:
        value = None
    if value is None or not 0 < value < 1e9:
        raise UsageError(f"{what} {text}: must be a number above 0")
    return value


def add_wide(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument("--wide", action="store_true", help="all columns of the tables, wider than the terminal or not")


def columns() -> int:
    """Columns of the terminal; 80 for what is read elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 80


def table_width(wide: bool) -> int | None:
    """Columns that a table may have: those of the terminal. None for all it has, as `wide` wants, and programs."""
    return columns() if sys.stdout.isatty() and not wide else None


def folded(line: str, stream: TextIO) -> str:
    """A line for people: in a terminal as many as its width asks for, between words; elsewhere as it is."""
    if not stream.isatty():
        return line
    fits = shutil.get_terminal_size().columns
    return textwrap.fill(line, fits, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def say(line: str) -> None:
    """Prints an error or a warning on stderr, at once: it may make the user stop what runs."""
    print(folded(f"kecho-ctl: {line}", sys.stderr), file=sys.stderr, flush=True)


def width() -> int:
    """Columns for what reads badly in very long lines."""
    return min(columns(), 100)
