# SPDX-License-Identifier: MIT
"""What can go wrong, as exceptions that carry the exit code and the one line a user sees."""

from __future__ import annotations

import errno

AS_ROOT = "run it as root, with sudo"  # the remedy for what is refused to others


class KechoError(Exception):
    """Something failed while running. Its text is one line; exit code 1."""

    exit_code = 1


class UsageError(KechoError):
    """The command line or the configuration makes no sense; exit code 2."""

    exit_code = 2


class Unavailable(KechoError):
    """This machine cannot; exit code 3. Says what is missing and what mends it."""

    exit_code = 3

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(f"{reason}: {remedy}" if remedy else reason)
        self.reason = reason
        self.remedy = remedy


def one_line(error: BaseException) -> str:
    """The text of an error on one line, without control characters: parts of it may come from other users."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, OSError) and error.errno == errno.EMFILE:
        text += " (ulimit -n)"  # whatever file it was
    elif isinstance(error, OSError) and error.filename:
        text = f"{error.filename}: {text}"
    text = " ".join(text.split()) or type(error).__name__
    return "".join(sign if sign.isprintable() else "?" for sign in text)
