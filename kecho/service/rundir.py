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
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kecho.model.errors import KechoError, Unavailable, UsageError, one_line

BASE = Path("/run/kecho")
_ATTEMPTS = 10

_MAX_STATE_BYTES = 64 << 10
_STATE: dict[str, type] = {
    "name": str,
    "mode": str,
    "port": int,
    "binds": list,
    "pid": int,
    "paths": list,
    "netns": int,
}


def directory(name: str) -> Path:
    """The folder of a service. Raises UsageError for a name that would lead out of BASE: folders get removed."""
    if name in ("", ".", "..") or "/" in name:
        raise UsageError(f"{name!r} is not the name of a service")
    return BASE / name


def control_socket(name: str) -> Path:
    """Where the service answers."""
    return directory(name) / "control.sock"


def read_state(name: str) -> dict[str, Any] | None:
    """state.json, or None if there is none that makes sense."""
    try:
        fd = os.open(directory(name) / "state.json", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            return parse_state(file.read(_MAX_STATE_BYTES + 1), name)
    except OSError:
        return None


def parse_state(data: bytes, name: str) -> dict[str, Any] | None:
    """The state of the service `name`, or None if that is not what the bytes are."""
    if len(data) > _MAX_STATE_BYTES:
        return None
    try:
        state = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return state if isinstance(state, dict) and is_state(state, name) else None


def is_state(state: Mapping[str, Any], name: str) -> bool:
    """Has it what everybody relies on?"""
    return (
        all(type(state.get(key)) is kind for key, kind in _STATE.items())
        and state["name"] == name
        and state["pid"] > 0
        and all(isinstance(text, str) and text.isprintable() for text in (state["mode"], *state["paths"]))
    )


def damage(name: str) -> str:
    """Why nobody can say what the service of that folder is, or was, and what mends it; "" if all is well."""
    path = directory(name)
    if not _is_roots(path):
        return _not_roots(path) if os.path.lexists(path) else ""
    there = os.path.lexists(path / "state.json")
    if there and read_state(name) is None and os.path.lexists(path / "state.json"):  # and not taken down meanwhile
        return f"{path}/state.json makes no sense: `kecho-ctl down {name}` clears it away if nothing runs there"
    return ""


def names() -> list[str]:
    """The services that are up or died without taking their folder along. Raises Unavailable if BASE is not root's."""
    return [name for name in entries() if _is_roots(BASE / name)]


def entries() -> list[str]:
    """What is in BASE, of whatever kind. Raises Unavailable if BASE is not root's."""
    if not os.path.lexists(BASE):
        return []
    require_roots(BASE)
    try:
        return sorted(name for name in os.listdir(BASE) if name.isprintable())
    except FileNotFoundError:
        return []


def check_privilege() -> None:
    """Raises Unavailable for everybody but root."""
    if os.geteuid() != 0:
        raise Unavailable("services are root's to bring up and down", "run it as root, with sudo")


# ---- the lock ----


class Taken(KechoError):
    """A controller that lives has the name."""


def is_held(name: str) -> bool:
    """Does a controller live that has this name? Its lock ends with it, whatever ends it. For root."""
    try:
        lock = os.open(directory(name) / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except PermissionError:
        check_privilege()
        raise
    except OSError:  # there is none, or it is no file
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def holder(name: str) -> int | None:
    """The process that has the lock, or None if it is not of this PID namespace."""
    found = os.stat(directory(name) / "lock")
    file = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    for line in Path("/proc/locks").read_text().splitlines():
        _, kind, _, _, pid, what, *_ = line.replace("->", "").split()
        if (kind, what) == ("FLOCK", file):
            return int(pid)
    return None


def controllers(mode: str, own: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The services of that mode: those whose controllers live, and those whose controllers died. For root.

    `own` is the name of this process, which has taken it over from a dead controller if there is a state of it.
    """
    found: tuple[list[str], list[str]] = ([], [])
    for name in names():
        state = read_state(name)
        if state and state["mode"] == mode:
            found[name == own or not is_held(name)].append(name)
    alive, dead = found
    return tuple(alive), tuple(dead)


class RunDir:
    """The folder of a service whose name this process has."""

    def __init__(self, path: Path, lock: int) -> None:
        """See `acquire`."""
        self.path = path
        self._lock = lock
        self._inherited = b""  # the state that a dead controller left, while it stands

    @classmethod
    def acquire(cls, name: str) -> RunDir:
        """Takes the name, and makes the folder. Raises Taken, or Unavailable without the permission."""
        path = directory(name)
        check_privilege()
        for _ in range(_ATTEMPTS):
            try:
                lock = _open_lock(path)
            except FileNotFoundError:  # a keeper removes the folder that was there
                time.sleep(0.01)
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.stat(path / "lock").st_ino == os.fstat(lock).st_ino:
                    return cls(path, lock)
            except (BlockingIOError, FileNotFoundError):
                pass
            os.close(lock)
            time.sleep(0.01)  # somebody looks whether it is held, or removes the folder
        if not path.is_dir():
            raise KechoError(f"cannot make the folder of {name} in {BASE}")
        raise Taken(f"a service named {name} is up already")

    def clear(self) -> None:
        """Removes what a dead controller left, but for its state: that stands until there is a new one."""
        state = self.path / "state.json"
        if read_state(self.path.name):
            self._inherited = state.read_bytes()
        self._remove_all_but("lock", *(["state.json"] if self._inherited else []))

    def _remove_all_but(self, *kept: str) -> None:
        for entry in self.path.iterdir():
            if entry.name not in kept:
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

    def remove(self) -> None:
        """Removes the folder, and /run/kecho with the last one. A state that a dead controller left stays."""
        if self._inherited and (self.path / "state.json").read_bytes() == self._inherited:
            self._remove_all_but("state.json")
            return
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):
            BASE.rmdir()

    def release(self) -> None:
        """Lets go of the name."""
        os.close(self._lock)


def _open_lock(path: Path) -> int:
    """Makes the folder, and opens its lock. Raises FileNotFoundError if somebody removes the folder meanwhile."""
    try:
        own_directory(BASE)
        own_directory(path)
        return os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except PermissionError as e:
        raise Unavailable(f"may not write to {BASE}", "run it as root, with sudo") from e
    except FileNotFoundError:
        raise
    except OSError as e:  # a /run that is read-only or full
        raise KechoError(f"cannot make the folder of {path.name}: {one_line(e)}") from e


# ---- files and folders that root alone writes ----


def write_whole(path: Path, text: str) -> None:
    """Writes a file that all may read, so that whoever reads it, after a crash too, finds it whole: old or new."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w", encoding="utf-8") as file:
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
    require_roots(path)


def require_roots(path: Path) -> None:
    """Raises Unavailable if others than root could have put into it what they like."""
    if os.path.lexists(path) and not _is_roots(path):
        raise Unavailable(_not_roots(path), f"remove {path}")


def _not_roots(path: Path) -> str:
    return f"{path} is not a folder of root's alone"


def _is_roots(path: Path) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == 0 and not found.st_mode & 0o022
