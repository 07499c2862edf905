# SPDX-License-Identifier: MIT
"""The targets of a benchmark: our services by name, and any echo server by address."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kecho.kernel import features, procfs
from kecho.model.config import endpoint
from kecho.model.errors import KechoError, UsageError, one_line
from kecho.model.snapshot import Snapshot
from kecho.system.topology import ClientNetns

CONNECT_S = 3.0  # timeout for each address of a name that has several


@dataclass(frozen=True)
class Target:
    """A server to be measured. `mode` is empty and `snapshot` None for a server that is not ours.

    `client` is the namespace in which the client runs, None if it runs in this one. `cpus` are those that a service of
    ours is restricted to, as in ``0,2-3``; empty if it is not. `pid` is that of its controller, 0 if it is not ours.
    """

    name: str
    host: str
    port: int
    mode: str = ""
    snapshot: Callable[[], Snapshot] | None = None
    client: ClientNetns | None = None
    cpus: str = ""
    pid: int = 0

    @property
    def endpoint(self) -> str:
        return endpoint(self.host, self.port)


def choose(names: Sequence[str], left_out: dict[str, str] | None = None) -> list[Target]:
    """The targets that `names` name, all services that are up here if there is none; the baseline first.

    Those that are elsewhere then go into `left_out`, with the reason. Raises UsageError for an address that is none,
    KechoError for a service that is not up, or not reached from here.
    """
    doubled = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if doubled:
        raise UsageError(f"{doubled}: named twice")
    services: dict[str, Mapping[str, Any]] = {}
    if not names or any(":" not in name for name in names):
        from kecho.service import client

        services = {service["name"]: service for service in client.services()}
    if not names:
        up = {name: service for name, service in services.items() if service["state"] == "up"}
        far = {name: why for name, service in up.items() if (why := elsewhere(service))}
        (left_out if left_out is not None else {}).update(far)
        names = [name for name in up if name not in far]
        if far and not names:
            raise KechoError("; ".join(f"{name} is {why}" for name, why in far.items()))
        if not names:
            raise KechoError("no service is up: name a HOST:PORT, or start one with `sudo kecho-ctl up`")
    return baseline_first([_of_address(name) if ":" in name else _of_service(name, services) for name in names])


def baseline_first(targets: Sequence[Target]) -> list[Target]:
    """Moves the first target in mode user to the front; the others keep their order."""
    baseline = next((target for target in targets if target.mode == "user"), targets[0])
    return [baseline, *(target for target in targets if target is not baseline)]


def _of_service(name: str, services: Mapping[str, Mapping[str, Any]]) -> Target:
    from kecho.service.client import Client

    service = services.get(name)
    if service is None:
        up = [other for other, s in services.items() if s["state"] == "up"]
        raise KechoError(f"no service {name} is up; {'there is ' + ', '.join(up) if up else 'none is'}")
    if service["state"] != "up":
        raise KechoError(f"service {name} is not up: its state is {service['state']}")
    if why := elsewhere(service):
        raise KechoError(f"{name} is {why}")
    host = reachable(service["binds"])
    own = {"cpus": service.get("cpus", ""), "pid": service["pid"]}
    return Target(name, host, service["port"], service["mode"], Client(name).snapshot, **own)


def elsewhere(service: Mapping[str, Any]) -> str:
    """Why a service that is up is not reached from here: its port or address is somebody else's. Empty if it is."""
    if service["netns"] != procfs.netns_inode():
        enter = f"sudo nsenter --net=/proc/{service['pid']}/ns/net kecho-ctl bench {service['name']}"
        return f"in another network namespace; from within it: {enter}"
    if not features.can_bind(host := reachable(service["binds"])):
        return f"bound to {host}, which no device here has any more"
    return ""


def reachable(binds: Sequence[str]) -> str:
    """The address for a local client of a service bound to `binds`: IPv4 if possible; loopback for a wildcard."""
    address = min(map(ipaddress.ip_address, binds), key=lambda a: a.version)
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "::1"
    return str(address)


def _of_address(text: str) -> Target:
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise UsageError(f"{text}: write an IPv6 address as [ADDRESS]:PORT")
    if not host or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise UsageError(f"{text}: not HOST:PORT with a port from 1 to 65535")
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as e:
        raise KechoError(f"{text}: {one_line(e)}") from e
    return Target(text, _answering([_numeric(one[4]) for one in found], int(port)), int(port))


def _numeric(address: Sequence[Any]) -> str:
    """A socket address without its port, a link-local one with its zone."""
    host, _, *more = address
    return f"{host}%{more[1]}" if more and more[1] and "%" not in host else str(host)


def _answering(addresses: Sequence[str], port: int) -> str:
    """The first address that takes a connection. If none does it is the first of all, and bench says why."""
    different = list(dict.fromkeys(addresses))
    for address in different if len(different) > 1 else ():
        with contextlib.suppress(OSError), socket.create_connection((address, port), CONNECT_S):
            return address
    return different[0]
