# SPDX-License-Identifier: MIT
"""Sysctls by name. Those under net. belong to the network namespace of the thread that opens them."""

from __future__ import annotations

from pathlib import Path


def path(name: str) -> Path:
    """Where the kernel has it."""
    return Path("/proc/sys", *name.split("."))


def read(name: str) -> str:
    """Its value, the words one space apart."""
    return " ".join(path(name).read_text().split())
