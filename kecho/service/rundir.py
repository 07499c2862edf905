# SPDX-License-Identifier: MIT
"""``/run/kecho/NAME/``: the folder of a service. All users may read it, only root writes it.

``lock`` is held (flock) while the controller lives, ``state.json`` describes the service, ``control.sock`` is its
control socket, ``log`` has messages that are longer than a line.
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

from kecho.model.errors import AS_ROOT, KechoError, Unavailable, UsageError, one_line

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
    """The folder of a service. Raises UsageError for a name that leads out of BASE, since folders get removed."""
    if name in ("", ".", "..") or "/" in name:
        raise UsageError(f"{name!r} is not the name of a service")
    return BASE / name


def control_socket(name: str) -> Path:
    """The control socket of a service."""
    return directory(name) / "control.sock"


def read_state(name: str) -> dict[str, Any] | None:
    """The state in state.json; None if there is none or it is malformed."""
    try:
        fd = os.open(directory(name) / "state.json", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            return parse_state(file.read(_MAX_STATE_BYTES + 1), name)
    except OSError:
        return None


def parse_state(data: bytes, name: str) -> dict[str, Any] | None:
    """The state in `data`; None if it is not one of the service `name`."""
    if len(data) > _MAX_STATE_BYTES:
        return None
    try:
        state = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return state if isinstance(state, dict) and is_state(state, name) else None


def is_state(state: Mapping[str, Any], name: str) -> bool:
    """Does it have the fields that readers rely on?"""
    return (
        all(type(state.get(key)) is kind for key, kind in _STATE.items())
        and state["name"] == name
        and state["pid"] > 0
        and 0 < state["port"] < 1 << 16
        and all(isinstance(text, str) and text.isprintable() for text in (state["mode"], *state["paths"]))
    )


def damage(name: str) -> str:
    """Why the state of a service cannot be read, and what mends that; "" if nothing is wrong."""
    path = directory(name)
    if not _is_roots(path):
        return _not_roots(path) if os.path.lexists(path) else ""
    there = os.path.lexists(path / "state.json")
    if there and read_state(name) is None and os.path.lexists(path / "state.json"):  # and not taken down meanwhile
        return f"{path}/state.json makes no sense: `kecho-ctl down {name}` clears it away if nothing runs there"
    return ""


def names() -> list[str]:
    """The services that are up, or died and left their folder. Raises Unavailable if root does not own BASE."""
    return [name for name in entries() if _is_roots(BASE / name)]


def entries() -> list[str]:
    """All entries of BASE, of any kind. Raises Unavailable if root does not own BASE."""
    if not os.path.lexists(BASE):
        return []
    require_roots(BASE)
    try:
        return sorted(name for name in os.listdir(BASE) if name.isprintable())
    except FileNotFoundError:
        return []


def check_privilege() -> None:
    """Raises Unavailable unless this process is root."""
    if os.geteuid() != 0:
        raise Unavailable("services are root's to bring up and down", AS_ROOT)


# ---- the lock ----


class Taken(KechoError):
    """The name has an owner: a controller that lives."""


def is_held(name: str) -> bool:
    """Does the controller of that name live? Its lock ends with the process, even if it is killed. For root."""
    try:
        lock = os.open(directory(name) / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except PermissionError:
        check_privilege()
        raise
    except OSError:  # there is no lock, or it is no regular file
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def holder(name: str) -> int | None:
    """The pid of the lock's holder; None if nobody holds it, or who does is in another PID namespace."""
    try:
        found = os.stat(directory(name) / "lock")
    except OSError:
        return None
    file = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    for line in Path("/proc/locks").read_text().splitlines():
        _, kind, _, _, pid, what, *_ = line.replace("->", "").split()
        if (kind, what) == ("FLOCK", file):
            return int(pid)
    return None


def controllers(mode: str, own: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The services of that mode, as those whose controllers live and those whose controllers died. For root.

    This process has the name `own`. A state under that name is stale: a dead controller left it.
    """
    found: tuple[list[str], list[str]] = ([], [])
    for name in names():
        state = read_state(name)
        if state and state["mode"] == mode:
            found[name == own or not is_held(name)].append(name)
    alive, dead = found
    return tuple(alive), tuple(dead)


class RunDir:
    """The folder of a service, with its lock held by this process."""

    def __init__(self, path: Path, lock: int) -> None:
        """Call `acquire` instead."""
        self.path = path
        self._lock = lock
        self._inherited = b""  # a stale state, left by a dead controller and not yet replaced

    @classmethod
    def acquire(cls, name: str) -> RunDir:
        """Makes the folder and takes its lock. Raises Taken, or Unavailable without the permission."""
        path = directory(name)
        check_privilege()
        for _ in range(_ATTEMPTS):
            try:
                lock = _open_lock(path)
            except FileNotFoundError:  # a keeper is removing the old folder
                time.sleep(0.01)
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.stat(path / "lock").st_ino == os.fstat(lock).st_ino:
                    return cls(path, lock)
            except (BlockingIOError, FileNotFoundError):
                pass
            os.close(lock)
            time.sleep(0.01)  # another process has the lock for a moment, or is removing the folder
        if not path.is_dir():
            raise KechoError(f"cannot make the folder of {name} in {BASE}")
        raise Taken(f"a service named {name} is up already")

    def clear(self) -> None:
        """Removes what a dead controller left, but for its state, which stays until there is a new one."""
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
        """Writes state.json, atomically."""
        write_whole(self.path / "state.json", json.dumps(state) + "\n")

    def listen(self) -> socket.socket:
        """Listens on the control socket, to which all users may connect."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(str(self.path / "control.sock"))
        os.chmod(self.path / "control.sock", 0o666)
        sock.listen(128)
        return sock

    def has_stale_state(self) -> bool:
        """Is the state still the one that a dead controller left?"""
        return bool(self._inherited) and (self.path / "state.json").read_bytes() == self._inherited

    def remove(self) -> None:
        """Removes the folder, and with the last one /run/kecho. A stale state stays."""
        if self.has_stale_state():
            self._remove_all_but("state.json")
            return
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):
            BASE.rmdir()

    def release(self) -> None:
        """Releases the lock, and so the name."""
        os.close(self._lock)


def _open_lock(path: Path) -> int:
    """Makes the folder and opens its lock. Raises FileNotFoundError if another process removes the folder meanwhile."""
    try:
        own_directory(BASE)
        own_directory(path)
        return os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except PermissionError as e:
        raise Unavailable(f"may not write to {BASE}", AS_ROOT) from e
    except FileNotFoundError:
        raise
    except OSError as e:  # /run is read-only or full
        raise KechoError(f"cannot make the folder of {path.name}: {one_line(e)}") from e


# ---- files and folders that only root writes ----


def write_whole(path: Path, text: str) -> None:
    """Replaces a file that all users may read. Readers find the old or the new text as a whole, even after a crash."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)


def own_directory(path: Path) -> None:
    """Makes the folder. Raises Unavailable for one that root does not own or others may write to."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o755)
        path.chmod(0o755)
    require_roots(path)


def require_roots(path: Path) -> None:
    """Raises Unavailable if another user than root can write to it."""
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
