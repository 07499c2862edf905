# SPDX-License-Identifier: MIT
"""Types of option values for argparse. Errors are one line."""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from kecho.cli.options import is_number
from kecho.model.errors import UsageError, one_line

T = TypeVar("T")

PICTURES = (".png", ".svg", ".pdf")


def list_of(one: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    """A type: values separated by commas, none twice."""

    def parse(text: str) -> tuple[T, ...]:
        found = tuple(one(part) for part in text.split(","))
        if len(set(found)) < len(found):
            raise argparse.ArgumentTypeError(f"{text!r} names a value twice")
        return found

    return parse


def variants(text: str) -> tuple[str, ...]:
    """The variants of ``bench --compare``."""
    from kecho.bench import services

    try:
        return services.parse(text)
    except UsageError as e:
        raise argparse.ArgumentTypeError(str(e)) from e


def file(text: str) -> str:
    """A file that can be written. It is tried before the runs."""
    from kecho.bench import outputs
    from kecho.bench.plan import STDOUT

    if text != STDOUT:
        try:
            outputs.check(text)
        except OSError as e:  # its file may be a temporary one
            raise argparse.ArgumentTypeError(f"cannot write to {text!r}: {e.strerror or one_line(e)}") from e
    return text


def folder(text: str) -> str:
    """A folder in which files can be made. It is made and tried before the runs."""
    try:
        Path(text).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=text):
            return text
    except OSError as e:
        raise argparse.ArgumentTypeError(f"cannot write to {text!r}: {one_line(e)}") from e


def picture(text: str) -> str:
    """A file name with a suffix of a format that can be drawn."""
    if Path(text).suffix not in PICTURES:
        raise argparse.ArgumentTypeError(f"{text!r} must end in one of {', '.join(PICTURES)}")
    return file(text)


def cpu_list(text: str) -> str:
    """A list of CPUs."""
    from kecho.kernel import cpus

    try:
        cpus.parse(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from e
    return text


def whole(text: str) -> int:
    """A whole number above 0."""
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def size(text: str) -> int:
    """A size in bytes, with K or M as a suffix."""
    factor = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:].upper(), 1)
    return whole(text[:-1] if factor > 1 else text) * factor


def number(fits: Callable[[float], bool], what: str) -> Callable[[str], float]:
    """A type: a number that `fits`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan  # never fits
        if not fits(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of {what}")
        return value

    return parse


_requests = number(lambda value: 0 < value <= 1e8, "requests a second, at most 100M")


def rate(text: str) -> float:
    """Requests a second; k and M may follow, for thousands and millions."""
    factor = {"K": 1e3, "M": 1e6}.get(text[-1:].upper(), 1.0)
    return _requests(f"{float(text[:-1]) * factor:.15g}" if factor > 1 and is_number(text[:-1]) else text)


percentile = number(lambda value: 0 < value < 100, "percent between 0 and 100")

seconds = number(lambda value: 0 <= value <= 86400, "seconds from 0 to 86400")
