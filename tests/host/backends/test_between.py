# SPDX-License-Identifier: MIT
"""What is between the two ends of a connection, as NAT, TPROXY, `ip rule` and sk_lookup, leads nobody's data astray."""

from __future__ import annotations

import os
import random
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator

import pytest
import support
from test_network import seen, shouting, shouts

from kecho.kernel import syscall

Up = Callable[..., support.Service]

# A namespace with addresses of its own on lo: the service's, the clients', and that of another server.
ADDRESSES = {
    socket.AF_INET: ("10.99.0.1", "10.99.0.2", "10.99.0.3"),
    socket.AF_INET6: ("fd99::1", "fd99::2", "fd99::3"),
}
MARK = 7  # SO_MARK of the clients that are led elsewhere
NAT = "nat hook output priority -100"
MACS = "02:00:00:00:00:01", "02:00:00:00:00:02"
IP_TRANSPARENT, IPV6_TRANSPARENT = 19, 75  # include/uapi/linux/in.h and in6.h


def nft(netns: str, name: str, hook: str, rule: str) -> None:
    """Adds a chain of that name and type to the namespace, with one rule."""
    text = f"table inet kecho {{ chain {name} {{ type {hook}; {rule}; }}\n}}\n"
    command = ["ip", "netns", "exec", netns, "nft", "-f", "-"]
    done = subprocess.run(command, input=text, text=True, stderr=subprocess.PIPE, check=False)
    if "Could not process rule" in done.stderr:
        pytest.skip(f"this kernel has no such rule: {rule}")
    assert done.returncode == 0, done.stderr


def ip(netns: str, *commands: str) -> None:
    for command in commands:
        subprocess.run(["ip", "-n", netns, *command.split()], check=True)


