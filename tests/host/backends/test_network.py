# SPDX-License-Identifier: MIT
"""Which connections a service takes: remote clients over veth, other namespaces, other servers on the same port."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import network
import pytest
import support

Up = Callable[..., support.Service]

HERE, THERE = f"10.83.{network.NET}.1", f"10.83.{network.NET}.2"
HERE6 = f"fd83:{network.NET}::1"


@pytest.fixture
def veth() -> Iterator[str]:
    """A namespace at the other end of a veth pair: HERE is ours, THERE is its."""
    with network.veth() as pair:
        assert (pair.here, pair.there, pair.here6) == (HERE, THERE, HERE6)
        yield pair.namespace


@contextlib.contextmanager
def shouting(listener: socket.socket) -> Iterator[None]:
    """A server that answers in upper case, so that an echo by another server is noticed."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                with sock:
                    sock.settimeout(support.TIMEOUT_S)
                    while data := sock.recv(4096):
                        sock.sendall(data.upper())

    listener.listen()
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(support.TIMEOUT_S)


def shouts(sock: socket.socket) -> None:
    """The peer is the server of `shouting`, and stays so."""
    for _ in range(20):
        sock.sendall(b"kecho")
        assert support.receive(sock, 5) == b"KECHO"


def seen(one: support.Service) -> tuple[int, int]:
    """Connections and echoes of the service so far."""
    stats = one.stats()
    return stats["connections"]["total"], sum(path["echoes"] for path in stats["paths"].values())


@pytest.fixture(scope="module", params=support.PATHS)
def served(request: pytest.FixtureRequest) -> Iterator[support.Service]:
    """One service a path, on both loopback addresses, for all tests that need no other."""
    one = support.up(path=request.param)
    one.expected = request.param
    try:
        yield one
    finally:
        one.down()


@pytest.mark.parametrize(("here", "family"), [(HERE, socket.AF_INET), (HERE6, socket.AF_INET6)], ids=["v4", "v6"])
def test_remote_client(service: Up, veth: str, here: str, family: int) -> None:
    """The kernel echoes every byte of a remote client in order."""
    one = service(bind=here)
    with support.connect(here, one.port, support.socket_in(veth, family)) as client:
        for i in range(1000):
            support.echo(client, b"%064d" % i)
        stats = one.stats()["paths"]
        assert stats["skb"]["echoes"] == stats["skb"]["latency_ns"]["count"] == 1000
        assert (stats["skb"]["bytes"], stats["egress"]["echoes"], stats["user"]["echoes"]) == (64000, 0, 0)
        support.echo(client, support.payload(20 << 20))
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""


def test_remote_clients_beside_local_ones(service: Up, veth: str) -> None:
    """Both use one address of one service, and each takes its own path."""
    one = service(bind=HERE)
    with (
        support.connect(HERE, one.port, support.socket_in(veth, socket.AF_INET)) as remote,
        support.connect(HERE, one.port) as local,
    ):
        for i in range(101):
            support.echo(remote, b"remote %d" % i)
            support.echo(local, b"local %d" % i)
    stats = one.stats()["paths"]
    assert (stats["skb"]["echoes"], stats["egress"]["echoes"], stats["user"]["echoes"]) == (101, 101, 0)


def test_remote_client_that_does_not_read(service: Up, veth: str) -> None:
    """The client gets everything in order once it reads."""
    one = service(bind=HERE)
    data = support.payload(8 << 20)
    with support.connect(HERE, one.port, support.socket_in(veth, socket.AF_INET)) as client:
        client.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < len(data):
                sent += client.send(data[sent : sent + 65536])
        client.settimeout(support.TIMEOUT_S)
        with support.sending(client, data[sent:], lambda: client.shutdown(socket.SHUT_WR)):
            support.assert_same(support.receive_all(client), data)


def test_same_address_in_another_namespace(served: support.Service, namespace: str, family: int) -> None:
    """A connection with the same addresses and ports in another namespace is not ours."""
    before = seen(served)
    address = served.address(family)
    listener = support.socket_in(namespace, family)
    listener.bind((address, served.port))
    with shouting(listener), support.connect(address, served.port, support.socket_in(namespace, family)) as client:
        shouts(client)
        assert seen(served) == before
        with served.client(family) as ours:
            support.echo(ours, b"kecho")


def test_a_client_from_our_port(served: support.Service) -> None:
    """A client may use the service's port number as its own."""
    before = seen(served)
    listener = socket.create_server(("127.0.0.2", 0))
    client = socket.socket()
    client.bind(("127.0.0.2", served.port))
    with shouting(listener), support.connect(*listener.getsockname(), client) as sock:
        shouts(sock)
        assert seen(served) == before


def test_a_neighbour_on_our_port(served: support.Service) -> None:
    """Another server has the same port on another address of this machine."""
    before = seen(served)
    with shouting(socket.create_server(("127.0.0.3", served.port))), support.connect("127.0.0.3", served.port) as sock:
        shouts(sock)
        assert seen(served) == before


