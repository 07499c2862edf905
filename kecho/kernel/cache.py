# SPDX-License-Identifier: MIT
"""``/var/cache/kecho``: what is slow to make, kept in a folder that only root can read and write.

An entry is its SHA-256 with that of its key in front, and JSON: reading one runs no code. Whatever is wrong with the
folder or an entry, there is no entry, and its content is made anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kecho.model.errors import one_line

# In a guest of virtme-ng this is an empty file system that can be written, where /var/lib is the host's, read-only.
FOLDER = Path("/var/cache/kecho")
MOST_ENTRIES = 64
_MOST_BYTES = 4 << 20
_UNFINISHED = "new"  # written under the folder's lock: one that is found there was left by a process that was killed
_NOTES = Path("/sys/kernel/notes")  # has the build's id
_KEY = re.compile(r"[0-9a-f]{64}")

log = logging.getLogger("kecho")


class _NotOurs(OSError):
    """Others could have written it."""


def key(*parts: object) -> str:
    """The name of an entry that depends on `parts`, which JSON can express, and on the running kernel."""
    notes = _NOTES.read_bytes().hex() if _NOTES.exists() else ""
    kernel = os.uname()
    return _digest(json.dumps([kernel.release, kernel.version, kernel.machine, notes, *parts]).encode())


def load(key: str) -> Any:
    """The content of an entry; None if there is none that can be trusted."""
    with _errors_told(), _opened() as fd:
        with open(key, "rb", opener=lambda name, _: os.open(name, _READ, dir_fd=fd)) as file:
            _require_ours(file.fileno(), stat.S_IFREG)
            data = file.read(_MOST_BYTES + 1)
        digest, _, body = data.partition(b"\n")
        if digest.decode(errors="replace") == _digest(key.encode() + body):
            with contextlib.suppress(OSError):
                os.utime(key, dir_fd=fd)  # what is used is not pruned
            return json.loads(body)
    return None


def store(key: str, content: object) -> None:
    """Keeps an entry if the folder can be written, and removes the oldest ones beyond `MOST_ENTRIES`."""
    body = json.dumps(content).encode()
    with _errors_told():
        with contextlib.suppress(FileExistsError):
            FOLDER.mkdir(0o700)
        with _opened() as fd:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_UNFINISHED, dir_fd=fd)
            with open(_UNFINISHED, "xb", opener=lambda name, _: os.open(name, _MAKE, 0o600, dir_fd=fd)) as file:
                file.write(_digest(key.encode() + body).encode() + b"\n" + body)
            os.replace(_UNFINISHED, key, src_dir_fd=fd, dst_dir_fd=fd)
            _prune(fd)


_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def _errors_told() -> Iterator[None]:
    """What goes wrong with the cache stops nobody. Only what somebody must have tampered with is told."""
    try:
        yield
    except _NotOurs as e:
        log.warning("%s is not used: %s", FOLDER, one_line(e))
    except OSError:
        pass


@contextlib.contextmanager
def _opened() -> Iterator[int]:
    fd = os.open(FOLDER, _READ | os.O_DIRECTORY)
    try:
        _require_ours(fd, stat.S_IFDIR)
        yield fd
    finally:
        os.close(fd)


def _require_ours(fd: int, kind: int) -> None:
    """Raises _NotOurs unless it is of that kind, and this process's user alone may read and write it."""
    found = os.fstat(fd)
    if stat.S_IFMT(found.st_mode) != kind or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise _NotOurs("it, or an entry in it, is of another kind, owner or mode than kecho makes")


def _prune(folder: int) -> None:
    entries = [name for name in os.listdir(folder) if _KEY.fullmatch(name)]
    entries.sort(key=lambda name: os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime_ns)
    for name in entries[:-MOST_ENTRIES]:
        os.unlink(name, dir_fd=folder)
