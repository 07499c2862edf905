# SPDX-License-Identifier: MIT
"""This process: its signals, descriptors and name, and the parent that it ends with."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Collection, Iterator

from kecho.kernel import libc

# include/uapi/linux/prctl.h
_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG, _PR_SET_NAME = 1, 2, 15


@contextlib.contextmanager
def blocked(*signals: signal.Signals) -> Iterator[None]:
    """Blocks these signals until the end of the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def heeded(*signals: signal.Signals) -> tuple[signal.Signals, ...]:
    """Those of `signals` that this process does not ignore. nohup, for one, starts it with SIGHUP ignored."""
    return tuple(number for number in signals if signal.getsignal(number) != signal.SIG_IGN)


def close_descriptors(keep: Collection[int] = ()) -> None:
    """Closes all inherited descriptors but standard input, output, error and `keep`."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2 and fd not in keep:
            with contextlib.suppress(OSError):  # the descriptor of the listing itself is closed already
                os.close(fd)


def leave_terminal() -> None:
    """Standard input, output and error become /dev/null; the working directory becomes /."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    if null > 2:
        os.close(null)
    os.chdir("/")


def set_name(name: str) -> None:
    """Sets the name that `ps` shows, of at most 15 bytes."""
    buffer = ctypes.create_string_buffer(name.encode())
    libc.prctl(_PR_SET_NAME, ctypes.addressof(buffer))


def end_with_parent(parent: int, by: int = signal.SIGTERM) -> None:
    """Has signal `by` sent when the thread that forked this process ends, or now if `parent` has ended already."""
    libc.prctl(_PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:
        os.kill(os.getpid(), by)


def ends_by() -> int:
    """The signal that `end_with_parent` has set, or 0. A change of user clears it."""
    found = ctypes.c_int()
    libc.prctl(_PR_GET_PDEATHSIG, ctypes.addressof(found))
    return found.value
