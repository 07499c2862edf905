# SPDX-License-Identifier: MIT
"""Finds the native programs ``bench`` and ``user-echo-server``, installed or built in the checkout."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from kecho.model.errors import Unavailable

CHECKOUT = Path(__file__).resolve().parents[2]


def _places() -> Iterator[Path]:
    if libexec := os.environ.get("KECHO_LIBEXEC"):
        yield Path(libexec)
    yield Path(sys.prefix) / "libexec"
    yield CHECKOUT / "build"


def find(name: str) -> Path:
    """The path of a program. Raises Unavailable, with what builds it, if there is none."""
    for place in _places():
        program = place / name
        if program.is_file() and os.access(program, os.X_OK):
            return program
    if (CHECKOUT / "Makefile").exists():
        raise Unavailable(f"{name} is not built", "make")
    raise Unavailable(f"{name} is not installed, which pip does not build", "make install, from a checkout or an sdist")
