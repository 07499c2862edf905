# SPDX-License-Identifier: MIT
"""The pages of --help, in a terminal of 80 columns."""

from __future__ import annotations

import argparse
import re

import pytest

from kecho.cli.commands import COMMANDS, build_parser
from kecho.model.errors import UsageError


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("COLUMNS", "80")
    parser = build_parser()
    commands = next(one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
    return {"": parser.format_help(), **{name: commands.choices[name].format_help() for name in COMMANDS}}


def test_no_word_is_broken(pages: dict[str, str]) -> None:
    for page in pages.values():
        assert max(map(len, page.splitlines())) < 80
        assert not re.findall(r"\w-\n *\w+", page), page


def test_what_an_example_says_goes_on_below_itself(pages: dict[str, str]) -> None:
    for page in pages.values():
        for line, after in re.findall(r"^(  (?:sudo )?kecho-ctl .*\S  +\S.*)\n(  +\S.*)$", page, re.MULTILINE):
            indent = len(after) - len(after.lstrip())
            assert indent in (2, line.rindex("  ") + 2), page
    assert re.search(r"^  sudo kecho-ctl up  {10,}the best mode this\n {57}machine can run$", pages["up"], re.MULTILINE)


def test_an_option_that_not_every_engine_has_says_so(pages: dict[str, str]) -> None:
    assert re.search(r"--busy-poll US +user, engine epoll: ", pages["up"])


@pytest.mark.parametrize(
    ("words", "dest", "found"),
    [
        ("bench a --count 5 b", "targets", "a b"),
        ("bench --count 5 a b", "targets", "a b"),
        ("plot a.json -o x.png b.json c.json", "results", "a.json b.json c.json"),
        ("stats base --json 1 10", "words", "base 1 10"),
        ("down a --all b", "name", "a b"),
    ],
)
def test_options_may_stand_among_the_arguments(words: str, dest: str, found: str) -> None:
    assert getattr(build_parser().parse_args(words.split()), dest) == found.split()


@pytest.mark.parametrize("words", ["bench a --frob b", "logs a b", "up a", "check a --json b"])
def test_what_is_not_understood_is_told_with_its_command(words: str) -> None:
    with pytest.raises(UsageError, match=rf"unrecognized arguments: .* \(see kecho-ctl {words.split()[0]} --help\)"):
        build_parser().parse_args(words.split())
