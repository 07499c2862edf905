# SPDX-License-Identifier: MIT
"""Sockets as the kernel sees them: who listens, a service's connections (inet_diag), what found no room (SNMP)."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kecho.model.config import Config, endpoint
from kecho.model.errors import KechoError

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
    """What became of connections that no listener of this network namespace had room for, since the namespace exists.

    overflows (the accept queue was full), drops (for whatever reason, overflows among them) and syncookies (sent).
    """
    return parse_netstat(Path("/proc/thread-self/net/netstat").read_text(encoding="ascii").splitlines())


def parse_netstat(rows: Iterable[str]) -> dict[str, int]:
    """The counters of `listen_counters`, from /proc/net/netstat: a row of names and one of values for each group."""
    names, values = (row.split() for row in rows if row.startswith("TcpExt:"))
    found = dict(zip(names, values, strict=True))
    return {ours: int(found[theirs]) for theirs, ours in _LISTEN_COUNTERS.items()}


def _sockets(port: int, states: int) -> Iterator[Any]:
    """TCP sockets of that local port. The kernel leaves out the others, which may be tens of thousands."""
    from pyroute2 import DiagSocket  # takes a while
    from pyroute2.netlink import NLM_F_MATCH, NLM_F_REQUEST, NLM_F_ROOT
    from pyroute2.netlink.diag import SOCK_DIAG_BY_FAMILY, inet_diag_req

    with DiagSocket() as diag:
        diag.bind()
        for family in (socket.AF_INET, socket.AF_INET6):
            request = inet_diag_req()
            request["sdiag_family"] = family
            request["sdiag_protocol"] = socket.IPPROTO_TCP
            request["idiag_states"] = states
            request["idiag_sport"] = port
            yield from diag.nlm_request(request, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_ROOT | NLM_F_MATCH)


def connections(port: int) -> list[dict[str, Any]]:
    """The server's ends of the connections to `port` in this network namespace. Needs no privilege.

    Each: local, remote ("ADDR:PORT"), state, recv_queue and send_queue in bytes.
    """
    return [
        {
            "local": endpoint(found["idiag_src"], found["idiag_sport"]),
            "remote": endpoint(found["idiag_dst"], found["idiag_dport"]),
            "state": STATES.get(found["idiag_state"], str(found["idiag_state"])),
            "recv_queue": found["idiag_rqueue"],
            "send_queue": found["idiag_wqueue"],
        }
        for found in _sockets(port, _SERVED)
    ]


@dataclass(frozen=True)
class Listener:
    """A listening socket, and how many connections may wait for its accept()."""

    address: str
    backlog: int
    v6_only: bool

    def takes(self, address: str) -> bool:
        """Does a connection to that address of this machine reach it?"""
        if self.address == "::":
            return ":" in address or not self.v6_only
        return self.address in (address, "0.0.0.0" if ":" not in address else address)


def listeners(port: int) -> list[Listener]:
    """Who listens on `port` in this network namespace. Needs no privilege."""
    return [
        Listener(found["idiag_src"], found["idiag_wqueue"], bool(found.get_attr("INET_DIAG_SKV6ONLY")))
        for found in _sockets(port, 1 << _LISTEN)
    ]


def listener_on(port: int) -> str:
    """Who listens on `port` in this network namespace, as "NAME (pid N)"; "" if that cannot be seen."""
    with contextlib.suppress(Exception):  # it is for an error message that must come out anyhow
        # In a thread of its own: pyroute2 runs an event loop, of which a thread can have only one.
        with ThreadPoolExecutor(1) as thread:
            listeners = thread.submit(lambda: list(_sockets(port, 1 << _LISTEN))).result()
        inodes = {f"socket:[{s['idiag_inode']}]" for s in listeners}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if any(os.readlink(fd) in inodes for fd in (process / "fd").iterdir()):
                    return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
    return ""


def port_taken(config: Config) -> KechoError:
    """The error of a service whose port somebody else has, with who it is if that can be seen."""
    where = ", ".join(endpoint(address, config.port) for address in config.binds)
    holder = listener_on(config.port)
    return KechoError(f"cannot listen on {where}: the port is taken" + (f" by {holder}" if holder else ""))
