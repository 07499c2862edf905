# SPDX-License-Identifier: MIT
"""Standard output and error: always open, within the terminal's encoding, with write errors reported."""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import TYPE_CHECKING

from kecho.model.units import ascii_only

if TYPE_CHECKING:
    from typing_extensions import Buffer

_PLAIN = "kecho-plain"


class _Named(io.FileIO):
    """A standard stream with its name in errors. After the first error it goes to /dev/null."""

    def __init__(self, fd: int, name: str) -> None:
        super().__init__(fd, "w", closefd=False)
        self._name = name

    def write(self, data: Buffer, /) -> int:
        try:
            return super().write(data)
        except OSError as e:
            null = os.open(os.devnull, os.O_WRONLY)  # takes the rest of the buffers: one error is enough
            os.dup2(null, self.fileno())
            os.close(null)
            raise OSError(e.errno, e.strerror, self._name) from None


def prepare() -> None:
    """Makes the standard streams writable. A descriptor that the caller has closed goes to /dev/null.

    Characters that the encoding lacks are printed in ASCII. In locale C all are, since Python takes it for UTF-8.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor
    codecs.register_error(_PLAIN, _plain)
    if sys.stdout is sys.__stdout__:  # a caller of main() may have replaced it
        sys.stdout = _open(1, "standard output", sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _open(2, "standard error", sys.stderr)


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return ascii_only(error.object[error.start : error.end]), error.end


def _open(fd: int, name: str, was: io.TextIOWrapper | None) -> io.TextIOWrapper:
    encoding = "ascii" if was is None or _locale_is_c() else was.encoding
    lines = fd == 2 or os.isatty(fd)
    return io.TextIOWrapper(io.BufferedWriter(_Named(fd, name)), encoding, _PLAIN, line_buffering=lines)


def _locale_is_c() -> bool:
    if locale := os.environ.get("LC_ALL"):
        return locale in ("C", "POSIX")
    locale = os.environ.get("LC_CTYPE")
    if locale and locale != "C.UTF-8":  # Python sets this in locale C (PEP 538), so it says nothing
        return False
    return os.environ.get("LANG") in ("C", "POSIX")
