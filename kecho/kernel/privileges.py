# SPDX-License-Identifier: MIT
"""What this process may do: reads its capabilities, and gives up all it does not need. docs/security.md says why."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import struct
from collections.abc import Callable, Collection
from pathlib import Path

from kecho.model.errors import KechoError, one_line

# include/uapi/linux/capability.h
CAP_SETGID, CAP_SETUID, CAP_SETPCAP, CAP_NET_ADMIN, CAP_SYS_MODULE = 6, 7, 8, 12, 16
CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF = 21, 38, 39
_CAPABILITY_VERSION_3 = 0x20080522

# include/uapi/linux/prctl.h
_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG = 1, 2
_PR_SET_KEEPCAPS, _PR_SET_NAME, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 8, 15, 24, 38, 47
_PR_CAP_AMBIENT_RAISE, _PR_CAP_AMBIENT_CLEAR_ALL = 2, 4

# A service is user FIRST_UID + its port, of a range that nobody hands out (systemd.io/UIDS-GIDS). As "nobody" it would
# share its user, and with that kill(2), with whatever else runs as nobody.
FIRST_UID = 0x60000

_libc = ctypes.CDLL(None, use_errno=True)


def capabilities(which: str = "Eff") -> frozenset[int]:
    """This process's capabilities, by number: its set Eff, Prm, Inh, Bnd or Amb."""
    status = Path("/proc/self/status").read_text()
    mask = int(re.search(rf"^Cap{which}:\s*(\w+)$", status, re.MULTILINE)[1], 16)  # type: ignore[index]
    return frozenset(number for number in range(64) if mask >> number & 1)


def user_for(port: int) -> int | None:
    """The user, and group, that a service on that port is to run as; None where this process may not change to it."""
    uid = FIRST_UID + port
    maps = (Path("/proc/self/uid_map"), Path("/proc/self/gid_map"))
    if not {CAP_SETUID, CAP_SETGID} <= capabilities() or not all(_maps(path, uid) for path in maps):
        return None
    return uid


def _maps(path: Path, uid: int) -> bool:
    """Does this user namespace have that id?"""
    rows = (map(int, line.split()) for line in path.read_text().splitlines())
    return any(first <= uid < first + count for first, _, count in rows)


def drop(keep: Collection[int], uid: int | None) -> None:
    """Becomes user `uid`, unless None, with those of `keep` that this process has, no other capability, no way back.

    What it runs later inherits `keep`. Raises KechoError if the kernel refuses; then the process must end.
    """
    if len(os.listdir("/proc/self/task")) > 1:
        raise KechoError("privileges belong to a thread, and there are several")  # the others would keep theirs
    kept = capabilities("Prm").intersection(keep)
    try:
        if CAP_SETPCAP in capabilities():  # without it, no_new_privs has to do
            for number in capabilities("Bnd").difference(kept):
                _prctl(_PR_CAPBSET_DROP, number)
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
        if uid is not None:
            _become(uid)
        _capset(kept, kept, kept)
        for number in kept:
            _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number)
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    except OSError as e:
        raise KechoError(f"cannot give up privileges: {one_line(e)}") from e


def _become(uid: int) -> None:
    """With the capabilities that it has; and if it is to end with its parent, that stays so too."""
    ends_by = ctypes.c_int()
    _prctl(_PR_GET_PDEATHSIG, ctypes.addressof(ends_by))
    parent = os.getppid()
    _prctl(_PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    _prctl(_PR_SET_KEEPCAPS, 0)
    if ends_by.value:
        _prctl(_PR_SET_PDEATHSIG, ends_by.value)
        if os.getppid() != parent:
            os.kill(os.getpid(), ends_by.value)


def needed(candidates: Collection[int], attempt: Callable[[], object]) -> frozenset[int]:
    """What to keep so that `attempt` works: nothing if it does without any capability, else the first that helps."""
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


def close_descriptors(keep: Collection[int] = ()) -> None:
    """Closes what this process inherited, but for standard input, output, error and `keep`."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2 and fd not in keep:
            with contextlib.suppress(OSError):  # that of the listing is closed already
                os.close(fd)


def set_name(name: str) -> None:
    """What `ps` calls this process; 15 bytes at most."""
    buffer = ctypes.create_string_buffer(name.encode())
    _prctl(_PR_SET_NAME, ctypes.addressof(buffer))


def _prctl(option: int, *arguments: int) -> None:
    values = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    if _libc.prctl(option, *values) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _capset(*sets: Collection[int]) -> None:
    """Effective, permitted, inheritable."""
    masks = [sum(1 << number for number in numbers) for numbers in sets]
    data = struct.pack("=6I", *(mask & 0xFFFFFFFF for mask in masks), *(mask >> 32 for mask in masks))
    if _libc.capset(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), data) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
