# SPDX-License-Identifier: MIT
"""Files of the kernel that contain names of mount points, cgroups and processes. A name may hold any byte."""

from __future__ import annotations

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
