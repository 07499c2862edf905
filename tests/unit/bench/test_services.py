# SPDX-License-Identifier: MIT
"""What `--compare` takes, and ports for its services. That they come up: tests/host/bench/test_compare.py."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from kecho.bench import services
from kecho.model.config import Config
from kecho.model.errors import Unavailable, UsageError


def test_every_variant_is_a_configuration() -> None:
    for name, options in services.VARIANTS.items():
        assert services.parse(name) == (name,)
        assert Config(backlog=1, **options).mode == name.partition(":")[0]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "--compare '': must be of mirror, "),
        ("user,", "--compare '': must be of mirror, "),
        ("user, sockmap", "--compare ' sockmap': must be of "),
        ("sockmap,user,sockmap", "--compare: sockmap named twice"),
        ("module,user,module:workqueue", "--compare: a kernel takes the module once"),
    ],
)
def test_refused_in_one_line(text: str, line: str) -> None:
    with pytest.raises(UsageError) as caught:
        services.parse(text)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_a_free_port_is_free_and_not_one_that_clients_get() -> None:
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    for _ in range(50):
        port = services.free_port(["127.0.0.1"])
        assert not low <= port <= high
        with socket.create_server(("127.0.0.1", port)):
            assert not services._is_free("127.0.0.1", port)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may")
def test_services_are_roots() -> None:
    with pytest.raises(Unavailable, match="sudo"), services.brought_up(["user"]):
        pass
