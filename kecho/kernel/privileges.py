# SPDX-License-Identifier: MIT
"""The privileges of this process: reads its capabilities and gives up those it does not need (docs/security.md)."""

from __future__ import annotations

import contextlib
import os
import re
import struct
from collections.abc import Callable, Collection
from pathlib import Path

from kecho.kernel import libc, process, procfs, userids
from kecho.model.errors import KechoError, one_line

# include/uapi/linux/capability.h
CAP_SETGID, CAP_SETUID, CAP_SETPCAP, CAP_NET_ADMIN, CAP_SYS_MODULE = 6, 7, 8, 12, 16
CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF = 21, 38, 39
_CAPABILITY_VERSION_3 = 0x20080522

# include/uapi/linux/prctl.h
_PR_SET_KEEPCAPS, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 8, 24, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4


def capabilities(which: str = "Eff") -> frozenset[int]:
    """This process's capabilities by number. `which` is the set: Eff, Prm, Inh, Bnd or Amb."""
    status = procfs.text("/proc/self/status")
    mask = int(re.search(rf"^Cap{which}:\s*(\w+)$", status, re.MULTILINE)[1], 16)  # type: ignore[index]
    return frozenset(number for number in range(64) if mask >> number & 1)


def user_for(port: int) -> int | None:
    """The id of the user and group that a service on that port runs as; None if this process may not change to it.

    Raises Unavailable if no id is free.
    """
    if not {CAP_SETUID, CAP_SETGID} <= capabilities():
        return None
    uid = userids.id_for(port)
    return uid if all(_maps(Path(f"/proc/self/{kind}_map"), uid) for kind in ("uid", "gid")) else None


def _maps(path: Path, uid: int) -> bool:
    """Is that id mapped in this user namespace?"""
    rows = (map(int, line.split()) for line in path.read_text().splitlines())
    return any(first <= uid < first + count for first, _, count in rows)


def drop(keep: Collection[int], uid: int | None) -> None:
    """Becomes user `uid`, unless that is None, and gives up all capabilities but `keep` for good.

    Programs that it runs later have none. Raises KechoError if the kernel refuses; then the process must end.
    """
    if len(os.listdir("/proc/self/task")) > 1:
        raise KechoError("privileges belong to a thread, and there are several")  # other threads would keep theirs
    kept = capabilities("Prm").intersection(keep)
    try:
        if CAP_SETPCAP in capabilities():  # otherwise no_new_privs has to be enough
            for number in capabilities("Bnd"):
                libc.prctl(_PR_CAPBSET_DROP, number)
        libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
        if uid is not None:
            _become(uid)
        _capset(kept, kept, ())
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1)
    except OSError as e:
        raise KechoError(f"cannot give up privileges: {one_line(e)}") from e


def _become(uid: int) -> None:
    """Changes user and group; keeps the capabilities and the parent-death signal."""
    ends_by, parent = process.ends_by(), os.getppid()
    libc.prctl(_PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    libc.prctl(_PR_SET_KEEPCAPS, 0)
    if ends_by:
        process.end_with_parent(parent, ends_by)


def needed(candidates: Collection[int], attempt: Callable[[], object]) -> frozenset[int]:
    """The capability that `attempt` needs: none, or the first of `candidates` with which it succeeds."""
    effective, permitted, inheritable = (capabilities(which) for which in ("Eff", "Prm", "Inh"))
    try:
        for found in (frozenset[int](), *(frozenset({number}) & permitted for number in candidates)):
            _capset(found, permitted, inheritable)
            with contextlib.suppress(PermissionError):
                attempt()
                return found
    finally:
        _capset(effective, permitted, inheritable)
    return effective.intersection(candidates)


def _capset(*sets: Collection[int]) -> None:
    """capset(2): the effective, permitted and inheritable set."""
    masks = [sum(1 << number for number in numbers) for numbers in sets]
    data = struct.pack("=6I", *(mask & 0xFFFFFFFF for mask in masks), *(mask >> 32 for mask in masks))
    libc.call("capset", struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), data)
