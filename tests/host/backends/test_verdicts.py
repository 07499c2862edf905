# SPDX-License-Identifier: MIT
"""What the verdicts of mode sockmap go by, condition by condition."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import struct
import subprocess
import tempfile
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import DEVNULL

import pytest
import support
from support import assert_same, echo, payload, receive

Up = Callable[..., support.Service]
OPEN_ECHOES = 16  # of bpf/remote.h
RCV_BASE = slice(12, 16)  # of struct remote there
FIONREAD, F_SETPIPE_SZ = 0x541B, 1031  # of Linux; Python has neither
LOCAL_PATHS = pytest.mark.parametrize("path", ["egress", "ingress"])


@LOCAL_PATHS
def test_the_limit_is_of_what_the_client_has_not_read(service: Up, path: str) -> None:
    """Bytes in flight, and bytes that the client has read, do not count."""
    served = service(path=path, limit=4096)
    with served.client() as client:
        support.wait_for(lambda: served.active() == 1, "accept(), before which path egress takes less")
        for turn in range(3):
            sent = payload(4000, turn)
            client.sendall(sent)
            assert_same(receive(client, 4000), sent)
        assert served.path(path)["bytes"] == 12_000, "what was read counts no more"
        client.sendall(sent)
        support.wait_for(lambda: len(client.recv(4000, socket.MSG_PEEK)) == 4000, "all of it is here")
        client.sendall(b"x" * 97)
        assert_same(receive(client, 4097), sent + b"x" * 97)
        stats = served.stats()["paths"]
        assert (stats[path]["bytes"], stats["user"]["bytes"], stats[path]["fallbacks"]) == (16_000, 97, 1)


@contextlib.contextmanager
def nobody_else_on_this_cpu() -> Iterator[None]:
    """A kworker of this CPU runs when this thread waits, and not before."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cpus)})
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setaffinity(0, cpus)


def test_echoes_that_are_open_at_once(service: Up) -> None:
    """More than there is room for on path skb: the first ones are measured, none is lost."""
    served = service(path="skb")
    with served.client() as client:
        echo(client, b"warm")
        before = served.path("skb")
        sent = payload(100)
        with nobody_else_on_this_cpu():
            for byte in sent:
                client.send(bytes([byte]))
        assert_same(receive(client, len(sent)), sent)
        after = served.path("skb")
    echoes = after["echoes"] - before["echoes"]
    assert echoes > OPEN_ECHOES
    assert OPEN_ECHOES <= after["latency_ns"]["count"] - before["latency_ns"]["count"] < echoes


@LOCAL_PATHS
def test_a_socket_that_is_gone_has_no_slot(service: Up, path: str) -> None:
    """Before Linux 6.5 no hook sees sendfile() return: its slot stays open. The next socket may be at its address."""
    served = service(path=path)
    with tempfile.TemporaryFile() as file:
        file.write(payload(100))
        file.flush()
        for _ in range(10):
            with served.client() as client:
                echo(client, b"accepted")
                os.sendfile(client.fileno(), file.fileno(), 0, 100)
                assert_same(receive(client, 100), payload(100))
    support.wait_for(lambda: served.active() == 0, "the end of all connections")
    slots = support.bpftool("map", "dump", "id", support.map_id(served.pid, "sends"))
    assert slots
    assert all(not any(int(byte, 16) for byte in slot["value"][:8]) for slot in slots), slots


def lose_a_byte_of_each(pid: int) -> None:
    """Makes the verdict of path skb find a hole in each stream, as where the kernel has no memory to trim an skb."""
    number = support.map_id(pid, "remotes")
    updates = []
    for entry in support.bpftool("map", "dump", "id", number):
        value = bytes(int(byte, 16) for byte in entry["value"])
        (rcv_base,) = struct.unpack("=I", value[RCV_BASE])
        value = value[: RCV_BASE.start] + struct.pack("=I", rcv_base - 1 & 0xFFFFFFFF) + value[RCV_BASE.stop :]
        updates.append(f"map update id {number} key {' '.join(entry['key'])} value hex {value.hex(' ')}")
    subprocess.run(["bpftool", "batch", "file", "-"], input="\n".join(updates), text=True, check=True, stdout=DEVNULL)


def pipe_of_cookies(controller: int) -> tuple[int, int]:
    """The process that takes cookies of connections to reset, and a descriptor of its pipe."""
    for pid in support.session(controller):
        if found := re.search(r"--reset-fd=(\d+)", Path(f"/proc/{pid}/cmdline").read_text()):
            return pid, os.open(f"/proc/{pid}/fd/{found[1]}", os.O_RDONLY | os.O_CLOEXEC)
    raise AssertionError("no process of the service takes cookies")


def unread(fd: int) -> int:
    count = array("i", [0])
    fcntl.ioctl(fd, FIONREAD, count)
    return count[0]


def test_more_broken_streams_than_the_pipe_has_room_for(service: Up) -> None:
    """Each is reset, and the others go on, though neither the controller nor the server runs when they break."""
    served = service(path="skb")
    with contextlib.ExitStack() as stack:
        broken = [stack.enter_context(served.client()) for _ in range(600)]
        for client in broken:
            echo(client, b"kecho")
        lose_a_byte_of_each(served.pid)
        others = [stack.enter_context(served.client()) for _ in range(10)]
        server, pipe = pipe_of_cookies(served.pid)
        stack.callback(os.close, pipe)
        capacity = fcntl.fcntl(pipe, F_SETPIPE_SZ, 4096)
        assert capacity < 8 * len(broken)
        with support.stopped(server):
            with support.stopped(served.pid):
                for client in broken:
                    client.sendall(b"one")
                    client.sendall(b"and another")
            support.wait_for(lambda: unread(pipe) == capacity, "a full pipe")
        for client in broken:
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        for client in others:
            echo(client, b"and on")
        assert served.connections() == {"active": 10, "total": 610, "rejected": 0, "aborted": 600}
