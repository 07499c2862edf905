# SPDX-License-Identifier: MIT
"""The rooms of kecho/: each imports only from rooms below it, nothing goes round in a circle, and start-up is light."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import kecho
from kecho.cli.commands import COMMANDS

PACKAGE = Path(kecho.__file__).parent
# docs/design.md, "The house". From the top down; a room imports from itself and from those after it.
ROOMS = ["cli", "show", "bench", "system", "service", "backends", "kernel", "native", "model"]
HEAVY = {"asyncio", "bcc", "matplotlib", "numpy", "pandas", "pyroute2"}


def modules() -> dict[str, Path]:
    """The name of every module, and its file."""
    return {
        ".".join(("kecho", *path.relative_to(PACKAGE).with_suffix("").parts)): path
        for path in PACKAGE.glob("*/*.py")
        if path.stem != "__init__"
    }


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of ours that a file imports anywhere, also in functions and for type checkers."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("kecho"):
            found |= {node.module} | {f"{node.module}.{name.name}" for name in node.names}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return found & known.keys()


def test_each_room_imports_only_from_below() -> None:
    known = modules()
    floor = {f"kecho.{room}": number for number, room in enumerate(ROOMS)}
    assert {name.rpartition(".")[0] for name in known} == floor.keys()
    upwards = [
        f"{name} → {other}"
        for name, path in known.items()
        for other in imports(path, known)
        if floor[other.rpartition(".")[0]] < floor[name.rpartition(".")[0]]
    ]
    assert not upwards


def test_no_imports_in_a_circle() -> None:
    known = modules()
    order = graphlib.TopologicalSorter({name: imports(path, known) for name, path in known.items()})
    assert len(list(order.static_order())) == len(known) > 30


@pytest.mark.parametrize("words", [["--help"], ["status"], ["stats", "--help"], ["bench", "--help"], ["up", "--help"]])
def test_a_command_imports_nothing_heavy_and_no_other(words: list[str]) -> None:
    script = "import sys\nfrom kecho.cli.main import main\nmain(sys.argv[1:])\nprint(*sys.modules)"
    command = [sys.executable, "-c", script, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not {name.partition(".")[0] for name in loaded} & HEAVY
    assert {name for name in COMMANDS if f"kecho.cli.{name}" in loaded} == set(words) - {"--help"}
