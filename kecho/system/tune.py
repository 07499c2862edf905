# SPDX-License-Identifier: MIT
"""Raises system limits to what a run needs, and restores them, even after a run was killed.

The record ``/run/kecho/tune-INODE.json`` says what was raised in the network namespace with that inode. It is written
before the first change and removed after the last value is restored. Every user of raised limits holds a shared lock,
which ends with its process. The last user to leave restores the limits. A record without a user is stale: the next
process that finds it restores them.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import re
import resource
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kecho.kernel import features, procfs, sysctl
from kecho.model.errors import AS_ROOT, KechoError, Unavailable
from kecho.service import rundir
from kecho.system.limits import DESCRIPTORS, Limits, Needs, wanted

Report = Callable[[str], None]
_Record = dict[str, dict[str, Any]]  # by sysctl: "old", its value before, and "ours", all values set here

_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)
_MUTEX, _USERS = 0, 1  # bytes of the lock file
_ATTEMPTS = 100
_FILE = re.compile(r"tune-(\d+)\.")


@dataclass(frozen=True)
class Change:
    """A limit, with its old and its new value."""

    name: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.name}: {self.old} → {self.new}"


@contextlib.contextmanager
def raised(needs: Needs, report: Report) -> Iterator[list[Change]]:
    """Raises what is too low for `needs`. Restores it in the end, also on errors, Ctrl-C, SIGTERM and SIGHUP.

    `report` gets a line for each change. A value that another process has set meanwhile is kept and reported. Raises
    Unavailable without the permission, and then changes nothing. Must not be nested within a process.
    """
    _refuse_without_root("raised")
    with _handled(_exit, *_ENDING), contextlib.ExitStack() as stack:
        ledger = _Ledger(procfs.netns_inode())
        with _undisturbed():
            changes = _raise_descriptors(needs, stack)
            changes += ledger.enter(needs)
            stack.callback(_leave, ledger, report)
        for line in (*ledger.told(), *changes):
            report(str(line))
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if most < needs.descriptors:
            report(f"{DESCRIPTORS}: {needs.descriptors:,} are needed, a process may have {most:,} at most (ulimit -Hn)")
        yield changes


def restore(report: Report) -> list[int]:
    """Restores what killed processes left raised, in every network namespace that still exists.

    Returns the processes that still use raised limits and will restore them. Raises Unavailable without the
    permission, KechoError if a value cannot be written.
    """
    files = (_FILE.match(path.name) for path in rundir.BASE.glob("tune-*"))
    inodes = sorted({int(found[1]) for found in files if found})
    if inodes:
        _refuse_without_root("put back")
    users = []
    for inode in inodes:
        ledger = _Ledger(inode)
        try:
            with _undisturbed():
                users.append(_in_namespace(inode, ledger.clear))
        finally:
            for line in ledger.told():
                report(line)
    return [user for user in users if user]


def still_needed(user: int) -> str:
    """A line that says why limits stay raised."""
    return f"what is raised stays so: process {user} needs it, and puts it back when it ends"


def current() -> _Record:
    """What is raised now in this network namespace, with the old values. Needs no privilege."""
    return _Ledger(procfs.netns_inode()).read()


def _refuse_without_root(what: str) -> None:
    if os.geteuid() != 0:
        raise Unavailable(f"limits of the system are root's to be {what}", AS_ROOT)


# ---- descriptors ----


def _raise_descriptors(needs: Needs, stack: contextlib.ExitStack) -> list[Change]:
    """Raises the limit of this process and its children as far as allowed. It ends with them."""
    soft, hard = before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= needs.descriptors:
        return []
    stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needs.descriptors, max(hard, needs.descriptors)))
    except (ValueError, OSError):  # beyond the hard limit without CAP_SYS_RESOURCE, or beyond fs.nr_open
        features.raise_nofile()
    now = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return [Change(DESCRIPTORS, str(soft), str(now))] if now != soft else []


# ---- sysctls ----


def _leave(ledger: _Ledger, report: Report) -> None:
    try:
        with _undisturbed():
            user = ledger.leave()
    finally:
        for line in ledger.told():
            report(line)
    if user:
        report(still_needed(user))


class _Ledger:
    """The record of one network namespace. All methods but `read` must be called within that namespace."""

    def __init__(self, inode: int) -> None:
        self._path = rundir.BASE / f"tune-{inode}.json"
        self._lock = -1
        self._lines: list[str] = []

    def told(self) -> list[str]:
        """The lines to report about what was restored, once. Reporting can fail, so it comes after the work."""
        lines, self._lines = self._lines, []
        return lines

    def enter(self, needs: Needs) -> list[Change]:
        """Raises what is too low and becomes a user. Raises Unavailable with nothing changed."""
        self._acquire()
        try:
            record = self._cleared()
            changes = [Change(name, sysctl.read(name), new) for name, new in wanted(needs, Limits.now()).items()]
            for change in changes:
                _enter_change(record, change)
            if changes:
                self._write(record)
            for change in changes:
                _set(change.name, change.new)
        except BaseException:
            self._release()
            raise
        fcntl.lockf(self._lock, fcntl.LOCK_SH, 1, _USERS)
        fcntl.lockf(self._lock, fcntl.LOCK_UN, 1, _MUTEX)
        return changes

    def leave(self) -> int:
        """Stops being a user. Returns another user, or 0 if there is none and all is restored. Raises KechoError."""
        fcntl.lockf(self._lock, fcntl.LOCK_EX, 1, _MUTEX)
        return self._release()

    def clear(self) -> int:
        """Restores what a killed process left, if there is no user. Returns as `leave` does."""
        self._acquire()
        return self._release()

    def read(self) -> _Record:
        """The record; empty if there is none, or if it is of a former namespace with the same inode."""
        try:
            found = json.loads(self._path.read_text())
        except FileNotFoundError:
            return {}
        return dict(found["sysctls"]) if found["netns_cookie"] == _netns_cookie() else {}

    def _write(self, record: _Record) -> None:
        rundir.write_whole(self._path, json.dumps({"netns_cookie": _netns_cookie(), "sysctls": record}) + "\n")

    def _acquire(self) -> None:
        """Locks the record against other processes until `_release`."""
        path = self._path.with_suffix(".lock")
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(FileNotFoundError):  # the last service may remove the folder meanwhile
                rundir.own_directory(rundir.BASE)
                # POSIX locks belong to the process: a service that it forks does not hold them.
                lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                fcntl.lockf(lock, fcntl.LOCK_EX, 1, _MUTEX)
                if path.exists() and path.stat().st_ino == os.fstat(lock).st_ino:
                    self._lock = lock
                    return
                os.close(lock)  # the last user has removed the file meanwhile
        raise KechoError(f"cannot lock {path}: it keeps disappearing")

    def _release(self) -> int:
        """Releases the lock, and restores everything if this is the last user. Returns another user, or 0."""
        user = 0
        try:
            if self._is_alone():
                self._cleared()
                for left in self._path.parent.glob(f"{self._path.stem}.*"):
                    left.unlink()
            elif self.read():
                user = self._user()
        finally:
            os.close(self._lock)
            self._lock = -1
        with contextlib.suppress(OSError):
            rundir.BASE.rmdir()
        return user

    def _is_alone(self) -> bool:
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _USERS)
        except OSError:
            return False
        return True

    def _user(self) -> int:
        """Another process that uses the limits, or 0."""
        kind = "hhqqi4x"  # struct flock of 64-bit Linux
        asked = struct.pack(kind, fcntl.F_WRLCK, os.SEEK_SET, _USERS, 1, 0)
        found, *_, pid = struct.unpack(kind, fcntl.fcntl(self._lock, fcntl.F_GETLK, asked))
        return 0 if found == fcntl.F_UNLCK else int(pid)

    def _cleared(self) -> _Record:
        """The record if it has users; a stale one is restored first, and then it is empty."""
        record = self.read()
        if not self._is_alone():
            return record
        refused = []
        for name, entry in record.items():
            try:
                self._put_back(name, entry["old"], entry["ours"])
            except Unavailable as e:
                refused.append(str(e))
        if refused:
            raise KechoError("; ".join(refused))
        self._path.unlink(missing_ok=True)
        return {}

    def _put_back(self, name: str, old: str, ours: list[str]) -> None:
        now = sysctl.read(name)
        if now == old:
            return
        if now in ours:
            _set(name, old)
            self._lines.append(f"{name}: {now} → {old}, as it was")
        else:
            self._lines.append(f"{name} is {now}, which somebody else set meanwhile: left so (it was {old})")


def _enter_change(record: _Record, change: Change) -> None:
    """Adds a change to the record. All values set here are kept: a process may die before or after it writes one."""
    entry = record.get(change.name)
    if entry is None or change.old not in (entry["old"], *entry["ours"]):  # another process has set it since
        record[change.name] = {"old": change.old, "ours": [change.new]}
    elif change.new not in entry["ours"]:
        entry["ours"].append(change.new)


def _set(name: str, value: str) -> None:
    try:
        sysctl.path(name).write_text(value)
    except OSError as e:
        raise Unavailable(f"cannot set {name} to {value}: {e.strerror}", f"see whether `sysctl {name}` can") from e


# ---- network namespaces ----


def _netns_cookie() -> int:
    """The cookie of the calling thread's network namespace. Unlike an inode it is never used again."""
    with socket.socket() as sock:
        return features.netns_cookie(sock)


