# SPDX-License-Identifier: MIT
"""System limits that a run can hit: what it needs, what the system allows, and how the difference shows in figures.

All but the limit of descriptors belong to a network namespace: here that of the calling process.
"""

from __future__ import annotations

import resource
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kecho.kernel import sysctl
from kecho.kernel.sockets import listen_counters
from kecho.kernel.sysctl import SOMAXCONN
from kecho.model.snapshot import SCHEMA
from kecho.model.units import plural

SYN_BACKLOG = "net.ipv4.tcp_max_syn_backlog"
PORT_RANGE = "net.ipv4.ip_local_port_range"  # for IPv6 too
SYN_COOKIES = "net.ipv4.tcp_syncookies"
TW_REUSE = "net.ipv4.tcp_tw_reuse"
DESCRIPTORS = "descriptors"

CONNECTS_AT_ONCE = 64  # native/bench/conn.c: how many connections bench makes before it waits for them
FIRST_PORT, LAST_PORT = 1024, 65535
_SPARE_DESCRIPTORS = 64  # that a client or server needs beside its connections


@dataclass(frozen=True)
class Needs:
    """What a run needs of the system.

    `connections` are open at once, up to `waiting` of them wait for the server's accept(), and `made` are made to one
    server in total (None: as many as there is time for). A port stays in TIME-WAIT for a minute after its connection.
    """

    connections: int
    waiting: int
    made: int | None

    @classmethod
    def of_run(cls, connections: int, made: int | None, paced: bool = True) -> Needs:
        """The needs of a run of bench. If `paced`, it makes at most CONNECTS_AT_ONCE connections at a time."""
        return cls(connections, min(connections, CONNECTS_AT_ONCE) if paced else connections, made)

    @property
    def descriptors(self) -> int:
        return self.connections + _SPARE_DESCRIPTORS

    @property
    def ports(self) -> int:
        """The local ports needed to reach one server, at most all that there can be."""
        most = LAST_PORT - FIRST_PORT + 1
        return most if self.made is None else min(self.made, most)

    @property
    def syn_backlog(self) -> int:
        """The SYN backlog needed. Without SYN cookies a quarter is kept for known hosts (tcp_conn_request)."""
        return self.waiting * 4 // 3 + 1


@dataclass(frozen=True)
class Limits:
    """What the system allows. `tw_reuse`: 1 a port in TIME-WAIT is free after a second, 2 only on loopback, 0 never."""

    somaxconn: int
    syn_backlog: int
    syn_cookies: int
    first_port: int
    last_port: int
    tw_reuse: int
    soft_descriptors: int
    hard_descriptors: int

    @classmethod
    def now(cls) -> Limits:
        """The current limits of this process and its network namespace."""
        first, last = map(int, sysctl.read(PORT_RANGE).split())
        return cls(
            sysctl.somaxconn(),
            int(sysctl.read(SYN_BACKLOG)),
            int(sysctl.read(SYN_COOKIES)),
            first,
            last,
            int(sysctl.read(TW_REUSE)),
            *resource.getrlimit(resource.RLIMIT_NOFILE),
        )

    @property
    def ports(self) -> int:
        return self.last_port - self.first_port + 1

    def ports_rest(self, remote: bool) -> bool:
        """Does a port stay in use for a minute after its connection (TCP_TIMEWAIT_LEN, include/net/tcp.h)?"""
        return self.tw_reuse == 0 or (self.tw_reuse == 2 and remote)


def wanted(needs: Needs, limits: Limits) -> dict[str, str]:
    """The sysctls that have to be raised, with their new values. Pure."""
    found = {}
    if limits.somaxconn < needs.waiting:
        found[SOMAXCONN] = str(needs.waiting)
    if limits.syn_backlog < needs.syn_backlog:
        found[SYN_BACKLOG] = str(needs.syn_backlog)
    if limits.ports < needs.ports:
        # The upper end is raised first, since services listen on lower ports.
        last = min(LAST_PORT, limits.first_port + needs.ports - 1)
        found[PORT_RANGE] = f"{last - needs.ports + 1} {last}"
    return found


