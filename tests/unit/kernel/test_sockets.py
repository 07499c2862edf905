# SPDX-License-Identifier: MIT
"""The sockets of a port, as inet_diag tells them: of that port alone, whoever else has some."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from kecho.kernel import sockets


@contextlib.contextmanager
def _server(family: int, clients: int) -> Iterator[tuple[int, list[socket.socket]]]:
    """A port of that family's loopback with so many connections, and its clients."""
    with contextlib.ExitStack() as stack:
        host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
        listener = stack.enter_context(socket.create_server((host, 0), family=family, backlog=7))
        port = listener.getsockname()[1]
        socks = []
        for _ in range(clients):
            socks.append(stack.enter_context(socket.create_connection((host, port))))
            stack.enter_context(listener.accept()[0])
        yield port, socks


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["v4", "v6"])
def test_the_sockets_of_one_port(family: int) -> None:
    with _server(family, 3) as (port, socks), _server(family, 20), _server(socket.AF_INET, 1):
        found = sockets.connections(port)
        (listener,) = sockets.listeners(port)
        ends = {sock.getsockname()[1] for sock in socks}
        assert {int(one["remote"].rpartition(":")[2]) for one in found} == ends
        assert {int(one["local"].rpartition(":")[2]) for one in found} == {port}
        assert len(found) == len(socks) and {one["state"] for one in found} == {"ESTABLISHED"}
        assert listener.backlog == 7
        assert sockets.listener_on(port).endswith(")")


def test_queues() -> None:
    with _server(socket.AF_INET, 2) as (port, socks):
        socks[1].send(b"abc")
        waiting = {one["remote"]: one["recv_queue"] for one in sockets.connections(port)}
        names = ["{}:{}".format(*sock.getsockname()) for sock in socks]
        assert waiting == {names[0]: 0, names[1]: 3}


def test_a_port_of_nobody() -> None:
    with _server(socket.AF_INET, 1):
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            port = bound.getsockname()[1]
        assert sockets.connections(port) == [] and sockets.listeners(port) == [] and sockets.listener_on(port) == ""
