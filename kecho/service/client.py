# SPDX-License-Identifier: MIT
"""Talks to services over their control sockets. Reading needs no privilege."""

from __future__ import annotations

import json
import os
import socket
import time
from typing import Any

from kecho.backends.base import MODES, backend
from kecho.model import shape
from kecho.model.errors import AS_ROOT, KechoError, Unavailable, one_line
from kecho.model.snapshot import CONNECTIONS_SHAPE, SCHEMA, Snapshot
from kecho.service import rundir

_TIMEOUT_S = 5.0
_DOWN_TIMEOUT_S = 10.0
_MAX_ANSWER_BYTES = 64 << 20
# What `status` shows. A controller that has been taken over may answer anything.
_STATUS_SHAPE = {
    **{"state": str, "binds": [str], "uptime_s": float, "connections": CONNECTIONS_SHAPE},
    **{"trouble?": str, "listen?": {"*": int}},
}


class NotUp(KechoError):
    """Nothing listens on the control socket: the service died, or there is none."""


class Silent(KechoError):
    """The service has not answered in time."""


class Client:
    """The client of one service. Calls raise NotUp if it is not up, Silent or KechoError if it does not answer."""

    def __init__(self, name: str) -> None:
        self.name = name

    def request(self, op: str) -> dict[str, Any]:
        """Sends one request and returns the answer. Raises Unavailable if the op is for root."""
        deadline = time.monotonic() + _TIMEOUT_S
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            try:
                self._connect(sock, deadline)
                sock.sendall(json.dumps({"op": op}).encode() + b"\n")
                answer = json.loads(_read_line(sock, deadline))
            except (FileNotFoundError, ConnectionRefusedError):
                raise NotUp(self._not_up()) from None
            except (TimeoutError, BlockingIOError):
                raise Silent(f"{self.name} does not answer within {_TIMEOUT_S:g} s") from None
            except (OSError, ValueError, RecursionError) as e:
                raise KechoError(f"{self.name} does not answer: {one_line(e)}") from e
        if not isinstance(answer, dict):
            raise KechoError(self._not_understood())
        if "error" in answer:
            if answer.get("denied"):
                raise Unavailable(answer["error"], AS_ROOT)
            raise KechoError(f"{self.name}: {answer['error']}")
        return answer

    def _not_understood(self) -> str:
        return f"{self.name} answers what this version of kecho-ctl does not understand"

    def _connect(self, sock: socket.socket, deadline: float) -> None:
        """Connects, and tries again while the queue is full: with a timeout set, connect() then fails with EAGAIN."""
        path = rundir.control_socket(self.name)
        for folder in (rundir.BASE, path.parent):
            rundir.require_roots(folder)
        while True:
            sock.settimeout(_left(deadline))
            try:
                sock.connect(str(path))
                return
            except BlockingIOError:
                time.sleep(0.01)

    def _not_up(self) -> str:
        if rundir.read_state(self.name):
            return f"{self.name} died: `kecho-ctl status` says when it was up, the next `up` or `down` clears it away"
        if os.path.lexists(rundir.directory(self.name)) and (damage := rundir.damage(self.name)):
            return damage
        others = ", ".join(rundir.names())
        return f"no service {self.name} is up" + (f"; there is {others}" if others else "")

    def status(self) -> dict[str, Any]:
        """The service's own entry of `status --json`."""
        answer = self.request("status")
        try:
            shape.check(answer, _STATUS_SHAPE, "the answer")
        except ValueError as e:
            raise KechoError(self._not_understood()) from e
        shown = "".join((*answer["binds"], answer.get("trouble") or ""))
        if not (rundir.is_state(answer, self.name) and answer["state"] == "up" and shown.isprintable()):
            raise KechoError(self._not_understood())
        return answer

    def snapshot(self) -> Snapshot:
        """What the service has done since it came up or was reset."""
        try:
            snapshot = Snapshot.from_json(self.request("stats"))
            if not "".join((snapshot.name, snapshot.mode, snapshot.kernel, *snapshot.paths)).isprintable():
                raise ValueError("control characters")
            return snapshot
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise KechoError(self._not_understood()) from e

    def reset(self) -> None:
        """Resets the counts of the service. For root."""
        self._command("reset")

    def _command(self, op: str) -> None:
        if self.request(op).get("ok") is not True:
            raise KechoError(self._not_understood())

    def down(self) -> None:
        """Ends the service, or clears away what a dead one left; returns when nothing is left of it. For root.

        Only the lock says whether the controller lives: its pid may belong to another process by now.
        """
        for folder in (rundir.BASE, rundir.directory(self.name)):
            rundir.require_roots(folder)
        deadline = time.monotonic() + _DOWN_TIMEOUT_S
        asked = False
        while rundir.is_held(self.name):
            if time.monotonic() > deadline:
                raise KechoError(f"{self.name} does not end{self._last_resort()}")
            if not asked:
                asked = self._ask_to_end()
            time.sleep(0.005)
        if rundir.directory(self.name).is_dir():  # the controller or its keeper was killed
            self._clear_away()
        elif not asked:
            raise NotUp(self._not_up())

    def _ask_to_end(self) -> bool:
        """Asks the service to end. False if nothing listens: it may be coming up, or ending."""
        try:
            self._command("down")
        except NotUp:
            return False
        except Unavailable:
            raise
        except KechoError as e:
            raise KechoError(f"{e}{self._last_resort()}") from e
        return True

    def _last_resort(self) -> str:
        pid = rundir.holder(self.name)
        return f"; if it hangs: kill -9 {pid}, then kecho-ctl down {self.name}" if pid else ""

    def _clear_away(self) -> None:
        """Removes what a killed controller left: its folder, and what its mode left in the kernel."""
        state = rundir.read_state(self.name) or {}
        folder = rundir.RunDir.acquire(self.name)
        try:
            if state.get("mode") in MODES:
                alive, _ = rundir.controllers(state["mode"], self.name)
                backend(state["mode"]).clear_away(self.name, alive)
            folder.remove()
        finally:
            folder.release()


def _left(deadline: float) -> float:
    """The seconds until `deadline`. Raises TimeoutError if it has passed."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _read_line(sock: socket.socket, deadline: float) -> bytes:
    """Reads to the end of the line or stream. The deadline is for the whole line, however slowly it comes."""
    parts: list[bytes] = []
    size = 0
    while size < _MAX_ANSWER_BYTES:
        sock.settimeout(_left(deadline))
        part = sock.recv(1 << 20)
        parts.append(part)
        size += len(part)
        if not part or part.endswith(b"\n"):
            break
    return b"".join(parts)


def services() -> list[dict[str, Any]]:
    """The services of `status --json`: those that are up and those that died, in order of name."""
    found = []
    for name in rundir.names():
        try:
            found.append(Client(name).status())
        except KechoError as e:
            state = rundir.read_state(name)
            if state is None:
                continue
            state.pop("config", None)
            died = isinstance(e, NotUp) and rundir.holder(name) is None  # else it is coming up, or ending
            found.append({**state, "state": "died" if died else "silent"})
    return found


def status_json() -> dict[str, Any]:
    """The object that `status --json` prints."""
    return {"schema": SCHEMA, "services": services()}
