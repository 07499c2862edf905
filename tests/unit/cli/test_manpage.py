# SPDX-License-Identifier: MIT
"""The man page: whole, in sections, and as a reader of man pages expects it."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess

import pytest

from kecho.cli import manpage
from kecho.cli.commands import COMMANDS, build_parser

PAGE = manpage.page("2026-11-28")


def test_sections() -> None:
    sections = re.findall(r"^\.SH (.+)$", PAGE, re.MULTILINE)
    assert sections == [
        *("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "COMMANDS", "EXAMPLES", "FILES", "EXIT STATUS", "SEE ALSO"),
    ]
    assert re.findall(r"^\.SS kecho\\-ctl (.+)$", PAGE, re.MULTILINE) == list(COMMANDS)
    codes = PAGE.partition(".SH EXIT STATUS\n")[2].partition(".SH")[0]
    assert re.findall(r"^\.B (\d)$", codes, re.MULTILINE) == list("0123")


def test_every_option() -> None:
    commands = next(one for one in build_parser()._actions if isinstance(one, argparse._SubParsersAction))
    plain = PAGE.replace("\\-", "-")
    for name, command in commands.choices.items():
        part = plain.partition(f".SS kecho-ctl {name}\n")[2].partition("\n.SS")[0]
        for action in command._actions:
            assert action.dest == "help" or all(
                option in part for option in action.option_strings or [action.metavar or ""]
            )


def test_ascii_and_no_line_is_a_request_by_chance() -> None:
    assert PAGE.isascii()
    requests = {line.split()[0] for line in PAGE.splitlines() if line.startswith((".", "'"))}
    assert requests == {".TH", ".nh", ".ad", ".SH", ".SS", ".PP", ".TP", ".B", ".I", ".nf", ".fi"}


@pytest.mark.skipif(not shutil.which("mandoc"), reason="no mandoc")
def test_mandoc_has_nothing_to_say() -> None:
    done = subprocess.run(["mandoc", "-T", "lint"], input=PAGE, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
