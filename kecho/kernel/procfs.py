# SPDX-License-Identifier: MIT
"""Files of the kernel with names that others chose, of mount points, cgroups, processes: any byte may be in them."""

from __future__ import annotations

import os
import re
from pathlib import Path

_ESCAPED = re.compile(rb"\\([0-7]{3})")  # mangle_path, fs/seq_file.c


def text(path: str | Path) -> str:
    """What a file holds. What is not UTF-8 comes as Python has it in names of files, so that it can be given back."""
    return os.fsdecode(Path(path).read_bytes())


def unescaped(word: str) -> str:
    """A name as the kernel has it, from a table of words in which ``\\040`` stands for a space."""
    return os.fsdecode(_ESCAPED.sub(lambda found: bytes([int(found[1], 8) & 0xFF]), os.fsencode(word)))
