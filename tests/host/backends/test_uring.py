# SPDX-License-Identifier: MIT
"""The io_uring engine of user-echo-server and a wake-up that the kernel loses."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import support

from kecho.kernel import bpf, features
from kecho.model.errors import KechoError, Unavailable

_TRIALS = 300
_WAKES = 200  # more than the 128 that the kernel counts
_HOLD_NS = 100_000


@pytest.fixture
def served(service: Callable[..., support.Service]) -> support.Service:
    try:
        features.headers()
    except Unavailable as e:
        pytest.skip(str(e))
    return service(path="user", engine="io_uring")


def _server(served: support.Service) -> int:
    """The pid of its user-echo-server."""
    (pid,) = (pid for pid in support.session(served.pid) if _comm(pid) == "user-echo-serve")
    return pid


def _comm(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def test_no_wake_up_is_lost(served: support.Service) -> None:
    """Sends segments while the server is stopped, and one more while it receives them.

    With a multishot receive Linux would lose the wake-up for that one if the server is delayed at the wrong moment,
    which a BPF program does here. Without further data the segment would never be echoed.
    """
    server = _server(served)
    module = bpf.Module(str(Path(__file__).with_name("slow-completions.c")), {"PID": server, "HOLD_NS": _HOLD_NS})
    rng = random.Random(1)
    try:
        try:
            module.attach_raw_tracepoint("io_uring_complete", "hold_up")
        except KechoError as e:
            pytest.skip(str(e))
        with served.client() as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")  # does not delay
            client.settimeout(10)
            for trial in range(_TRIALS):
                with support.stopped(server):
                    for _ in range(_WAKES):
                        client.send(b"x")
                until = time.monotonic_ns() + rng.randrange(3 * _HOLD_NS)
                while time.monotonic_ns() < until:
                    pass
                client.send(b"y")
                try:
                    assert support.receive(client, _WAKES + 1) == _WAKES * b"x" + b"y"
                except TimeoutError:
                    pytest.fail(f"not echoed, in trial {trial}")
    finally:
        module.close()
