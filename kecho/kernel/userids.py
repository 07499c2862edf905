# SPDX-License-Identifier: MIT
"""User ids for services to run as, which no account and no other service has.

Processes of one user may kill(2) each other, so services do not run as "nobody". Ids that /etc/login.defs, /etc/subuid
or /etc/subgid set aside, or that NSS knows, belong to accounts and are not used.
"""

from __future__ import annotations

import grp
import pwd
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from kecho.model.errors import Unavailable

# Unused according to systemd.io/UIDS-GIDS, and above the defaults of login.defs. A block has an id for each port.
BLOCK = 1 << 16
CANDIDATES = range(0x7000_0000, 0x7FFE_0000, BLOCK)

_LOGIN_DEFS = Path("/etc/login.defs")
_SUBORDINATE = (Path("/etc/subuid"), Path("/etc/subgid"))
# The defaults of login.defs(5).
_DEFAULTS = {"MIN": 1000, "MAX": 60_000, "SYS_MIN": 101, "SYS_MAX": 999, "SUB_MIN": 100_000, "SUB_MAX": 600_100_000}


def id_for(port: int) -> int:
    """The id of user and group for the service on that port. Raises Unavailable if none is free."""
    given = [*login_ranges(_text(_LOGIN_DEFS)), *(found for path in _SUBORDINATE for found in sub_ranges(_text(path)))]
    return choose(port, given, _has_account)


def choose(port: int, given: Collection[range], has_account: Callable[[int], bool]) -> int:
    """The id for that port, from the first block that overlaps with none of `given`. Raises Unavailable. Pure."""
    for base in CANDIDATES:
        if not any(found.start < base + BLOCK and base < found.stop for found in given) and not has_account(
            base + port
        ):
            return base + port
    raise Unavailable(
        "there is no user id that nobody else may have",
        f"leave {BLOCK} ids in a row from {CANDIDATES.start} on out of /etc/subuid, /etc/subgid and /etc/login.defs",
    )


def login_ranges(text: str) -> Iterator[range]:
    """The ranges of login.defs from which accounts get their own and their subordinate ids. Pure."""
    rows = re.findall(r'^\s*(\w+_(?:MIN|MAX))[ \t"]+([^"\n]*?)"?\s*$', text, re.MULTILINE)
    found = {name: number for name, value in rows if (number := _number(value)) is not None}
    for kind in ("UID", "GID"):
        for prefix in ("", "SYS_", "SUB_"):
            first = found.get(f"{prefix}{kind}_MIN", _DEFAULTS[f"{prefix}MIN"])
            last = found.get(f"{prefix}{kind}_MAX", _DEFAULTS[f"{prefix}MAX"])
            yield range(first, last + 1)


def sub_ranges(text: str) -> Iterator[range]:
    """The ranges that accounts may map into user namespaces, from subuid(5) or subgid(5). Pure."""
    for row in re.findall(r"^[^:\n]+:([^:\n]+):([^:\n]+)$", text, re.MULTILINE):
        first, count = map(_number, row)
        if first is not None and count is not None:
            yield range(first, first + count)


def _number(text: str) -> int | None:
    """The number as newuidmap and useradd read it, by strtoul(3): decimal, octal or hexadecimal. None if it is none."""
    found = re.fullmatch(r"\s*\+?(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)\s*", text, re.ASCII)
    if not found:
        return None
    digits = found[1].lower()
    return int(digits, 16 if digits.startswith("0x") else 8 if digits.startswith("0") else 10)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as e:
        raise Unavailable(f"cannot see which user ids are taken: {path}: {e.strerror}", f"mend {path}") from e


def _has_account(number: int) -> bool:
    """Does NSS know a user or a group of that id?"""
    lookups: Iterable[Callable[[int], object]] = (pwd.getpwuid, grp.getgrgid)
    for lookup in lookups:
        try:
            lookup(number)
        except KeyError:
            continue
        return True
    return False
