# SPDX-License-Identifier: MIT
"""Sysctls by name. Those under net. belong to the network namespace of the thread that opens them."""

from __future__ import annotations

from pathlib import Path

SOMAXCONN = "net.core.somaxconn"


def path(name: str) -> Path:
    """The file of a sysctl."""
    return Path("/proc/sys", *name.split("."))


def read(name: str) -> str:
    """The value of a sysctl, its words separated by one space."""
    return " ".join(path(name).read_text().split())


def somaxconn() -> int:
    """The longest accept queue that a listener can have. It is a service's default backlog.

    A path that answers before accept() fills the queue quickly.
    """
    return int(read(SOMAXCONN))
