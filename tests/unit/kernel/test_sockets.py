# SPDX-License-Identifier: MIT
"""The sockets of a port by inet_diag: those of that port and no others."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from kecho.bench import surroundings
from kecho.bench.targets import Target
from kecho.cli import status
from kecho.kernel import procfs, sockets
from kecho.model.config import Config
from kecho.model.errors import Unavailable
from kecho.show import terminal
from kecho.system.topology import ClientNetns


@contextlib.contextmanager
def _server(family: int, clients: int) -> Iterator[tuple[int, list[socket.socket]]]:
    """A port on the loopback address of that family with `clients` connections, and the clients."""
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


# Requests that fail as without tcp_diag and inet_diag: for sockets of a protocol without a diag module, where the dump
# ends with an errno; and of an unknown type, which the kernel answers with an error.
@pytest.mark.parametrize(
    ("name", "value"), [("_PROTOCOL", 200), ("_SOCK_DIAG_BY_FAMILY", 0x7000)], ids=["dump", "error"]
)
def test_a_kernel_that_lists_no_sockets(monkeypatch: pytest.MonkeyPatch, name: str, value: int) -> None:
    """`status` says so, and does not claim that there are none. Callers that can do without the list go on."""
    with _server(socket.AF_INET, 1) as (port, _):
        monkeypatch.setattr(sockets, name, value)
        with pytest.raises(Unavailable, match=r"the kernel does not list TCP sockets \(.+\): modprobe tcp_diag"):
            sockets.connections(port)
        with pytest.raises(Unavailable):
            sockets.listeners(port)

        service = {"name": "s", "mode": "user", "state": "up", "port": port, "netns": procfs.netns_inode()}
        status._add_sockets(service)
        assert service["sockets"] is None
        assert "does not list TCP sockets" in service["why"]["sockets"]
        assert "connections not shown: the kernel does not list" in terminal.sockets_text([service], None)

        assert surroundings._backlogs([Target("s", "127.0.0.1", port)]) == {}
        assert sockets.listener_on(port) == ""
        config = Config(mode="user", port=port, backlog=1, binds=("127.0.0.1",))
        assert str(sockets.port_taken(config)) == f"cannot listen on 127.0.0.1:{port}: the port is taken"
        assert ClientNetns(("192.0.2.1",), (), ()).reach("127.0.0.1", port) == "192.0.2.1"


def test_a_listener_of_v6_alone() -> None:
    with socket.socket(socket.AF_INET6) as listener:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(("::", 0))
        listener.listen()
        (found,) = sockets.listeners(listener.getsockname()[1])
    assert found.v6_only and found.takes("::1") and not found.takes("127.0.0.1")
