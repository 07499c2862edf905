# SPDX-License-Identifier: MIT
"""A process that stays root when the controller does not, for what is left to do: removing the service's folder."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable
from typing import NoReturn

from kecho.kernel import privileges, process


class Keeper:
    """A block at whose end the keeper runs `task`. It ends with this process, and then does nothing."""

    def __init__(self, task: Callable[[], None]) -> None:
        """Forks: to be called while there is nothing yet that the keeper would only hold on to."""
        self._sock, theirs = socket.socketpair()
        child = os.fork()
        if child == 0:
            _keep(theirs, task)
        theirs.close()
        os.waitpid(child, 0)

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, *_: object) -> None:
        """Returns when `task` is done and the keeper gone, or has been killed."""
        with self._sock, contextlib.suppress(OSError):
            self._sock.sendall(b"x")
            self._sock.recv(1)

    def dismiss(self) -> None:
        """The keeper ends, and does nothing."""
        self._sock.close()


def _keep(controller: socket.socket, task: Callable[[], None]) -> NoReturn:
    """The keeper's life: nobody's child, no terminal, no capability, deaf to the Ctrl-C that ends the controller."""
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
