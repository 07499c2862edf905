# SPDX-License-Identifier: MIT
"""A network namespace for a remote client, at the other end of a veth pair.

The namespace has no name. A descriptor of this process and the processes in it hold it; it goes with the last of them,
even if they are killed, and the veth pair goes with it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from kecho.kernel import features, libc, sockets, sysctl
from kecho.model.config import endpoint
from kecho.model.errors import AS_ROOT, KechoError, Unavailable, UsageError
from kecho.system import limits

CHOICES = ("loopback", "veth")
# Reserved for benchmarks (RFC 2544, appendix C.2.2); each pair has a subnet of four addresses.
NETWORK_4 = ipaddress.IPv4Network("198.18.0.0/15")
# A unique local prefix (RFC 4193) that spells "kecho"; each pair has a /64.
NETWORK_6 = ipaddress.IPv6Network("fd6b:6563:686f::/48")
MOST_DELAY_MS = 10_000.0

_CLONE_NEWNET = 0x40000000
_THERE = "veth"  # the client's end
_IFNAME = "kecho%d"  # the kernel replaces %d by the first free number
_NETEM_PACKETS = 1_000_000  # netem's queue; its default of 1000 would drop delayed packets
_IFA_F_NODAD = 0x02  # include/uapi/linux/if_addr.h: no duplicate address detection, usable at once


@dataclass(frozen=True)
class ClientNetns:
    """The network namespace of a remote client.

    `addresses` are this machine's addresses as seen from there, IPv4 first. `delay_ms` is added in each direction. To
    run a command there, put `command` before it and let it inherit the descriptors `fds`.
    """

    addresses: tuple[str, ...]
    command: tuple[str, ...]
    fds: tuple[int, ...]
    delay_ms: float = 0

    def reach(self, host: str, port: int) -> str:
        """The address at which a client in the namespace reaches the server that local clients reach at `host`.

        Raises UsageError for a host that is not this machine, KechoError for a server that listens on loopback alone.
        """
        address = ipaddress.ip_address(host)
        if not address.is_loopback:
            if not features.can_bind(host):
                raise UsageError(f"{host} is not this machine: --topology veth is for servers on it")
            return host
        own = next((own for own in self.addresses if ipaddress.ip_address(own).version == address.version), None)
        if own is None:
            raise Unavailable("this machine has no IPv6 for a client behind veth", f"name another than {host}")
        try:
            served = any(listener.takes(own) for listener in sockets.listeners(port))
        except Unavailable:  # then connecting shows it
            served = True
        if not served:
            wildcard = "0.0.0.0" if address.version == 4 else "::"
            raise KechoError(
                f"{endpoint(host, port)} is for local clients alone, and behind veth they are remote: "
                f"let it listen on all addresses (up --bind {wildcard})"
            )
        return own


def limits_there(here: limits.Limits) -> limits.Limits:
    """The limits for a client in a new namespace, where all ports are its own, and a server here."""
    return limits.Limits(
        **{**vars(here), "first_port": limits.FIRST_PORT, "last_port": limits.LAST_PORT, "tw_reuse": 1}
    )


@contextlib.contextmanager
def veth(delay_ms: float = 0) -> Iterator[ClientNetns]:
    """Makes the namespace and the veth pair, with `delay_ms` in each direction, and removes them in the end.

    Raises Unavailable without the privilege, or without netem if there is a delay, and then leaves nothing behind.
    """
    if os.geteuid() != 0:
        raise Unavailable("a network namespace is root's to make", AS_ROOT)
    with contextlib.ExitStack() as stack:
        here = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, here)
        # A thread of its own enters the namespace.
        with ThreadPoolExecutor(1) as thread, _explained("make a veth pair", "modprobe veth"):
            there = thread.submit(_unshare).result()
            stack.callback(os.close, there)
            index = thread.submit(_make_pair, here).result()
            stack.callback(_remove, index)
            both = _has_ipv6(index) and thread.submit(lambda: _has_ipv6(socket.if_nametoindex(_THERE))).result()
            networks = _networks(index, both)
            _set_up(index, networks, 1)
            thread.submit(_set_up_there, networks).result()
            if delay_ms:
                with _explained("delay packets (netem)", "modprobe sch_netem, or leave --delay out"):
                    _delay(index, delay_ms)
                    thread.submit(lambda: _delay(socket.if_nametoindex(_THERE), delay_ms)).result()
        command = ("nsenter", f"--net=/proc/self/fd/{there}", "--")
        yield ClientNetns(tuple(str(network[1]) for network in networks), command, (there,), delay_ms)


@contextlib.contextmanager
def _explained(what: str, remedy: str) -> Iterator[None]:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        yield
    except NetlinkError as e:
        raise Unavailable(f"this machine cannot {what}: {os.strerror(e.code)}", remedy) from e


def _unshare() -> int:
    """Moves this thread into a new network namespace and returns a descriptor of it."""
    try:
        libc.call("unshare", _CLONE_NEWNET)
    except OSError as e:
        raise Unavailable(
            f"cannot make a network namespace: {e.strerror}", "run it as root, outside a container"
        ) from e
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _make_pair(here: int) -> int:
    """Makes the pair from within the namespace, which then owns it. Returns the index of this machine's end."""
    from pyroute2 import IPRoute

    with IPRoute() as there:
        there.link("set", index=socket.if_nametoindex("lo"), state="up")
        there.link("add", ifname=_THERE, kind="veth", peer={"ifname": _IFNAME, "net_ns_fd": here})
        (link,) = there.get_links(socket.if_nametoindex(_THERE))
        return int(link.get_attr("IFLA_LINK"))