def _in_namespace(inode: int, job: Callable[[], int]) -> int:
    """Calls `job` in a thread that is in this namespace, and returns its result."""
    from pyroute2 import netns  # slow to import

    places = itertools.chain(Path("/proc").glob("[0-9]*/ns/net"), Path("/run/netns").glob("*"))
    found = next((path for path in places if _inode(path) == inode), None)
    answers: list[int] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            if found is not None:
                netns.setns(str(found), flags=0)
            answers.append(job())
        except BaseException as e:
            errors.append(e)

    thread = threading.Thread(target=run)  # the change of namespace ends with the thread
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return answers[0]


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:  # the process has ended
        return -1


# ---- signals ----


@contextlib.contextmanager
def _handled(handler: Callable[[int, Any], None], *signals: signal.Signals) -> Iterator[None]:
    """These signals call `handler`; ignored ones stay ignored. Python handles signals only in the main thread."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: old for number in signals if (old := signal.getsignal(number)) != signal.SIG_IGN}
        for number in before:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _exit(number: int, _: Any) -> None:
    raise SystemExit(128 + number)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Signals are blocked meanwhile, and come afterwards."""
    came: list[int] = []
    with _handled(lambda number, _: came.append(number), signal.SIGINT, *_ENDING):
        yield
    for number in came[:1]:
        signal.raise_signal(number)
