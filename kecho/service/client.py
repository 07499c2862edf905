# SPDX-License-Identifier: MIT
"""Talks to services: over the control socket, which needs no privilege for reading."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from typing import Any

from kecho.backends.base import MODES, backend
from kecho.model.errors import KechoError, Unavailable, one_line
from kecho.model.snapshot import SCHEMA, Snapshot
from kecho.service import rundir

_TIMEOUT_S = 5.0
_MAX_ANSWER_BYTES = 64 << 20


class Client:
    """A service by its name. Every call raises KechoError if it is not up."""

    def __init__(self, name: str) -> None:
        self.name = name

    def request(self, op: str) -> dict[str, Any]:
        """One request, one answer. Raises Unavailable if the op is for root."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(_TIMEOUT_S)
            try:
                self._connect(sock)
                sock.sendall(json.dumps({"op": op}).encode() + b"\n")
                with sock.makefile("rb") as lines:
                    answer = json.loads(lines.readline(_MAX_ANSWER_BYTES))
            except (FileNotFoundError, ConnectionRefusedError):
                raise KechoError(self._not_up()) from None
            except (OSError, ValueError, RecursionError) as e:
                raise KechoError(f"{self.name} does not answer: {one_line(e)}") from e
        if not isinstance(answer, dict):
            raise KechoError(self._not_understood())
        if "error" in answer:
            if answer.get("denied"):
                raise Unavailable(answer["error"], "run it as root, with sudo")
            raise KechoError(f"{self.name}: {answer['error']}")
        return answer

    def _not_understood(self) -> str:
        return f"{self.name} answers what this version of kecho-ctl does not understand"

    def _connect(self, sock: socket.socket) -> None:
        """Others may fill the queue for a moment; with a timeout set, connect() then says EAGAIN at once."""
        path = rundir.control_socket(self.name)
        for folder in (rundir.BASE, path.parent):
            rundir.require_roots(folder)
        deadline = time.monotonic() + _TIMEOUT_S
        while True:
            try:
                sock.connect(str(path))
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
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
        if not rundir.is_state(answer, self.name):
            raise KechoError(self._not_understood())
        return answer

    def snapshot(self) -> Snapshot:
        """What it has done since it came up, or since the last reset."""
        try:
            snapshot = Snapshot.from_json(self.request("stats"))
            if not "".join((snapshot.name, snapshot.mode, snapshot.kernel, *snapshot.paths)).isprintable():
                raise ValueError("control characters")
            return snapshot
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise KechoError(self._not_understood()) from e

    def reset(self) -> None:
        """Counts from now on. For root."""
        self._command("reset")

    def _command(self, op: str) -> None:
        if self.request(op).get("ok") is not True:
            raise KechoError(self._not_understood())

    def down(self) -> None:
        """Ends the service and returns when nothing of it is left; clears away what a dead one left. For root."""
        try:
            pid = self.status()["pid"]
        except KechoError as e:
            if not rundir.read_state(self.name) and not rundir.directory(self.name).is_dir():
                raise
            if silent := _silent_pid(self.name):
                raise KechoError(f"{e}; if it hangs: kill -9 {silent}, then kecho-ctl down {self.name}") from e
            self._clear_away()
            return
        self._command("down")
        deadline = time.monotonic() + 10
        while rundir.control_socket(self.name).exists() or rundir.is_running(pid):
            if time.monotonic() > deadline:
                raise KechoError(f"{self.name} (pid {pid}) does not end")
            if not rundir.is_running(pid):  # its keeper was killed, or its pid is that of another namespace
                with contextlib.suppress(KechoError):  # and it has the name still
                    self._clear_away()
            time.sleep(0.005)

    def _clear_away(self) -> None:
        """What a controller that was killed left: its folder, and what of its mode outlives it."""
        state = rundir.read_state(self.name) or {}
        folder = rundir.RunDir(self.name)
        try:
            if state.get("mode") in MODES:
                backend(state["mode"]).clear_away(self.name)
        finally:
            folder.close()


def _silent_pid(name: str) -> int | None:
    """The pid of a controller that lives, although it may not answer."""
    pid = (rundir.read_state(name) or {}).get("pid")
    return pid if pid and rundir.is_running(pid) and rundir.control_socket(name).exists() else None


def services() -> list[dict[str, Any]]:
    """The entries of `status --json`: those that are up and those that died, by name."""
    found = []
    for name in rundir.names():
        try:
            found.append(Client(name).status())
        except KechoError as e:
            state = rundir.read_state(name)
            if state is None:
                continue
            state.pop("config", None)
            silent = "not answer" in str(e) and _silent_pid(name)
            found.append({**state, "state": "silent" if silent else "died"})
    return found


def status_json() -> dict[str, Any]:
    """The object that `status --json` prints."""
    return {"schema": SCHEMA, "services": services()}
