# SPDX-License-Identifier: MIT
"""Calls of the C library that Python has no function for."""

from __future__ import annotations

import ctypes
import os

_lib = ctypes.CDLL(None, use_errno=True)


def call(function: str, *arguments: object) -> int:
    """Calls a function and returns its result. Raises OSError with errno if that is below 0."""
    result: int = getattr(_lib, function)(*arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def prctl(option: int, *arguments: int) -> int:
    """prctl(2) with arguments of type unsigned long. Raises OSError."""
    return call("prctl", option, *(ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]))
