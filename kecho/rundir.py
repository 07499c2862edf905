# SPDX-License-Identifier: MIT
"""``/run/kecho/NAME/``: what a service leaves for others to find. Readable by all, written by root alone.

``lock`` is held (flock) for as long as the controller lives, ``state.json`` says what it is, ``control.sock`` answers,
``log`` has what did not fit in one line.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kecho.errors import KechoError, Unavailable, UsageError, one_line

BASE = Path("/run/kecho")


def directory(name: str) -> Path:
    """The folder of a service. Raises UsageError for a name that would lead out of BASE: folders get removed."""
    if name in ("", ".", "..") or "/" in name:
        raise UsageError(f"{name!r} is not the name of a service")
    return BASE / name


def control_socket(name: str) -> Path:
    """Where the service answers."""
    return directory(name) / "control.sock"


def read_state(name: str) -> dict[str, Any] | None:
    """state.json, or None if there is none that can be read."""
    try:
        state = json.loads((directory(name) / "state.json").read_text())
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) else None


def names() -> list[str]:
    """The services that are up or died without taking their folder along."""
    try:
        return sorted(entry.name for entry in os.scandir(BASE) if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []


def check_privilege() -> None:
    """Raises Unavailable for everybody but root."""
    if os.geteuid() != 0:
        raise Unavailable("services are root's to bring up and down", "run it as root, with sudo")


def is_running(pid: int) -> bool:
    """Is there such a process, other than one that only its parent has to take notice of?"""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


class RunDir:
    """The folder of the service that this process runs. `close` removes it."""

    def __init__(self, name: str) -> None:
        """Takes the name, and clears what a dead service of that name left.

        Raises KechoError if a live one has it, Unavailable without the permission to.
        """
        self.path = directory(name)
        self._lock = -1
        check_privilege()
        try:
            own_directory(BASE)
            own_directory(self.path)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except PermissionError as e:
            raise Unavailable(f"may not write to {BASE}", "run it as root, with sudo") from e
        except OSError as e:  # a /run that is read-only or full
            raise KechoError(f"cannot make the folder of {name}: {one_line(e)}") from e
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(self.path / "lock").st_ino != os.fstat(self._lock).st_ino:
                raise FileNotFoundError
        except (BlockingIOError, FileNotFoundError):
            os.close(self._lock)
            state = read_state(name) or {}
            what = f" (mode {state['mode']}, port {state['port']}, pid {state['pid']})" if "pid" in state else ""
            raise KechoError(
                f"a service named {name} is up already{what}; `kecho-ctl down {name}`, or --name"
            ) from None
        for entry in self.path.iterdir():
            if entry.name not in ("lock", "state.json"):  # what the dead one was is of use to its successor
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()

    @property
    def log(self) -> Path:
        return self.path / "log"

    def write_state(self, state: Mapping[str, Any]) -> None:
        """state.json, whole or not at all."""
        write_whole(self.path / "state.json", json.dumps(state) + "\n")

    def listen(self) -> socket.socket:
        """The control socket, which every local user may connect to."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(str(self.path / "control.sock"))
        os.chmod(self.path / "control.sock", 0o666)
        sock.listen(128)
        return sock

    def close(self) -> None:
        """Removes the folder, and /run/kecho with the last one. Idempotent."""
        if self._lock < 0:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)
        self._lock = -1
        with contextlib.suppress(OSError):
            BASE.rmdir()


def write_whole(path: Path, text: str) -> None:
    """Writes a file that all may read, so that whoever reads it, after a crash too, finds it whole: old or new."""
    new = path.with_name(f"{path.name}.new")
    with open(new, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)


def own_directory(path: Path) -> None:
    """Makes the folder; one that somebody else prepared is refused."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o755)
        path.chmod(0o755)
    found = path.lstat()
    if not path.is_dir() or path.is_symlink() or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise Unavailable(f"{path} is not a folder of root's alone", f"remove {path}")