def _remove(index: int) -> None:
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    with IPRoute() as here, contextlib.suppress(NetlinkError):  # it is removed already
        here.link("del", index=index)


# ---- addresses ----


def _has_ipv6(index: int) -> bool:
    """May this end of the pair have an IPv6 address? A machine may have IPv6 and keep it from new devices."""
    try:
        return sysctl.path(f"net.ipv6.conf.{socket.if_indextoname(index)}.disable_ipv6").read_text().strip() == "0"
    except FileNotFoundError:
        return False


def _networks(index: int, ipv6: bool) -> list[Any]:
    """The subnets of a pair, of IPv4, and of IPv6 if `ipv6`. The index of its end here is unique, and so are they."""
    from pyroute2 import IPRoute

    with IPRoute() as here:
        routes = [route for family in (socket.AF_INET, socket.AF_INET6) for route in here.get_routes(family=family)]
    taken = [
        ipaddress.ip_network(f"{dst}/{route['dst_len']}") for route in routes if (dst := route.get_attr("RTA_DST"))
    ]
    found = [subnet(NETWORK_4, 30, index, taken)]
    if ipv6:
        found.append(subnet(NETWORK_6, 64, index, taken))
    return found


def subnet(network: Any, length: int, number: int, taken: Iterable[Any]) -> Any:
    """The `number`-th subnet of that prefix length, or the next one that overlaps with none of `taken`. Pure.

    Raises KechoError if there is none.
    """
    near = [other for other in taken if other.version == network.version and other.overlaps(network)]
    count, bits = 1 << length - network.prefixlen, network.max_prefixlen - length
    for _ in range(2 * len(near) + 1):  # each is skipped once, the one at the start perhaps twice
        found = type(network)((int(network[0]) + (number % count << bits), length))
        other = next((other for other in near if found.overlaps(other)), None)
        if other is None:
            return found
        number = (int(other[-1]) - int(network[0]) >> bits) + 1
    raise KechoError(f"all of {network}, where the addresses of --topology veth come from, is in use here")


def _set_up(index: int, networks: list[Any], number: int) -> None:
    """Brings one end of the pair up with the `number`-th address of each network."""
    from pyroute2 import IPRoute

    with IPRoute() as route:
        route.link("set", index=index, state="up")
        for network in networks:
            flags = {"flags": _IFA_F_NODAD} if network.version == 6 else {}
            route.addr("add", index=index, address=str(network[number]), prefixlen=network.prefixlen, **flags)


def _set_up_there(networks: list[Any]) -> None:
    """Brings the client's end up, with a default route to this machine through the pair."""
    from pyroute2 import IPRoute

    sysctl.path(limits.PORT_RANGE).write_text(f"{limits.FIRST_PORT} {limits.LAST_PORT}")
    sysctl.path(limits.TW_REUSE).write_text("1")
    _set_up(socket.if_nametoindex(_THERE), networks, 2)
    with IPRoute() as there:
        for network in networks:
            dst = "0.0.0.0/0" if network.version == 4 else "::/0"
            there.route("add", dst=dst, gateway=str(network[1]))


# ---- delay ----


def _delay(index: int, delay_ms: float) -> None:
    """Delays what is sent through this end (netem)."""
    from pyroute2 import IPRoute

    with IPRoute() as route:
        route.tc("add", "netem", index=index, handle="1:", delay=round(delay_ms * 1000), limit=_NETEM_PACKETS)
