# SPDX-License-Identifier: MIT
"""Objects, before BPF is made of them. That they are compiled, kept and loaded: tests/host/kernel/test_bpf.py."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from kecho.kernel.compiler import Function, Object, source_text
from kecho.kernel.syscall import Map, instruction

LOAD, EXIT = 0x18, 0x95


def load(register: int, source: int, low: int, high: int) -> bytes:
    return struct.pack("=BBhI", LOAD, register | source << 4, 0, low) + struct.pack("=BBhI", 0, 0, 0, high)


def test_binding_changes_the_loads_alone() -> None:
    head = instruction(0xB7, 0, immediate=1)
    code = head + load(3, 1, 77, 0) + load(9, 0, 1, 0x6B656368) + load(2, 0, 5, 6) + instruction(EXIT)
    function = Function(code, {1: "table", 3: "KECHO_KEY"}, 0)
    assert function.bound({"KECHO_KEY": 0xFEDCBA9876543210}, {"table": 12}) == (
        head + load(3, 1, 12, 0) + load(9, 0, 0x76543210, 0xFEDCBA98) + load(2, 0, 5, 6) + instruction(EXIT)
    )


def test_an_object_survives_json() -> None:
    made = Object(
        "GPL",
        bytes(range(256)),
        (Map(1, 8, 16, 100, 1, "table", 3, 4), Map(27, 0, 0, 4096)),
        {"first": Function(instruction(EXIT), {}, 0), "second": Function(load(1, 1, 0, 0), {0: "table"}, 7)},
    )
    assert Object.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_sources_are_expanded_with_their_lines(tmp_path: Path) -> None:
    """Each file once, and errors are reported where they are."""
    (tmp_path / "main.c").write_text('first\n#include "one.h"\n#include "two.h"\nlast\n')
    (tmp_path / "one.h").write_text('#include "two.h"\none\n')
    (tmp_path / "two.h").write_text("two\n")
    main, one, two = (tmp_path / name for name in ("main.c", "one.h", "two.h"))
    assert source_text(main).splitlines() == [
        *(f'# 1 "{main}"', "first", f'# 1 "{one}"', f'# 1 "{two}"', "two", f'# 2 "{one}"', "one"),
        *(f'# 3 "{main}"', "last"),
    ]
