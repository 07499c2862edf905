# SPDX-License-Identifier: MIT
"""The devices of this network namespace and their addresses, and a watch for changes, by rtnetlink."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# include/uapi/linux/rtnetlink.h
_RTMGRP_LINK, _RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x1, 0x10, 0x100
_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8
_MESSAGES_BYTES = 1 << 16

# include/uapi/linux/if_arp.h: what a packet begins with at tc ingress.
_ARPHRD_ETHER, _ARPHRD_LOOPBACK = 1, 772
_NO_HEADER = {519: "RAWIP", 768: "TUNNEL", 769: "TUNNEL6", 776: "SIT", 0xFFFE: "NONE"}


@dataclass
class Device:
    """A device that is up. `kind` is one of bpf/mirror-packet.h (lo, ether, ip), or "" for any other kind."""

    index: int
    name: str
    kind: str
    addresses: set[Address] = field(default_factory=set)
    broadcasts: set[Address] = field(default_factory=set)


def _kind(link_type: int) -> str:
    if link_type == _ARPHRD_LOOPBACK:
        return "lo"
    if link_type == _ARPHRD_ETHER:
        return "ether"
    return "ip" if link_type in _NO_HEADER else ""


async def devices() -> list[Device]:
    """The devices that are up, with their addresses. Needs no privilege. Raises OSError."""
    from pyroute2 import AsyncIPRoute  # slow to import

    async with AsyncIPRoute() as route:
        found = {
            link["index"]: Device(link["index"], link.get("ifname"), _kind(link["ifi_type"]))
            async for link in await route.get_links()
            if link["flags"] & _IFF_UP
        }
        async for entry in await route.get_addr():
            device = found.get(entry["index"])
            if device is None:
                continue
            # On a point-to-point device IFA_ADDRESS is the peer's address.
            device.addresses.add(ipaddress.ip_address(entry.get("local") or entry.get("address")))
            if broadcast := entry.get("broadcast"):
                device.broadcasts.add(ipaddress.ip_address(broadcast))
    return list(found.values())


class Watch:
    """Calls `changed` after every change of a device or an address, one call at a time. Needs no privilege."""

    def __init__(self, changed: Callable[[], Awaitable[None]]) -> None:
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        self._sock.bind((0, _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
        self._loop.add_reader(self._sock, self._read)
        self._task = self._loop.create_task(self._run())

    def _read(self) -> None:
        """Discards the messages: `changed` lists everything anew. So lost messages (ENOBUFS) do no harm."""
        with contextlib.suppress(OSError):
            while self._sock.recv(_MESSAGES_BYTES):
                pass
        self._news.set()

    async def _run(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            await self._changed()

    def close(self) -> None:
        """Ends the watch; `changed` is not called any more."""
        self._task.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()
