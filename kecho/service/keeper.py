# SPDX-License-Identifier: MIT
"""A process that stays root to remove the service's folder, since the controller gives up its privileges."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable
from typing import NoReturn

from kecho.kernel import privileges, process


class Keeper:
    """A context at whose end the keeper runs `task`. If this process is killed, the keeper ends without running it."""

    def __init__(self, task: Callable[[], None]) -> None:
        """Forks. To be called early: the keeper inherits every open descriptor."""
        self._sock, theirs = socket.socketpair()
        child = os.fork()
        if child == 0:
            _keep(theirs, task)
        theirs.close()
        os.waitpid(child, 0)

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, *_: object) -> None:
        """Returns when `task` is done and the keeper has ended, or when the keeper was killed."""
        with self._sock, contextlib.suppress(OSError):
            self._sock.sendall(b"x")
            self._sock.recv(1)

    def dismiss(self) -> None:
        """Ends the keeper without running `task`."""
        self._sock.close()


def _keep(controller: socket.socket, task: Callable[[], None]) -> NoReturn:
    """Runs the keeper: no child of the controller, without terminal and capabilities, and Ctrl-C does not end it."""
    try:
        if os.fork():
            os._exit(0)
        process.set_name("kecho-keeper")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        process.leave_terminal()
        process.close_descriptors({controller.fileno()})
        privileges.drop((), None)
        if controller.recv(1):
            task()
    finally:
        os._exit(0)
