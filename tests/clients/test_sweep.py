# SPDX-License-Identifier: MIT
"""Each system call, option and flag behaves on each path as against an ordinary server.

docs/known-limits.md lists the exceptions, by check and path.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator

import pytest
import support

SWEEP = support.ROOT / "build/sweep"
LIMITS = support.ROOT / "docs/known-limits.md"
REFERENCE = "user"
AGAIN = 2
PATHS = [path for path in support.PATHS if path != REFERENCE]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def listed() -> dict[tuple[str, str], bool]:
    """The differences that docs/known-limits.md lists, by check and path. True if every kernel shows it."""
    found = {}
    row = r"^\| (`\w+`(?:, `\w+`)*) \| ([\w, -]+) \| (all|some) \|"
    for checks, paths, kernels in re.findall(row, LIMITS.read_text(), re.MULTILINE):
        for path in paths.split(", "):
            found.update({(check, path): kernels == "all" for check in re.findall(r"`(\w+)`", checks)})
    assert found
    return found


def sweep(path: str, *checks: str) -> dict[str, str]:
    """What each check saw on the path. Runs all checks unless some are named."""
    service = support.Kept(path)
    try:
        command = [SWEEP, "127.0.0.1", service.idle().port, *checks]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True, timeout=600)
    finally:
        service.close()
        if path in support.MODULE_PATHS:
            import fastecho

            fastecho.unload()
    return dict(line.split(":", 1) for line in done.stdout.splitlines())


@pytest.fixture(scope="module")
def usual() -> Iterator[dict[str, str]]:
    """What the checks saw of an ordinary server."""
    seen = sweep(REFERENCE)
    assert len(seen) > 100
    yield seen


@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", PATHS)
def test_sweep(path: str, usual: dict[str, str]) -> None:
    seen = sweep(path)
    assert seen.keys() == usual.keys()
    known = {check: always for (check, of), always in listed().items() if of == path}
    differing = {check for check in seen if seen[check] != usual[check]}
    news = differing - known.keys()
    for _ in range(AGAIN):  # a difference that is due to a busy machine does not repeat
        if news:
            expected, again = sweep(REFERENCE, *news), sweep(path, *news)
            news = {check for check in news if again[check] != expected[check]}
    told = {check: (seen[check], usual[check]) for check in news}
    gone = {check for check, always in known.items() if always and check not in differing}
    assert not told, f"differences that docs/known-limits.md does not list: {told}"
    assert not gone, f"differences that docs/known-limits.md lists, and that are gone: {gone}"
