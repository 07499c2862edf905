# SPDX-License-Identifier: MIT
"""Files of /proc. Names of mount points, cgroups and processes in them may hold any byte."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

_ESCAPED = re.compile(rb"\\([0-7]{3})")  # mangle_path, fs/seq_file.c


def text(path: str | Path) -> str:
    """The text of a file. Bytes that are not UTF-8 become surrogates, as in Python's file names (os.fsdecode)."""
    return os.fsdecode(Path(path).read_bytes())


def unescaped(word: str) -> str:
    """A name as the kernel has it, from a table of words in which ``\\040`` stands for a space."""
    return os.fsdecode(_ESCAPED.sub(lambda found: bytes([int(found[1], 8) & 0xFF]), os.fsencode(word)))


def netns_inode() -> int:
    """The inode of this process's network namespace, which names it to other processes."""
    return os.stat("/proc/self/ns/net").st_ino


def session(leader: int) -> list[int]:
    """The processes of the session of that leader."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            fields = text(entry / "stat").rpartition(")")[2].split()  # from the state on: proc(5)
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(entry.name))
    return found
