# SPDX-License-Identifier: MIT
"""The small faults that `make mutants` makes: each is still one of the tree as it is, and its tests are there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATCHES = sorted((ROOT / "tests/mutants").glob("*.patch"))


@pytest.mark.parametrize("patch", PATCHES, ids=[patch.stem for patch in PATCHES])
def test_a_patch_applies(patch: Path) -> None:
    done = subprocess.run(["git", "apply", "--check", patch], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = re.findall(r"^Tests: (.+)$", patch.read_text(), re.MULTILINE)
    file, chosen = re.fullmatch(r"(\S+) -k (\S+)", line).groups()  # type: ignore[union-attr]
    tests = re.findall(r"^def (test_\w+)", (ROOT / file).read_text(), re.MULTILINE)
    assert any(word in name for word in re.split(r"\+or\+", chosen) for name in tests)
