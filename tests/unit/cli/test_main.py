# SPDX-License-Identifier: MIT
"""``kecho.cli.main``: what a signal does at any moment."""

from __future__ import annotations

import subprocess
import sys

import pytest

_SCRIPT = """
import os, signal, sys, time
from kecho.cli import main
from kecho.system import tune

class Ends:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGNAME)
        time.sleep(0.01)

def run(argv):
    with tune._handled(tune._exit, signal.SIGTERM):
        Ends()
        time.sleep(30)
    return 0

main._run = run
sys.exit(main.main())
"""


@pytest.mark.parametrize(("name", "code", "said"), [("SIGINT", 130, "\n"), ("SIGTERM", 143, "")])
def test_a_signal_within_a_destructor(name: str, code: int, said: str) -> None:
    """Python ignores what is raised there; the command ends all the same."""
    command = [sys.executable, "-c", _SCRIPT.replace("SIGNAME", name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=25, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", said)
