# SPDX-License-Identifier: MIT
"""A process that stays root to remove the service's folder, since the controller gives up its privileges."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from typing import NoReturn

from kecho.kernel import privileges, process
from kecho.service import rundir
from kecho.service.rundir import RunDir

# Does what RunDir.remove() does; its standard input is the controller. A shell holds a tenth of a fork's memory.
_SCRIPT = """
printf kecho-keeper >/proc/self/comm
read -r order
case $order in
all)
	rm -rf -- "$1"
	rmdir -- "$2"
	;;
all-but-state)
	cd -- "$1" || exit
	for entry in * .[!.]*; do
		[ "$entry" = state.json ] || rm -rf -- "$entry"
	done
	;;
esac
"""


class Keeper:
    """A context at whose end the keeper removes a folder. If this process is killed, the keeper ends without that."""

    def __init__(self, folder: RunDir) -> None:
        """Starts the keeper. Raises OSError."""
        self._folder = folder
        self._sock, theirs = socket.socketpair()
        child = os.fork()
        if child == 0:
            _keep(theirs, folder)
        theirs.close()
        os.waitpid(child, 0)

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, *_: object) -> None:
        """Returns when the folder is removed and the keeper has ended, or when the keeper was killed."""
        with self._sock, contextlib.suppress(OSError):
            self._sock.sendall(b"all-but-state\n" if self._folder.has_stale_state() else b"all\n")
            self._sock.recv(1)

    def dismiss(self) -> None:
        """Ends the keeper without removing the folder."""
        self._sock.close()


def _keep(controller: socket.socket, folder: RunDir) -> NoReturn:
    """Becomes the keeper: no child of the controller, without terminal and capabilities, and Ctrl-C does not end it."""
    try:
        if os.fork():
            os._exit(0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        process.leave_terminal()
        os.dup2(controller.fileno(), 0)
        process.close_descriptors()
        privileges.drop((), None)
        os.execve("/bin/sh", ["sh", "-c", _SCRIPT, "kecho-keeper", str(folder.path), str(rundir.BASE)], {})
    finally:
        os._exit(0)
