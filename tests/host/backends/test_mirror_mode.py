# SPDX-License-Identifier: MIT
"""Mode mirror as a service: port, devices, secret and left-overs. TCP itself is the oracle."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import network
import pytest
import support
from pyroute2.iproute.linux import IPRoute

from kecho.kernel import syscall

Up = Callable[..., support.Service]
Kecho = Callable[..., Any]

_INGRESS = 0xFFFFFFF2  # parent of the filters at the ingress of clsact; egress is the next number


@pytest.fixture
def pair() -> Iterator[network.Veth]:
    with network.veth() as found:
        yield found


def remote(pair: network.Veth, port: int, address: str = "") -> socket.socket:
    """A client at the other end of the pair."""
    return support.connect(address or pair.here, port, support.socket_in(pair.namespace, socket.AF_INET))


def attached(one: support.Service) -> list[str]:
    """The devices that the mirror is attached to, found by its tcx links."""
    names = dict(socket.if_nameindex())
    return sorted(names[index] for index in support.fdinfo(one.pid, "ifindex") if index in names)


# ---- the port ----


def test_port_held_by_somebody(kecho: Kecho) -> None:
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        port = somebody.getsockname()[1]
        done = kecho("up", "--mode=mirror", f"--name=pytest-{os.getpid()}-held", f"--port={port}")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "taken by" in done.stderr, done.stderr


def test_nobody_takes_the_port(service: Up, family: int) -> None:
    one = service(mode="mirror")
    with socket.socket(family) as sock, pytest.raises(OSError, match="in use"):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((one.address(family), one.port))
        sock.listen()


# ---- devices ----


@pytest.fixture
def line(kecho: Kecho) -> Iterator[Callable[..., str]]:
    """A function that returns what `up` prints for given addresses."""
    name = f"pytest-{os.getpid()}-line"

    def up(*binds: str) -> str:
        kecho("down", name)
        options = [f"--bind={bind}" for bind in binds]
        done = kecho("up", "--mode=mirror", f"--name={name}", f"--port={support.free_port()}", *options)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    yield up
    assert kecho("down", name).returncode == 0


def test_up_tells_of_the_firewall(line: Callable[..., str], pair: network.Veth) -> None:
    assert "firewall" not in line("127.0.0.1", "::1")
    told = line(pair.here)
    assert pair.device in told and "passes no firewall (INPUT) and no conntrack" in told


def test_addresses_decide_the_devices(service: Up, pair: network.Veth) -> None:
    with network.veth(network.NET + 256) as other:
        one = service(mode="mirror", bind=[pair.here, "127.0.0.1"])
        assert attached(one) == sorted([pair.device, "lo"])
        for client in (remote(pair, one.port), support.connect("127.0.0.1", one.port)):
            with client:
                support.echo(client, support.payload(10_000))
        # The port is closed at an address that is not the service's, and by way of a device that is not.
        for address in (pair.here, other.here):
            with pytest.raises(OSError), remote(other, one.port, address):
                pass


@pytest.mark.parametrize("address, other", [("127.0.0.1", "127.0.0.2"), ("127.0.0.2", "127.0.0.1")])
def test_one_loopback_address_is_not_all_of_them(service: Up, address: str, other: str) -> None:
    one = service(mode="mirror", bind=address)
    with support.connect(address, one.port) as client:
        support.echo(client, support.payload(10_000))
    with pytest.raises(ConnectionRefusedError):
        support.connect(other, one.port)


def test_wildcard_and_a_device_that_comes_later(service: Up, pair: network.Veth) -> None:
    one = service(mode="mirror", bind="0.0.0.0")
    with remote(pair, one.port) as old:
        support.echo(old, b"old")
        with network.veth(network.NET + 256) as later:
            support.wait_for(lambda: later.device in attached(one), "the new device")
            with remote(later, one.port) as new:
                support.echo(new, support.payload(100_000))
        support.wait_for(lambda: later.device not in attached(one), "the end of it")
        support.echo(old, b"still there")
        with IPRoute() as route:
            index = route.link_lookup(ifname=pair.device)[0]
            for address, prefix in ((pair.here, 24), (pair.here6, 64)):
                route.addr("del", index=index, address=address, prefixlen=prefix)
        support.wait_for(lambda: pair.device not in attached(one), "to leave what has no address any more")


# ---- neighbours, and the end ----


def others(route: IPRoute, index: int) -> list[tuple[object, ...]]:
    """The filters of a device's clsact, ingress and egress, in order, and its qdiscs."""
    filters = [
        (parent, found["info"], found["handle"], found.get_attr("TCA_KIND"))
        for parent in (_INGRESS, _INGRESS + 1)
        for found in route.get_filters(index, parent=parent)
    ]
    return filters + [(qdisc["handle"], qdisc["parent"]) for qdisc in route.get_qdiscs(index=index)]


