# SPDX-License-Identifier: MIT
"""Socket calls of clients behave as tcp(7) says, on every path but ingress."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest
import support
from support import assert_same, echo, payload, receive, receive_all

from kecho.kernel import libc

_TCP_INQ = 36  # include/uapi/linux/tcp.h
_SO_PEEK_OFF, _SO_ZEROCOPY = 42, 60  # include/uapi/asm-generic/socket.h
_F_GETPIPE_SZ = 1032

AS_TCP = [path for path in support.PATHS if path in ("egress", "skb", "user")]


@pytest.fixture(scope="module", params=AS_TCP)
def kept(request: pytest.FixtureRequest) -> Iterator[support.Kept]:
    with contextlib.closing(support.Kept(request.param, backlog=1024)) as found:
        yield found


def blocking(sock: socket.socket) -> socket.socket:
    """Makes a socket blocking, with the kernel's timeout: Python's would make it non-blocking."""
    sock.settimeout(None)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(support.TIMEOUT_S), 0))
    return sock


def warm(served: support.Server) -> socket.socket:
    """A client whose connection is accepted and on its path."""
    client = blocking(served.client())
    for _ in range(2):
        client.sendall(b"warm")
        assert receive(client, 4) == b"warm"
    support.wait_for(lambda: served.active() > 0, "accept(), before which path egress takes less")
    return client


def gather(client: socket.socket, size: int) -> None:
    """Waits until `size` bytes have come back, without reading them."""

    def there() -> int:
        try:
            return len(client.recv(size, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return 0

    support.wait_for(lambda: there() == size, "the whole echo")


# ---- large writes, shutdown, late reads: as event loops do ----


@pytest.mark.parametrize(
    ("writes", "size", "late_s"), [(14, 10_000, 0.0), (14, 10_000, 0.2), (300, 1000, 0.0), (64, 1 << 16, 0.2)]
)
def test_writes_then_the_end(served: support.Server, writes: int, size: int, late_s: float) -> None:
    """With edge-triggered epoll, which reports data only once."""
    for turn in range(support.few(20)):
        data = payload(writes * size, turn)
        with served.client() as client, select.epoll() as epoll:
            client.setblocking(False)
            epoll.register(client, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET | select.EPOLLRDHUP)
            at, got, ended, shut = 0, bytearray(), False, False
            begin = time.monotonic() + late_s
            while not ended:
                if late_s and shut and time.monotonic() < begin:
                    time.sleep(begin - time.monotonic())
                events = epoll.poll(support.TIMEOUT_S)
                assert events, f"no event; {len(got)} of {len(data)} bytes came back"
                while at < len(data):
                    try:
                        at += client.send(data[at : at + size])
                    except BlockingIOError:
                        break
                if at == len(data) and not shut:
                    client.shutdown(socket.SHUT_WR)
                    shut = True
                    if late_s:
                        continue
                while not ended:
                    try:
                        chunk = client.recv(1 << 16)
                    except BlockingIOError:
                        break
                    got += chunk
                    ended = not chunk
            assert_same(bytes(got), data)


def test_one_thread_sends_shuts_down_and_reads(served: support.Server) -> None:
    """shutdown() wakes a blocking recv() of another thread, which must not return EAGAIN."""
    for turn in range(support.few(300)):
        with blocking(served.client()) as client:
            data = payload(1 + turn * 37 % 5000, turn)
            client.sendall(data)
            first = client.recv(1)
            client.shutdown(socket.SHUT_WR)
            assert_same(first + receive_all(client), data)


# ---- splice ----


def spliced(client: socket.socket, size: int) -> bytes:
    out, into = os.pipe()
    try:
        got = bytearray()
        while len(got) < size:
            moved = os.splice(client.fileno(), into, min(size - len(got), fcntl.fcntl(into, _F_GETPIPE_SZ)))
            assert moved, f"the stream ended after {len(got)} of {size} bytes"
            got += os.read(out, moved)
        return bytes(got)
    finally:
        os.close(out)
        os.close(into)


@pytest.mark.parametrize("size", [5, 100_000])
def test_splice(served: support.Server, size: int) -> None:
    with warm(served) as client:
        data = payload(size)
        with support.sending(client, data):
            assert_same(spliced(client, size), data)


def test_splice_both_ways(served: support.Server) -> None:
    """Splices as a proxy does."""
    data = payload(50_000)
    out, into = os.pipe()
    with warm(served) as client:
        for turn in range(10):
            part = data[turn * 5000 : (turn + 1) * 5000]
            os.write(into, part)
            assert os.splice(out, client.fileno(), len(part)) == len(part)
            assert_same(spliced(client, len(part)), part)
    os.close(out)
    os.close(into)


def test_half_close_then_splice(served: support.Server) -> None:
    """As in Go: write 5 bytes, CloseWrite, io.Copy."""
    for _ in range(support.few(50)):
        with blocking(served.client()) as client:
            client.sendall(b"kecho")
            client.shutdown(socket.SHUT_WR)
            assert spliced(client, 5) == b"kecho"
            assert client.recv(1) == b""


# ---- recv ----


def test_waitall_waits_for_all(served: support.Server) -> None:
    with warm(served) as client:
        client.sendall(b"abc")
        gather(client, 3)
        timer = threading.Timer(0.2, client.sendall, [b"defghij"])
        timer.start()
        assert client.recv(10, socket.MSG_WAITALL) == b"abcdefghij"
        timer.join()


def test_rcvlowat(served: support.Server) -> None:
    """poll() reports nothing until SO_RCVLOWAT bytes have come."""
    with warm(served) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 100)
        client.sendall(payload(60))
        gather(client, 60)
        assert select.select([client], [], [], 0.1)[0] == []
        client.sendall(payload(60))
        assert select.select([client], [], [], support.TIMEOUT_S)[0] == [client]
        assert receive(client, 120) == 2 * payload(60)


def test_peek_off(served: support.Server) -> None:
    with warm(served) as client:
        client.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, 0)
        client.sendall(b"abcdef")
        support.wait_for(lambda: select.select([client], [], [], 0)[0], "the echo")
        assert [client.recv(2, socket.MSG_PEEK) for _ in range(3)] == [b"ab", b"cd", b"ef"]
        assert client.recv(10) == b"abcdef"


def test_inq(served: support.Server) -> None:
    """recvmsg() tells how much is left to read."""
    with warm(served) as client:
        client.setsockopt(socket.IPPROTO_TCP, _TCP_INQ, 1)
        client.sendall(payload(100))
        gather(client, 100)
        data, [(level, kind, left)], _, _ = client.recvmsg(30, 64)
        assert (data, level, kind) == (payload(100)[:30], socket.IPPROTO_TCP, _TCP_INQ)
        assert struct.unpack("=i", left) == (70,)
        assert receive(client, 70) == payload(100)[30:]


def test_trunc_throws_away(served: support.Server) -> None:
    with warm(served) as client:
        client.sendall(b"abcdef")
        gather(client, 6)
        assert libc.call("recv", client.fileno(), None, 4, socket.MSG_TRUNC) == 4
        assert client.recv(10) == b"ef"


# ---- a socket that is used again ----


def disconnect(sock: socket.socket) -> None:
    """connect() with AF_UNSPEC, which Python has no call for."""
    address = struct.pack("=H14x", socket.AF_UNSPEC)
    libc.call("connect", sock.fileno(), address, len(address))


def test_nothing_old_after_disconnect(served: support.Server) -> None:
    """Unread echoes do not appear in the next connection of the socket."""
    with socket.create_server(("127.0.0.1", 0)) as other, warm(served) as client:
        client.sendall(b"old" * 1000)
        gather(client, 3000)
        disconnect(client)
        client.connect(other.getsockname())
        there, _ = other.accept()
        with there:
            client.sendall(b"new")
            assert there.recv(10) == b"new"
            there.sendall(b"answer")
            assert receive(client, 6) == b"answer"
        disconnect(client)
        client.connect((served.address(), served.port))
        echo(client, payload(5000))


def test_zerocopy_completes(served: support.Server) -> None:
    """A client that sets SO_ZEROCOPY before connect() gets completions."""
    zerocopy = 0x4000000  # MSG_ZEROCOPY
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, _SO_ZEROCOPY, 1)
        support.connect(served.address(), served.port, client)
        for turn in range(10):
            data = payload(20_000, turn)
            assert client.send(data, zerocopy) == len(data)
            assert_same(receive(client, len(data)), data)
            poll = select.poll()
            poll.register(client, 0)
            assert poll.poll(support.TIMEOUT_S * 1000), "no completion"
            client.recvmsg(1, 128, socket.MSG_ERRQUEUE)
