# SPDX-License-Identifier: MIT
"""Loads and unloads kernel modules by system calls: errors are numbers, and no program is run."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from kecho.kernel import libc

# finit_module(2), delete_module(2); include/uapi/asm-generic/unistd.h and arch/x86/entry/syscalls/syscall_64.tbl
_FINIT_MODULE = {"x86_64": 313, "aarch64": 273}
_DELETE_MODULE = {"x86_64": 176, "aarch64": 106}
_COMPRESSED_FILE = 4  # MODULE_INIT_COMPRESSED_FILE of include/uapi/linux/module.h, from 5.17


def load(path: Path, parameters: str) -> None:
    """Loads a module. Raises OSError, also with the error that the module's init function returned."""
    flags = 0 if path.suffix == ".ko" else _COMPRESSED_FILE
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc.call("syscall", _FINIT_MODULE[platform.machine()], fd, parameters.encode(), flags)
    finally:
        os.close(fd)


def unload(name: str) -> None:
    """Unloads a module. Raises OSError (EWOULDBLOCK: it is in use)."""
    libc.call("syscall", _DELETE_MODULE[platform.machine()], name.encode(), os.O_NONBLOCK)