def test_filters_of_others_stay(service: Up, pair: network.Veth) -> None:
    with IPRoute() as route:
        index = route.link_lookup(ifname=pair.device)[0]
        route.tc("add", "clsact", index)
        program = syscall.prog_load(syscall.PROG_TYPE_SCHED_CLS, syscall.RETURN_UNSPEC)
        for parent in (_INGRESS, _INGRESS + 1):
            for prio in (1, 5):
                kind = {"fd": program, "name": f"others-{prio}", "direct_action": True, "classid": 1}
                route.tc("add-filter", "bpf", index, parent=parent, prio=prio, **kind)
        os.close(program)
        before = others(route, index)
        assert len(before) >= 5
        one = service(mode="mirror", bind=pair.here)
        with remote(pair, one.port) as client:
            support.echo(client, b"kecho")
            assert others(route, index) == before
        one.down()
        assert others(route, index) == before


def test_killed_with_its_keeper(service: Up) -> None:
    """kill -9 of everything leaves nothing at any device, and the next `up` of that name works."""
    name = f"pytest-{os.getpid()}-killed"
    one = service(mode="mirror", name=name)
    assert attached(one) == ["lo"]
    for pid in support.session(one.pid):
        os.kill(pid, signal.SIGKILL)
    support.wait_for(lambda: not support.session(one.pid), "the end of its processes")
    left = [str(support.RUN / name)]
    support.wait_for(lambda: one.belongings.left() == left, "nothing but the folder is left")
    again = service(mode="mirror", name=name)
    with again.client() as client:
        support.echo(client, b"kecho")


def test_behind_a_firewall_of_this_host(service: Up, namespace: str) -> None:
    """A firewall that tracks connections and accepts lo first."""
    rules = """table inet kecho-test {
        chain in {
            type filter hook input priority 0; policy drop;
            iifname lo accept
            ct state established,related accept
            ct state invalid drop
        }
    }"""
    subprocess.run(["ip", "netns", "exec", namespace, "nft", "-f", "-"], input=rules, text=True, check=True)
    one = service(mode="mirror", run={"preexec_fn": lambda: support.enter_netns(namespace)})
    with support.connect("127.0.0.1", one.port, support.socket_in(namespace, socket.AF_INET)) as client:
        support.echo(client, support.payload(100_000))


# ---- the secret ----


def go_on(clients: list[socket.socket]) -> list[bool]:
    """For each client: does it get an echo (true) or a reset?"""
    lived = []
    for client in clients:
        client.settimeout(1)
        try:
            support.echo(client, b"after")
            lived.append(True)
        except OSError:
            lived.append(False)
    return lived


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "not kept"])
def test_restart(service: Up, tmp_path: Path, kept: bool) -> None:
    """With its secret a mirror goes on with every connection. Without it 7 in 8 are reset, and the others hang."""
    options = {"keep_secret": tmp_path / "secret"} if kept else {}
    one = service(mode="mirror", **options)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(one.client()) for _ in range(16)]
        for client in clients:
            support.echo(client, support.payload(1000))
        one.down()
        service(mode="mirror", port=one.port, **options)
        lived = go_on(clients)
    assert all(lived) if kept else not any(lived)


# ---- clients ----


def test_no_turn_of_a_client_with_nagle_waits(namespace: str) -> None:
    """The kernel counts delayed acknowledgements: a few until the mirror knows the client, then none."""
    one = support.up(mode="mirror", run={"preexec_fn": lambda: support.enter_netns(namespace)})
    try:
        for parts in ([b"x" * 64], [b"x" * 32, b"y" * 32]):
            with support.connect("127.0.0.1", one.port, support.socket_in(namespace, socket.AF_INET)) as client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
                before = network.tcp_counter("DelayedACKs", namespace)
                for _ in range(300):
                    for part in parts:
                        client.sendall(part)
                    support.receive(client, 64)
                assert network.tcp_counter("DelayedACKs", namespace) - before < 10
    finally:
        one.down()


# struct tcp_info: options, window scales, advmss
_TCPI = struct.Struct("=5xBB77xI")


def agreed(sock: socket.socket) -> tuple[int, ...]:
    """The options that both ends of a connection have agreed on, from TCP_INFO."""
    return _TCPI.unpack_from(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104))


def itself(family: int, mss: int) -> socket.socket:
    """A socket connected to itself: TCP's own mirror."""
    sock = socket.socket(family)
    if mss:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, mss)
    address = "127.0.0.1" if family == socket.AF_INET else "::1"
    sock.bind((address, 0))
    return support.connect(*sock.getsockname()[:2], sock)


@pytest.mark.parametrize("mss", [0, 1000])
def test_it_is_tcp_talking_to_itself(service: Up, family: int, mss: int) -> None:
    """A client of the mirror sees the same options, echo and end as a socket connected to itself."""
    one = service(mode="mirror")
    mirrored = socket.socket(family)
    if mss:
        mirrored.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, mss)
    with itself(family, mss) as oracle, support.connect(one.address(family), one.port, mirrored) as client:
        assert agreed(client) == agreed(oracle)
        for sock in (oracle, client):
            for size in (1, 64, 1000, 70_000):
                support.echo(sock, support.payload(size))
            sock.sendall(b"last words")
            sock.shutdown(socket.SHUT_WR)
            assert support.receive_all(sock) == b"last words"
