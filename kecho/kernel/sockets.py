# SPDX-License-Identifier: MIT
"""Sockets as the kernel lists them: listeners and connections (inet_diag), and counts of overflows (SNMP)."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kecho.kernel import procfs
from kecho.model.config import Config, endpoint
from kecho.model.errors import KechoError, Unavailable, one_line

# include/net/tcp_states.h
STATES = {
    1: "ESTABLISHED",
    2: "SYN-SENT",
    3: "SYN-RECV",
    4: "FIN-WAIT-1",
    5: "FIN-WAIT-2",
    6: "TIME-WAIT",
    7: "CLOSE",
    8: "CLOSE-WAIT",
    9: "LAST-ACK",
    10: "LISTEN",
    11: "CLOSING",
}
_LISTEN, _TIME_WAIT = 10, 6
_SERVED = sum(1 << state for state in STATES if state not in (_LISTEN, _TIME_WAIT))


# Counters of the network namespace, include/uapi/linux/snmp.h; the names that `status` has for them.
_LISTEN_COUNTERS = {"ListenOverflows": "overflows", "ListenDrops": "drops", "SyncookiesSent": "syncookies"}


def listen_counters() -> dict[str, int]:
    """Counts over all listeners of this network namespace, since it was made.

    overflows: the accept queue was full. drops: requests dropped for any reason, overflows included. syncookies: sent.
    """
    return parse_netstat(Path("/proc/thread-self/net/netstat").read_text(encoding="ascii").splitlines())


def parse_netstat(rows: Iterable[str]) -> dict[str, int]:
    """The counts of `listen_counters` from /proc/net/netstat, where each group has a row of names and one of values."""
    names, values = (row.split() for row in rows if row.startswith("TcpExt:"))
    found = dict(zip(names, values, strict=True))
    return {ours: int(found[theirs]) for theirs, ours in _LISTEN_COUNTERS.items()}


# include/uapi/linux/sock_diag.h, inet_diag.h and netlink.h
_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_INET_DIAG_SKV6ONLY = 11
_PROTOCOL = socket.IPPROTO_TCP
_NLMSGHDR = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBxI2s2s44x")  # struct inet_diag_req_v2
_SOCKET = struct.Struct("=BB2x2s2s16s16s12x4xII4xI")  # struct inet_diag_msg
_ATTRIBUTE = struct.Struct("=HH")


@dataclass(frozen=True)
class _Socket:
    state: int
    local: tuple[str, int]
    remote: tuple[str, int]
    receive_queue: int
    send_queue: int
    inode: int
    v6_only: bool


def _sockets(port: int, states: int) -> list[_Socket]:
    """The TCP sockets with that local port. The kernel does the filtering: there may be tens of thousands of others.

    It uses a netlink socket of its own, since pyroute2 ignores an error at the end of a dump. Raises Unavailable if
    the kernel cannot list sockets (without tcp_diag the list would seem to be empty).
    """
    found: list[_Socket] = []
    families = [socket.AF_INET, *([socket.AF_INET6] if Path("/proc/net/if_inet6").exists() else [])]
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as netlink:
            for family in families:
                body = _REQUEST.pack(family, _PROTOCOL, 0, states, port.to_bytes(2, "big"), b"")
                length = _NLMSGHDR.size + len(body)
                netlink.send(_NLMSGHDR.pack(length, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST | _NLM_F_DUMP, 0, 0) + body)
                found += map(_parse, _dump(netlink))
    except OSError as error:
        raise Unavailable(f"the kernel does not list TCP sockets ({one_line(error)})", "modprobe tcp_diag") from error
    return found


def _dump(netlink: socket.socket) -> Iterator[bytes]:
    """The messages of a dump. Raises OSError for an error message, or an errno at the end of the dump."""
    while True:
        data = netlink.recv(1 << 16)
        while data:
            length, kind, *_ = _NLMSGHDR.unpack_from(data)
            message, data = data[_NLMSGHDR.size : length], data[(length + 3) & ~3 :]
            if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                errno = -int.from_bytes(message[:4], sys.byteorder, signed=True)
                if errno:
                    raise OSError(errno, os.strerror(errno))
                return
            yield message


def _parse(message: bytes) -> _Socket:
    family, state, sport, dport, source, destination, receive, send, inode = _SOCKET.unpack_from(message)
    size = 4 if family == socket.AF_INET else 16
    ends = [
        (socket.inet_ntop(family, address[:size]), int.from_bytes(port, "big"))
        for address, port in ((source, sport), (destination, dport))
    ]
    v6_only, attributes = False, message[_SOCKET.size :]
    while attributes:
        length, kind = _ATTRIBUTE.unpack_from(attributes)
        if kind == _INET_DIAG_SKV6ONLY:
            v6_only = attributes[_ATTRIBUTE.size] != 0
        attributes = attributes[(length + 3) & ~3 :]
    return _Socket(state, ends[0], ends[1], receive, send, inode, v6_only)


def connections(port: int) -> list[dict[str, Any]]:
    """The connections to `port` in this network namespace, as the server's sockets have them. Needs no privilege.

    Each has local and remote ("ADDR:PORT"), state, recv_queue and send_queue in bytes. Raises Unavailable without
    tcp_diag.
    """
    return [
        {
            "local": endpoint(*found.local),
            "remote": endpoint(*found.remote),
            "state": STATES.get(found.state, str(found.state)),
            "recv_queue": found.receive_queue,
            "send_queue": found.send_queue,
        }
        for found in _sockets(port, _SERVED)
    ]


@dataclass(frozen=True)
class Listener:
    """A listening socket; `backlog` connections may wait for its accept()."""

    address: str
    backlog: int
    v6_only: bool

    def takes(self, address: str) -> bool:
        """Does it take a connection to that address of this machine?"""
        if self.address == "::":
            return ":" in address or not self.v6_only
        return self.address in (address, "0.0.0.0" if ":" not in address else address)


def listeners(port: int) -> list[Listener]:
    """The sockets that listen on `port` in this network namespace. Needs no privilege. Raises Unavailable."""
    return [Listener(found.local[0], found.send_queue, found.v6_only) for found in _sockets(port, 1 << _LISTEN)]


def listener_on(port: int) -> str:
    """The process that listens on `port` in this network namespace, as "NAME (pid N)"; "" if it cannot be seen."""
    with contextlib.suppress(Exception):  # it only adds to an error message
        inodes = {f"socket:[{found.inode}]" for found in _sockets(port, 1 << _LISTEN)}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if any(os.readlink(fd) in inodes for fd in (process / "fd").iterdir()):
                    return f"{procfs.text(process / 'comm').strip()} (pid {process.name})"
    return ""


def port_taken(config: Config) -> KechoError:
    """The error for a port that is in use, with the process that has it if that can be seen."""
    where = ", ".join(endpoint(address, config.port) for address in config.binds)
    holder = listener_on(config.port)
    return KechoError(f"cannot listen on {where}: the port is taken" + (f" by {holder}" if holder else ""))
