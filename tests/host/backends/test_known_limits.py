# SPDX-License-Identifier: MIT
"""The limits of docs/known-limits.md for clients on paths egress and ingress. A kernel without one fails the test."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import termios
import threading
from collections.abc import Iterator

import pytest
import support
from test_client_calls import blocking, disconnect, gather, warm

from kecho.kernel import features

_SO_ZEROCOPY, _SO_TIMESTAMPING, _MSG_ZEROCOPY = 60, 37, 0x4000000  # include/uapi/asm-generic/socket.h
_TX_SOFTWARE = 1 << 1 | 1 << 4  # SOF_TIMESTAMPING_TX_SOFTWARE, _SOFTWARE: include/uapi/linux/net_tstamp.h


@pytest.fixture(scope="module", params=[path for path in support.PATHS if path in ("egress", "ingress")])
def kept(request: pytest.FixtureRequest) -> Iterator[support.Kept]:
    with contextlib.closing(support.Kept(request.param)) as found:
        yield found


def reports_an_error(client: socket.socket) -> bool:
    """Is there something in the queue of completions and time stamps, within a second?"""
    poll = select.poll()
    poll.register(client, 0)
    return bool(poll.poll(1000))


def test_a_recv_that_is_woken_without_data(served: support.Server) -> None:
    """A blocking recv() returns EAGAIN where plain TCP returns 0, the end of the stream."""
    with warm(served) as client:
        timer = threading.Timer(0.2, client.shutdown, [socket.SHUT_RD])
        timer.start()
        with pytest.raises(BlockingIOError):
            client.recv(1)
        timer.join()


def test_no_completion_for_who_asks_after_connect(served: support.Server) -> None:
    with warm(served) as client:
        client.setsockopt(socket.SOL_SOCKET, _SO_ZEROCOPY, 1)
        client.send(bytes(20_000), _MSG_ZEROCOPY)
        support.receive(client, 20_000)
        assert not reports_an_error(client)


def test_no_time_stamps(served: support.Server) -> None:
    with warm(served) as client:
        client.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPING, _TX_SOFTWARE)
        client.sendall(b"kecho")
        support.receive(client, 5)
        assert not reports_an_error(client)


def test_fionread_is_as_doctor_says(served: support.Server, kept: support.Kept) -> None:
    probe = {"egress": features.probe_egress, "ingress": features.probe_ingress}[kept.path]
    with warm(served) as client:
        client.sendall(b"kecho")
        gather(client, 5)
        (counted,) = struct.unpack("=i", fcntl.ioctl(client, termios.FIONREAD, bytes(4)))
        assert counted == (0 if "FIONREAD counts nothing" in probe() else 5)


def test_an_urgent_byte_comes_back_urgent(served: support.Server, kept: support.Kept) -> None:
    if kept.path == "ingress":
        pytest.skip("there it is a byte like any other")
    with warm(served) as client:
        client.send(b"!", socket.MSG_OOB)
        support.wait_for(lambda: select.select([], [], [client], 0)[2], "urgent data")
        assert client.recv(1, socket.MSG_OOB) == b"!"


# ---- path ingress alone ----


@pytest.fixture
def on_ingress(kept: support.Kept) -> Iterator[socket.socket]:
    if kept.path != "ingress":
        pytest.skip("test_client_calls.py has it, as it should be")
    with warm(kept.idle()) as client:
        client.sendall(b"abc")
        gather(client, 3)
        yield client


def test_splice_sees_nothing(on_ingress: socket.socket) -> None:
    on_ingress.setblocking(False)
    out, into = os.pipe()
    with pytest.raises(BlockingIOError):
        os.splice(on_ingress.fileno(), into, 3)
    os.close(out)
    os.close(into)


def test_waitall_does_not_wait(on_ingress: socket.socket) -> None:
    assert on_ingress.recv(10, socket.MSG_WAITALL) == b"abc"


def test_peek_off_has_no_effect(on_ingress: socket.socket) -> None:
    on_ingress.setsockopt(socket.SOL_SOCKET, 42, 0)  # SO_PEEK_OFF
    assert [on_ingress.recv(2, socket.MSG_PEEK) for _ in range(2)] == [b"ab", b"ab"]


def test_old_data_after_disconnect(on_ingress: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        disconnect(on_ingress)
        on_ingress.connect(other.getsockname())
        assert blocking(on_ingress).recv(10) == b"abc"