def listening(netns: str, address: str, port: int, transparent: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = support.socket_in(netns, family)
    if transparent and family == socket.AF_INET:
        listener.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
    elif transparent:
        listener.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
    listener.bind((address, port))
    return listener


def to(address: str, port: int) -> str:
    """The end of the rules dnat and tproxy."""
    return f"ip6 to [{address}]:{port}" if ":" in address else f"ip to {address}:{port}"


def redirect(netns: str, address: str, _other: str, port: int) -> socket.socket:
    nft(netns, "elsewhere", NAT, f"meta mark {MARK} tcp dport {port} redirect to :{port + 1}")
    return listening(netns, "::1" if ":" in address else "127.0.0.1", port + 1)


def dnat(netns: str, _address: str, other: str, port: int) -> socket.socket:
    nft(netns, "elsewhere", NAT, f"meta mark {MARK} tcp dport {port} dnat {to(other, port)}")
    return listening(netns, other, port)


def tproxy(netns: str, address: str, _other: str, port: int) -> socket.socket:
    """The other server's end of a connection has the address and port of the service."""
    rule = f"meta mark {MARK} tcp dport {port} tproxy {to(address, port + 1)}"
    nft(netns, "elsewhere", "filter hook prerouting priority -150", rule)
    return listening(netns, address, port + 1, transparent=True)


def ip_rule(netns: str, address: str, _other: str, port: int) -> socket.socket:
    """The other server has the address and port of the service, in another namespace."""
    v6 = ":" in address
    there, version, client = (
        f"{netns}-there",
        "-6" if v6 else "-4",
        ADDRESSES[socket.AF_INET6 if v6 else socket.AF_INET][1],
    )
    ip(there, f"addr add {address} dev lo", f"{version} route add {client} dev there")
    ip(there, f"neigh add {client} lladdr {MACS[0]} dev there")
    ip(netns, f"neigh add {address} lladdr {MACS[1]} dev here", f"{version} route add default dev here table 100")
    ip(netns, f"{version} rule add pref 9 lookup local", f"{version} rule add pref 8 fwmark {MARK} lookup 100")
    ip(netns, f"{version} rule del pref 0")
    return listening(there, address, port)


@pytest.fixture
def crossing(namespace: str) -> Iterator[str]:
    """A namespace with the addresses above, and a way out of it to another one."""
    there = f"{namespace}-there"
    subprocess.run(["ip", "netns", "add", there], check=True)
    try:
        ip(namespace, *(f"addr add {address} dev lo" for of in ADDRESSES.values() for address in of))
        ip(namespace, f"link add here address {MACS[0]} type veth peer name there address {MACS[1]} netns {there}")
        ip(namespace, "link set here up")
        ip(there, "link set lo up", "link set there up")
        accept = "net.ipv4.conf.here.accept_local=1"  # from there come packets from the service's address
        subprocess.run(["ip", "netns", "exec", namespace, "sysctl", "-qw", accept], check=True)
        yield namespace
    finally:
        subprocess.run(["ip", "netns", "del", there], check=True)


@pytest.mark.paths(*support.KERNEL_PATHS)  # a mirror answers nobody who comes by NAT: known-limits
@pytest.mark.parametrize("lead", [redirect, dnat, tproxy, ip_rule])
def test_nobody_elses_data(
    service: Up, crossing: str, family: int, path: str, lead: Callable[..., socket.socket]
) -> None:
    """Two clients have the same address and port; one is led away from the service, the other to it by NAT.

    The first connects to the service's port, the second is what the service sees come from there.
    """
    address, client, other = ADDRESSES[family]
    one = service(run={"preexec_fn": lambda: support.enter_netns(crossing)}, path=path, bind=address)
    door = one.port + 2
    nft(crossing, "door", NAT, f"tcp dport {door} dnat {to(address, one.port)}")
    listener = lead(crossing, address, other, one.port)
    with shouting(listener):
        for number, source in enumerate(random.Random(1).sample(range(40000, 41000), 200)):
            near, far = (support.socket_in(crossing, family) for _ in range(2))
            far.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
            for sock in (near, far):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((client, source))
            with support.connect(address, one.port, far), support.connect(address, door, near):
                support.echo(near, b"near %d" % number)
                for _ in range(3):
                    far.sendall(b"far %d" % number)
                    assert support.receive(far, 4 + len(str(number))) == b"FAR %d" % number
                support.echo(near, b"near again")
    assert seen(one) == (200, 400)


# include/uapi/linux/bpf.h
MAP_TYPE_SOCKMAP, PROG_TYPE_SK_LOOKUP, ATTACH_SK_LOOKUP = 15, 30, 36
MAP_LOOKUP_ELEM, SK_RELEASE, SK_ASSIGN = 1, 86, 124
LOCAL_PORT = 60  # offset in struct bpf_sk_lookup


def sk_lookup(port: int, sockmap: int) -> bytes:
    """A program that hands connections to `port` to the socket in the map."""
    instruction = syscall.instruction
    return b"".join(
        (
            instruction(0xBF, 6, 1),  # r6 = ctx
            instruction(0x61, 2, 1, LOCAL_PORT),
            instruction(0x55, 2, 0, 14, port),  # another port: pass
            instruction(0x62, 10, offset=-4),  # *(u32 *)(fp - 4) = 0
            instruction(0x18, 1, 1, immediate=sockmap),
            instruction(0),
            instruction(0xBF, 2, 10),
            instruction(0x07, 2, immediate=-4),
            instruction(0x85, immediate=MAP_LOOKUP_ELEM),
            instruction(0x15, 0, 0, 7, 0),  # no socket: pass
            instruction(0xBF, 7),
            instruction(0xBF, 1, 6),
            instruction(0xBF, 2),
            instruction(0xB7, 3),
            instruction(0x85, immediate=SK_ASSIGN),  # bpf_sk_assign(ctx, sk, 0)
            instruction(0xBF, 1, 7),
            instruction(0x85, immediate=SK_RELEASE),
            syscall.RETURN_ONE,  # SK_PASS
        )
    )


@pytest.mark.paths(*support.KERNEL_PATHS)  # a mirror is in front of all sockets
def test_connections_that_sk_lookup_gives_to_another_server(service: Up, crossing: str, family: int, path: str) -> None:
    """The other server's end has the service's address and port. What was connected before stays with the service."""
    address, _, _ = ADDRESSES[family]
    one = service(run={"preexec_fn": lambda: support.enter_netns(crossing)}, path=path, bind=address)
    sockmap = syscall.map_create(syscall.Map(MAP_TYPE_SOCKMAP, 4, 8, 1))
    listener = listening(crossing, address, one.port + 1)
    with support.connect(address, one.port, support.socket_in(crossing, family)) as before, shouting(listener):
        support.echo(before, b"kecho")
        syscall.map_update(sockmap, bytes(4), struct.pack("=Q", listener.fileno()))
        code = sk_lookup(one.port, sockmap)
        program = syscall.program_load(
            syscall.Program(PROG_TYPE_SK_LOOKUP, code, "kecho_test", "GPL", ATTACH_SK_LOOKUP)
        )
        netns = os.open(f"/run/netns/{crossing}", os.O_RDONLY | os.O_CLOEXEC)
        link = syscall.link_create(program, netns, ATTACH_SK_LOOKUP)
        try:
            for _ in range(20):
                with support.connect(address, one.port, support.socket_in(crossing, family)) as client:
                    shouts(client)
            support.echo(before, b"and on")
        finally:
            for fd in (link, netns, program, sockmap):
                os.close(fd)
    assert seen(one) == (1, 2)