def test_a_remote_server_on_our_port(service: Up, veth: str, path: str) -> None:
    """Bound to every address here, a service still leaves connections to other hosts alone."""
    one = service(path=path, bind="0.0.0.0")
    listener = support.socket_in(veth, socket.AF_INET)
    listener.bind((THERE, one.port))
    with shouting(listener), support.connect(THERE, one.port) as sock:
        shouts(sock)
        assert seen(one) == (0, 0)


@pytest.mark.parametrize(("wildcard", "addresses"), [("0.0.0.0", ["127.0.0.1", "127.9.8.7"]), ("::", ["::1"])])
def test_wildcard(service: Up, path: str, wildcard: str, addresses: list[str]) -> None:
    """Local clients of a wildcard take the path of local clients."""
    one = service(path=path, bind=wildcard)
    for address in addresses:
        with support.connect(address, one.port) as client:
            support.echo(client, b"kecho")
    assert one.path(path)["echoes"] == len(addresses)


def test_several_addresses(service: Up, path: str) -> None:
    """It serves these addresses and no others."""
    addresses = ["127.0.0.1", "127.0.0.3", "::1"]
    one = service(path=path, bind=addresses)
    for address in addresses:
        with support.connect(address, one.port) as client:
            support.echo(client, b"kecho")
    assert one.path(path)["echoes"] == len(addresses)
    with pytest.raises(ConnectionRefusedError):
        support.connect("127.0.0.2", one.port)


def test_ipv4_mapped_client(served: support.Service) -> None:
    """An IPv6 socket that speaks IPv4 takes the same path as any."""
    before = served.path(served.expected)["echoes"]
    with support.connect("::ffff:127.0.0.1", served.port, socket.socket(socket.AF_INET6)) as client:
        for _ in range(7):
            support.echo(client, b"kecho")
    assert served.path(served.expected)["echoes"] == before + 7


def test_same_connection_in_another_namespace(served: support.Service, namespace: str, family: int) -> None:
    """Addresses and ports of both ends are the same at the same time: only the namespace differs."""
    connections, echoes = seen(served)
    address = served.address(family)
    listener = support.socket_in(namespace, family)
    listener.bind((address, served.port))
    with served.client(family) as ours, shouting(listener):
        theirs = support.socket_in(namespace, family)
        theirs.bind(ours.getsockname())
        with support.connect(address, served.port, theirs):
            assert (theirs.getsockname(), theirs.getpeername()) == (ours.getsockname(), ours.getpeername())
            for _ in range(20):
                shouts(theirs)
                support.echo(ours, b"kecho")
        for _ in range(20):  # the end of theirs is not the end of ours
            support.echo(ours, b"kecho")
    assert seen(served) == (connections + 1, echoes + 40)


@pytest.mark.parametrize(
    ("path", "others", "wildcard"),
    [
        ("egress", "egress", False),
        ("ingress", "egress", False),
        ("skb", "skb", False),
        ("user", "egress", False),
        ("skb", "skb", True),
    ],
    ids=["egress-egress", "ingress-egress", "skb-skb", "user-egress", "wildcards"],
)
def test_a_client_from_another_services_port(service: Up, path: str, others: str, wildcard: bool, veth: str) -> None:
    """The service that a client connects to serves it; the service whose port the client has sees nothing."""
    if wildcard:  # a port that is bound everywhere leaves a local client no address: so it is a remote one
        one, other = service(path=path, bind="0.0.0.0"), service(path=others, bind="0.0.0.0")
        client = support.socket_in(veth, socket.AF_INET)
        client.bind((THERE, other.port))
        address = HERE
    else:
        one, other = service(path=path, bind="127.0.0.1"), service(path=others, bind="127.0.0.1")
        client = socket.socket()
        client.bind(("127.0.0.2", other.port))
        address = "127.0.0.1"
    with support.connect(address, one.port, client):
        for _ in range(101):
            support.echo(client, b"kecho")
        with other.client() as another:
            support.echo(another, b"kecho")
    assert (seen(one), seen(other)) == ((1, 101), (1, 1))


def test_a_client_from_the_port_that_it_connects_to(served: support.Service) -> None:
    """A connection with the same port at both ends is served and counted once."""
    connections, echoes = seen(served)
    carried = served.path(served.expected)["echoes"]
    client = socket.socket()
    client.bind(("127.0.0.4", served.port))
    with support.connect("127.0.0.1", served.port, client):
        for _ in range(101):
            support.echo(client, b"kecho")
    assert served.path(served.expected)["echoes"] == carried + 101
    assert seen(served) == (connections + 1, echoes + 101)


def test_two_services_on_one_port(service: Up, veth: str) -> None:
    """Two services share a port on different addresses; the address decides which one serves."""
    port = support.free_port()
    near = service(path="egress", bind="127.0.0.1", port=port)
    far = service(path="skb", bind=HERE, port=port)
    with (
        support.connect("127.0.0.1", port) as local,
        support.connect(HERE, port) as own,
        support.connect(HERE, port, support.socket_in(veth, socket.AF_INET)) as remote,
    ):
        for _ in range(20):
            support.echo(local, b"local")
            support.echo(own, b"own")
            support.echo(remote, b"remote")
    assert near.path("egress")["echoes"] == 20
    assert (far.path("skb")["echoes"], far.path("skb")["bytes"]) == (40, 20 * (3 + 6))
