# SPDX-License-Identifier: MIT
"""Work in a process of its own: its result comes back, and nothing else of it stays."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kecho.kernel import process
from kecho.model.errors import KechoError


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    assert sorted(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_the_result_and_what_was_said() -> None:
    """More of both than a pipe holds."""

    def work() -> object:
        os.write(2, b"said " * 100_000)
        return [Path("/proc/self/comm").read_text(), os.getppid(), "x" * 1_000_000]

    answer, said = process.in_child("a-name", work)
    assert answer == ["a-name\n", os.getpid(), "x" * 1_000_000]
    assert said == ("said " * 100_000).strip()


def test_failures_are_told() -> None:
    def work() -> None:
        print("before", file=sys.stderr, flush=True)
        raise KechoError("what is wrong")

    answer, said = process.in_child("child", work)
    assert answer is None and said.splitlines()[-1] == "what is wrong"
    answer, said = process.in_child("child", lambda: {}["key"])
    assert answer is None and "Traceback" in said and said.splitlines()[-1] == "KeyError: 'key'"


def test_one_that_is_killed() -> None:
    assert process.in_child("child", lambda: os.kill(os.getpid(), signal.SIGKILL)) == (None, "")


def test_it_ends_with_its_parent() -> None:
    """Even if that is killed."""
    receiving, sending = os.pipe()
    parent = os.fork()
    if parent == 0:
        try:
            process.in_child("child", lambda: (os.write(sending, b"x"), time.sleep(600)))
        finally:
            os._exit(0)
    os.close(sending)
    with open(receiving, "rb", buffering=0) as pipe:
        assert pipe.read(1) == b"x"
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        assert pipe.read() == b""  # nobody is left who could write