def distortions(
    needs: Needs, limits: Limits, backlogs: Mapping[str, int] | None = None, remote: bool = False
) -> list[str]:
    """How these limits would distort the figures of a run, a sentence each. Pure.

    `backlogs` are the known accept queues: how many connections may wait at each server, by its name. `remote` says
    that the client does not use loopback.
    """
    found = []
    if needs.descriptors > limits.hard_descriptors:
        found.append(
            f"{plural(needs.connections, 'connection')} and a few files besides may be more than the "
            f"{plural(limits.hard_descriptors, 'descriptor')} that a process may have here"
        )
    if needs.connections > limits.ports:
        found.append(
            f"{plural(needs.connections, 'connection')} to one address cannot be made from "
            f"{plural(limits.ports, 'port')} ({PORT_RANGE})"
        )
    elif needs.ports > limits.ports and limits.ports_rest(remote):
        made = "as many as there is time for" if needs.made is None else f"{needs.made:,}"
        found.append(
            f"connections to one address ({made}) may use up {plural(limits.ports, 'port')} ({PORT_RANGE}): each rests "
            "for a minute afterwards"
        )
    for server, backlog in (backlogs or {}).items():
        # The queue holds one more than the backlog: the kernel compares with > (sk_acceptq_is_full, net/sock.h).
        if needs.waiting > backlog + 1:
            found.append(
                f"{server} lets {plural(backlog, 'connection')} wait (up --backlog), and {needs.waiting:,} may come at "
                "once: what overflows is tried again only after a second"
            )
    if needs.waiting > limits.somaxconn + 1 and not backlogs:
        found.append(
            f"no server here lets more than {plural(limits.somaxconn, 'connection')} wait ({SOMAXCONN}), and "
            f"{needs.waiting:,} may come at once: what overflows is tried again only after a second"
        )
    if limits.syn_cookies == 0 and limits.syn_backlog < needs.syn_backlog:
        found.append(
            f"{needs.waiting:,} connections may come at once, and without SYN cookies the kernel drops those beyond "
            f"three quarters of {limits.syn_backlog:,} ({SYN_BACKLOG})"
        )
    return found


# ---- overflows ----


@dataclass(frozen=True)
class ListenCounts:
    """Counts over all listeners of a network namespace: full accept queues, and all dropped requests."""

    overflows: int
    drops: int

    def __sub__(self, earlier: ListenCounts) -> ListenCounts:
        return ListenCounts(self.overflows - earlier.overflows, self.drops - earlier.drops)

    @classmethod
    def now(cls) -> ListenCounts:
        """The counts since the namespace was made."""
        counters = listen_counters()
        return cls(counters["overflows"], counters["drops"])

    def note(self) -> str:
        """A warning for the reader of a run's figures; empty if nothing overflowed."""
        if not self.drops:
            return ""
        return (
            f"{plural(self.drops, 'request')} for a connection found a full queue and waited a second or more for the "
            "next attempt (counted over all servers of this network namespace)"
        )


# ---- kecho-ctl tune ----


def examine(needs: Needs, raised: Mapping[str, Any] | None) -> dict[str, Any]:
    """The object of ``tune --json``. `raised` has the limits that are raised now, with their old values."""
    limits = Limits.now()
    raising = wanted(needs, limits)
    rows: list[dict[str, Any]] = []
    for name in (SOMAXCONN, SYN_BACKLOG, PORT_RANGE):
        rows.append({"name": name, "now": sysctl.read(name), "raised_to": raising.get(name)})
    soft, more = limits.soft_descriptors, limits.soft_descriptors < needs.descriptors
    rows.append({"name": DESCRIPTORS, "now": str(soft), "raised_to": str(needs.descriptors) if more else None})
    return {
        "schema": SCHEMA,
        "needs": {**asdict(needs), "descriptors": needs.descriptors},
        "limits": rows,
        "syn_cookies": limits.syn_cookies,
        "raised": dict(raised or {}),
        "distortions": distortions(needs, limits),
    }


def text(found: Mapping[str, Any], width: int = 80) -> str:
    """The result of `examine` as text."""
    lines = [f"{'limit':32}{'now':>14}  {plural(found['needs']['connections'], 'connection')} at once"]
    for row in found["limits"]:
        lines.append(f"{row['name']:32}{row['now']:>14}  {'→ ' + row['raised_to'] if row['raised_to'] else 'enough'}")
    lines += textwrap.wrap(
        "left alone: if on, the kernel warns of SYN flooding when a queue overflows, and answers all the same",
        width,
        initial_indent=f"{SYN_COOKIES:32}{found['syn_cookies']:>14}  ",
        subsequent_indent=" " * 48,
    )
    for name, entry in found["raised"].items():
        lines.append(f"{name} is raised, from {entry['old']}: by a run that goes on, or one that was killed")
    return "\n".join([*lines, *("\n".join(textwrap.wrap(one, width)) for one in found["distortions"])])
