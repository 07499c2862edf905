# SPDX-License-Identifier: MIT
"""The options of `up` and the modes that have them. That they act: tests/host."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from kecho.backends import base
from kecho.cli import up
from kecho.cli.commands import build_parser
from kecho.model.config import Config
from kecho.model.errors import UsageError


def test_the_backlog_is_what_the_system_allows() -> None:
    allowed = int(Path("/proc/sys/net/core/somaxconn").read_text())
    parser = build_parser()
    for words, backlog in (([], allowed), (["--backlog=7"], 7)):
        assert up._config_of(parser.parse_args(["up", "--mode=user", *words]), {}).backlog == backlog


@pytest.mark.parametrize(
    ("text", "limit_bytes"), [("4096", 4096), ("4K", 4096), ("4k", 4096), ("1M", 1 << 20), ("1024M", 1 << 30)]
)
def test_the_limit_takes_suffixes(text: str, limit_bytes: int) -> None:
    assert build_parser().parse_args(["up", f"--limit={text}"]).limit_bytes == limit_bytes


def test_every_option_of_a_mode_is_one_of_up() -> None:
    own = {option for mode in base._MODES.values() for option in mode.options}
    assert own == up._OPTIONS.keys()
    assert own <= {field.name for field in fields(Config)}


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("path", "--path=skb"),
        ("limit_bytes", "--limit=4096"),
        ("latency", "--no-latency"),
        ("keep_secret", "--keep-secret=file"),
        ("bench", "--bench=1"),
        ("inline", "--no-inline"),
        ("engine", "--engine=epoll"),
    ],
)
def test_an_option_of_another_mode_is_refused(field: str, given: str) -> None:
    having = base.modes_with(field)
    assert having
    for mode in base.MODES:
        if mode not in having:
            args = build_parser().parse_args(["up", f"--mode={mode}", given])
            with pytest.raises(UsageError) as caught:
                up.run(args)
            assert str(caught.value) == f"{up._OPTIONS[field]} is for --mode {', '.join(having)}"
