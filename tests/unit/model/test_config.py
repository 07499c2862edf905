# SPDX-License-Identifier: MIT
"""Every value of a service's configuration that makes no sense is refused, in one line that names the option."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kecho.model.config import Config, endpoint, family_of, parse_address
from kecho.model.errors import UsageError

BAD: list[tuple[dict[str, Any], str]] = [
    ({"name": ""}, "--name ''"),
    ({"name": "../etc"}, "--name '../etc'"),
    ({"name": ".hidden"}, "--name '.hidden'"),
    ({"name": "two words"}, "--name 'two words'"),
    ({"name": "line\n"}, "--name 'line\\n'"),
    ({"name": "n" * 64}, "--name"),
    ({"port": 0}, "--port 0: must be from 1 to 65535"),
    ({"port": -1}, "--port -1: must be from 1 to 65535"),
    ({"port": 65536}, "--port 65536: must be from 1 to 65535"),
    ({"backlog": 0}, "--backlog 0: must be at least 1"),
    ({"backlog": 2**31}, f"--backlog {2**31}"),
    ({"path": "fast"}, "--path fast: must be one of auto, egress, ingress, skb, user"),
    ({"limit_bytes": 4095}, "--limit 4095: must be from 4096 to 1073741824 bytes"),
    ({"limit_bytes": (1 << 30) + 1}, "--limit 1073741825: must be from 4096 to 1073741824 bytes"),
    ({"busy_poll_us": -1}, "--busy-poll -1: must be from 0 to 1000000 µs"),
    ({"busy_poll_us": 5, "engine": "io_uring"}, "--busy-poll is for --engine epoll"),
    ({"engine": "poll"}, "--engine poll: must be one of epoll, io_uring"),
    ({"binds": ()}, "--bind: at least one address is needed"),
    ({"binds": ("localhost",)}, "--bind localhost: not an IPv4 or IPv6 address"),
    ({"binds": ("127.0.0.256",)}, "--bind 127.0.0.256: not an IPv4 or IPv6 address"),
    ({"binds": ("127.0.0.1", "")}, "--bind : not an IPv4 or IPv6 address"),
    ({"binds": ("fe80::1%eth0",)}, "--bind fe80::1%eth0: zones and IPv4-mapped addresses are not supported"),
    ({"binds": ("::ffff:127.0.0.1",)}, "--bind ::ffff:127.0.0.1: zones and IPv4-mapped addresses are not supported"),
    ({"binds": ("::1", "0:0::1")}, "--bind: the same address twice"),
]


@pytest.mark.parametrize(("options", "line"), BAD, ids=[str(options)[:40] for options, _ in BAD])
def test_refused_in_one_line(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError) as caught:
        Config(mode="user", **{"backlog": 128, **options})
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"name": "a"},
        {"name": "A-b_c.9" * 9},
        {"port": 1},
        {"port": 65535},
        {"backlog": 2**31 - 1},
        {"path": "skb"},
        {"limit_bytes": 4096},
        {"limit_bytes": 1 << 30},
        {"engine": "io_uring"},
        {"binds": ("0.0.0.0", "::")},
    ],
    ids=str,
)
def test_accepted(options: dict[str, Any]) -> None:
    config = Config(mode="sockmap", **{"backlog": 128, **options})
    assert {key: getattr(config, key) for key in options} == options
    assert Config(**{**(obj := json.loads(json.dumps(config.to_json()))), "binds": tuple(obj["binds"])}) == config


def test_addresses() -> None:
    assert parse_address("::1") == parse_address("0:0::1")
    assert family_of("127.0.0.1").name == "AF_INET"
    assert family_of("::").name == "AF_INET6"
    assert endpoint("127.0.0.1", 80) == "127.0.0.1:80"
    assert endpoint("::1", 80) == "[::1]:80"
