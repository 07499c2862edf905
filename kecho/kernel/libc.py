# SPDX-License-Identifier: MIT
"""The C library, for what Python has no name for."""

from __future__ import annotations

import ctypes
import os

_lib = ctypes.CDLL(None, use_errno=True)


def call(function: str, *arguments: object) -> int:
    """What the function returns. Raises OSError, with errno, if that is below 0."""
    result: int = getattr(_lib, function)(*arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def prctl(option: int, *arguments: int) -> int:
    """prctl(2), its arguments as wide as it takes them. Raises OSError."""
    return call("prctl", option, *(ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]))
