# SPDX-License-Identifier: MIT
"""Attaches programs to the tc ingress of devices: by tcx links, or by filters on kernels before Linux 6.6."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn, Protocol

from kecho.kernel import features, privileges, process, syscall
from kecho.kernel.privileges import CAP_NET_ADMIN
from kecho.model.errors import KechoError, Unavailable, one_line

_LO_IFINDEX = 1  # LOOPBACK_IFINDEX of include/net/flow.h
# include/uapi/linux/pkt_sched.h: TC_H_CLSACT with TC_H_MIN_INGRESS
_PARENT_INGRESS = 0xFFFFFFF2
_CLSACT = 0xFFFFFFF1
_MESSAGE_BYTES = 4096


class Ingress(Protocol):
    """Programs at devices, one for each. `close` detaches all of them."""

    def attach(self, ifindex: int, kind: str) -> None:
        """Attaches the program for that kind of device. Raises OSError or KechoError."""

    def detach(self, ifindex: int) -> None:
        """Detaches the program. The device may have gone already."""

    def close(self) -> None: ...


class Links:
    """Attaches by BPF links, which end with this process. Needs no privilege once the programs are loaded."""

    def __init__(self, programs: Mapping[str, int]) -> None:
        self._programs = programs
        self._links: dict[int, int] = {}

    def attach(self, ifindex: int, kind: str) -> None:
        self._links[ifindex] = syscall.link_create(self._programs[kind], ifindex, syscall.ATTACH_TCX_INGRESS)

    def detach(self, ifindex: int) -> None:
        os.close(self._links.pop(ifindex))

    def close(self) -> None:
        while self._links:
            self.detach(next(iter(self._links)))


class Filters:
    """Attaches by filters of a clsact qdisc. They would outlive this process, so another process sets them, and removes
    them when this one ends, even if it is killed. Only that process keeps CAP_NET_ADMIN."""

    def __init__(self, programs: Mapping[str, int], name: str) -> None:
        """`name` is that of the filters, by which they are found again."""
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            _set_filters(theirs, programs, name)
        theirs.close()

    def attach(self, ifindex: int, kind: str) -> None:
        self._ask({"ifindex": ifindex, "kind": kind})

    def detach(self, ifindex: int) -> None:
        self._ask({"ifindex": ifindex, "kind": None})

    def _ask(self, request: Mapping[str, Any]) -> None:
        self._sock.sendall(json.dumps(request).encode())
        error = self._sock.recv(_MESSAGE_BYTES).decode() or "the process that sets filters has ended"
        if error != "ok":
            raise KechoError(error)

    def close(self) -> None:
        self._sock.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)


def _set_filters(controller: socket.socket, programs: Mapping[str, int], name: str) -> NoReturn:
    """Runs the process that sets the filters."""
    try:
        process.set_name("kecho-filters")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        process.close_descriptors({controller.fileno(), *programs.values()})
        privileges.drop({CAP_NET_ADMIN}, None)
        with _Clsact(name) as clsact:
            while message := controller.recv(_MESSAGE_BYTES):
                request = json.loads(message)
                try:
                    if request["kind"] is None:
                        clsact.remove(request["ifindex"])
                    else:
                        clsact.add(request["ifindex"], programs[request["kind"]])
                    answer = "ok"
                except Exception as e:
                    answer = one_line(e)
                controller.sendall(answer.encode())
    finally:
        os._exit(0)


class _Clsact:
    """Filters of one name, and the qdiscs made for them. Those of others are left alone."""

    def __init__(self, name: str) -> None:
        from pyroute2.iproute.linux import IPRoute

        self._route = IPRoute()
        self._name = name
        self._made: set[int] = set()
        self._set: set[int] = set()

    def __enter__(self) -> _Clsact:
        return self

    def __exit__(self, *_: object) -> None:
        for ifindex in list(self._set):
            with contextlib.suppress(Exception):  # the device may have gone; go on with the others
                self.remove(ifindex)

    def add(self, ifindex: int, program: int) -> None:
        """Where the kernel puts it: behind filters that were given a place, in front of those that were not."""
        if _CLSACT not in {qdisc["parent"] for qdisc in self._route.get_qdiscs(index=ifindex)}:
            self._route.tc("add", "clsact", ifindex)
            self._made.add(ifindex)
        self._route.tc(
            "add-filter",
            "bpf",
            ifindex,
            fd=program,
            name=self._name,
            parent=_PARENT_INGRESS,
            classid=1,
            direct_action=True,
        )
        self._set.add(ifindex)

    def remove(self, ifindex: int) -> None:
        """Removes the filter, and the qdisc if it was made for it and has no other filter."""
        self._set.discard(ifindex)
        for filter_ in _filters(self._route, ifindex, self._name):
            self._route.tc("del-filter", "bpf", ifindex, **filter_)
        if ifindex in self._made and not list(self._route.get_filters(ifindex, parent=_CLSACT)):
            self._route.tc("del", "clsact", ifindex)


def _filters(route: Any, ifindex: int, name: str) -> Iterator[dict[str, int]]:
    """The attributes that identify each filter of that name at the ingress of a device."""
    for found in list(route.get_filters(ifindex, parent=_PARENT_INGRESS)):
        options = found.get_attr("TCA_OPTIONS")
        if found.get_attr("TCA_KIND") == "bpf" and options and options.get_attr("TCA_BPF_NAME") == name:
            yield {"parent": _PARENT_INGRESS, "info": found["info"], "handle": found["handle"]}


def clear_away(name: str) -> None:
    """Removes the filters of that name which were left when the process that set them was killed."""

    def clear() -> None:
        from pyroute2.iproute.linux import IPRoute

        with IPRoute() as route:
            for link in list(route.get_links()):
                for filter_ in _filters(route, link["index"], name):
                    route.tc("del-filter", "bpf", link["index"], **filter_)

    # Runs in another thread: pyroute2 runs an event loop, and a thread can have only one.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(clear).result()


def has_links() -> bool:
    """Does this kernel have tcx links? Tries one on lo with a program that does nothing. Raises OSError."""
    program = syscall.prog_load(syscall.PROG_TYPE_SCHED_CLS, syscall.RETURN_UNSPEC)
    try:
        os.close(syscall.link_create(program, _LO_IFINDEX, syscall.ATTACH_TCX_INGRESS))
    except OSError as e:
        if e.errno == errno.EINVAL:
            return False
        raise
    finally:
        os.close(program)
    return True


def probe() -> str:
    """Programs at tc ingress."""
    try:
        return "by tcx links" if has_links() else "by filters of clsact, which outlive what is killed"
    except OSError as e:
        raise Unavailable(
            f"BPF at tc ingress is refused: {one_line(e)}",
            features.remedy(e) or "boot a kernel with CONFIG_NET_CLS_ACT=y",
        ) from e
