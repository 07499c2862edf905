# SPDX-License-Identifier: MIT
"""Defaults that two languages must both have are equal."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from kecho.bench import runner
from kecho.kernel import features
from kecho.model import config
from kecho.native import programs

ROOT = Path(__file__).resolve().parents[2]


def said_by(program: str) -> dict[str, str]:
    """The default of each option, in the words of the program's --help."""
    done = subprocess.run([programs.find(program), "--help"], capture_output=True, text=True, check=True)
    return dict(re.findall(r"^ +--([a-z-]+) .*\(default (\w+)[),]", done.stdout, re.MULTILINE))


def test_the_load_generator() -> None:
    defaults = {
        "connections": runner.DEFAULT_CONNECTIONS,
        "threads": runner.RunOptions.threads,
        "size": runner.RunOptions.size_bytes,
        "seed": runner.DEFAULT_SEED,
        "bursts": runner.DEFAULT_BURSTS,
        "connect-timeout": runner.DEFAULT_TIMEOUT_S,
        "io-timeout": runner.DEFAULT_TIMEOUT_S,
    }
    said = said_by("bench")
    assert {name: said[name] for name in defaults} == {name: str(value) for name, value in defaults.items()}


def test_the_port() -> None:
    port = str(config.DEFAULT_PORT)
    assert said_by("bench")["port"] == said_by("user-echo-server")["port"] == port
    assert re.findall(r"\.port = (\d+),", (ROOT / "kmod/params.c").read_text()) == [port]


def test_the_cache_of_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_scripts() -> Path:
        command = ["bash", "-c", '. scripts/common.sh; printf %s "$cache"']
        return Path(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)

    monkeypatch.delenv("KECHO_CACHE", raising=False)
    assert of_scripts() == features.cache()
    monkeypatch.setenv("KECHO_CACHE", "/elsewhere")
    assert of_scripts() == features.cache() == Path("/elsewhere")
