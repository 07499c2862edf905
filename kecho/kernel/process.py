# SPDX-License-Identifier: MIT
"""This process: its signals, descriptors and name, and the parent that it ends with."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import traceback
from collections.abc import Callable, Collection, Iterator
from typing import Any, NoReturn

from kecho.kernel import libc
from kecho.model.errors import KechoError

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


def in_child(name: str, work: Callable[[], object]) -> tuple[Any, str]:
    """The result of `work`, as JSON gives it back, and what was written to standard error. Raises OSError.

    `work` runs in a process of that name, whose memory and descriptors end with it. The result is None if it failed or
    was killed. The last line on standard error is the exception, if there was one.
    """
    parent, receiving, sending = os.getpid(), *os.pipe()
    with open(os.memfd_create(name), "r+b") as said, open(receiving, "rb") as pipe:
        try:
            pid = os.fork()
            if pid == 0:
                _work(name, work, parent, sending, said.fileno())
        finally:
            os.close(sending)
        answer = pipe.read()
        _, status = os.waitpid(pid, 0)
        said.seek(0)
        return None if status else json.loads(answer), said.read().decode(errors="replace").strip()


def _work(name: str, work: Callable[[], object], parent: int, sending: int, stderr: int) -> NoReturn:
    """Runs the child. What it has inherited of signal handling must not reach its parent."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        end_with_parent(parent, signal.SIGKILL)
        set_name(name)
        os.dup2(stderr, 2)
        with open(sending, "w") as pipe:
            json.dump(work(), pipe)
        code = 0
    except KechoError as e:
        os.write(2, str(e).encode())
    except BaseException as e:
        os.write(2, "".join(traceback.format_exception(e)).encode())
    finally:
        os._exit(code)


def ends_by() -> int:
    """The signal that `end_with_parent` has set, or 0. A change of user clears it."""
    found = ctypes.c_int()
    libc.prctl(_PR_GET_PDEATHSIG, ctypes.addressof(found))
    return found.value
