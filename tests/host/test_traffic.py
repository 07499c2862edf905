# SPDX-License-Identifier: MIT
"""Every byte comes back, once, in order, whatever the client does, on every path."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import select
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import support
from support import assert_same, echo, payload, receive, receive_all, sending

STREAM_MB = int(os.environ.get("KECHO_TEST_STREAM_MB", "64"))
LIMIT = 128 << 10
SIZES = [1, 2, 63, 64, 65, 1448, 4095, 4096, 4097, 65535, 65536, 65537, LIMIT - 1, LIMIT, LIMIT + 1, 1 << 20, 8 << 20]
KERNEL_PATHS = ("msg", "skb")


class _Kept:
    """The service of a path that one test hands to the next."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.service: support.Service | None = None

    def idle(self) -> support.Service:
        """A test that left a connection behind has failed; it does not take the next one along."""
        if self.service and not _settles(lambda: self.service.active() == 0):
            self.close()
        if not self.service:
            self.service = support.up(path=self.path)
            self.service.expected = self.path
        return self.service

    def close(self) -> None:
        service, self.service = self.service, None
        if service:
            service.down()


def _settles(condition: Callable[[], bool]) -> bool:
    try:
        support.wait_for(condition, "", timeout_s=5)
    except AssertionError:
        return False
    return True


@pytest.fixture(scope="module", params=support.PATHS)
def kept(request: pytest.FixtureRequest) -> Iterator[_Kept]:
    found = _Kept(request.param)
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def served(kept: _Kept) -> support.Service:
    """One service a path for all tests that need no options: what one leaves behind, the next one meets."""
    return kept.idle()


@pytest.fixture
def kernel_served(served: support.Service) -> support.Service:
    if served.expected not in KERNEL_PATHS:
        pytest.skip("about the paths in the kernel")
    return served


@contextlib.contextmanager
def all_stopped(service: support.Service) -> Iterator[None]:
    """The controller, and the server it may have started, do not run inside the block."""
    with contextlib.ExitStack() as stack:
        for pid in support.session(service.pid):
            stack.enter_context(support.stopped(pid))
        yield


def assert_idle(service: support.Service) -> None:
    """No connection is left, and a new one is served."""
    support.wait_for(lambda: service.active() == 0, "the end of all connections", timeout_s=15)
    with service.client() as client:
        echo(client, b"still there")


# ---- contents ----


def test_every_byte_value(served: support.Service, family: int) -> None:
    before = served.path(served.expected)
    with served.client(family) as client:
        for value in range(256):
            client.sendall(bytes([value]))
            assert receive(client, 1) == bytes([value])
        echo(client, bytes(range(256)))
    after = served.path(served.expected)
    assert after["bytes"] - before["bytes"] == 512
    assert after["echoes"] - before["echoes"] == 257


@pytest.mark.parametrize("size", SIZES)
def test_sizes(served: support.Service, family: int, size: int) -> None:
    with served.client(family) as client:
        for seed in range(2):
            echo(client, payload(size, seed))
        echo(client, b"and what comes next")


def test_random_writes(served: support.Service, family: int) -> None:
    """KECHO_TEST_STREAM_MB says how much."""
    rng = random.Random(STREAM_MB)
    source = payload(4 << 20)
    total = STREAM_MB << 20
    sent, got = hashlib.sha256(), hashlib.sha256()
    errors: list[BaseException] = []

    def send(client: socket.socket) -> None:
        try:
            left = total
            while left:
                size = min(left, rng.randrange(1, rng.choice((100, 5000, 300_000))))
                start = rng.randrange(len(source) - size)
                chunk = memoryview(source)[start : start + size]
                client.sendall(chunk)
                sent.update(chunk)
                left -= size
            client.shutdown(socket.SHUT_WR)
        except BaseException as e:
            errors.append(e)

    with served.client(family) as client:
        thread = threading.Thread(target=send, args=(client,), daemon=True)
        thread.start()
        received, buffer = 0, bytearray(1 << 18)
        reads = random.Random(1)
        while size := client.recv_into(buffer, reads.choice((1, 1000, 1 << 18, 1 << 18))):
            received += size
            got.update(memoryview(buffer)[:size])
            assert received <= total
        thread.join(support.TIMEOUT_S)
    assert not thread.is_alive() and not errors, errors
    assert (received, got.hexdigest()) == (total, sent.hexdigest())


def test_two_streams_do_not_mix(served: support.Service) -> None:
    first, second = payload(4 << 20, 1), payload(4 << 20, 2)
    with served.client() as one, served.client(socket.AF_INET6) as two, sending(one, first), sending(two, second):
        for start in range(0, len(first), 1 << 16):
            assert_same(receive(one, 1 << 16), first[start : start + (1 << 16)])
            assert_same(receive(two, 1 << 16), second[start : start + (1 << 16)])


def test_many_connections(served: support.Service) -> None:
    """300 at once, none ever gets a byte of another's."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(served.client((socket.AF_INET, socket.AF_INET6)[i % 2])) for i in range(300)]
        support.wait_for(lambda: served.active() == 300, "300 connections at once")
        for turn in range(10):
            tokens = [f"{turn}.{i}.".encode() + payload(i % 50, i) for i in range(300)]
            for client, token in zip(clients, tokens, strict=True):
                client.sendall(token)
            for i in random.Random(turn).sample(range(300), 300):
                assert receive(clients[i], len(tokens[i])) == tokens[i]
        for client in clients:  # nothing came twice
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == b""
    assert_idle(served)


def test_many_threads(served: support.Service) -> None:
    """32 clients that do not wait for each other."""
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with served.client((socket.AF_INET, socket.AF_INET6)[number % 2]) as client:
                for turn in range(200):
                    token = payload(1 + (number * 37 + turn * 101) % 3000, number * 1000 + turn)
                    client.sendall(token)
                    assert_same(receive(client, len(token)), token)
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(support.TIMEOUT_S)
    assert not any(thread.is_alive() for thread in threads)
    assert not errors, errors[0]


def test_pipelining(served: support.Service, family: int) -> None:
    """Many small sends before the first read."""
    messages = [f"{i:06d},".encode() for i in range(3000)]
    with served.client(family) as client:
        for message in messages:
            client.sendall(message)
        assert_same(receive(client, sum(map(len, messages))), b"".join(messages))
        echo(client, b"next")


def test_scattered_writes(served: support.Service) -> None:
    """One sendmsg of many buffers."""
    parts = [payload(n, n) for n in (1, 5000, 0, 17, 70_000, 3)]
    with served.client() as client:
        whole = b"".join(parts)
        assert client.sendmsg(parts) == len(whole)
        assert_same(receive(client, len(whole)), whole)


def test_sendfile(served: support.Service) -> None:
    data = payload(1 << 20, 9)
    with served.client() as client, tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        with sending(client, b"", lambda: client.sendfile(file)):
            assert_same(receive(client, len(data)), data)


# ---- before accept, and without the controller ----


@pytest.mark.parametrize("segments", [[1], [5, 300, 7], [64] * 20, [200 << 10], [1, 200 << 10, 1]])
def test_data_before_accept(served: support.Service, family: int, segments: list[int]) -> None:
    parts = [payload(size, i) for i, size in enumerate(segments)]
    data = b"".join(parts)
    with contextlib.ExitStack() as stack:
        with all_stopped(served):
            client = stack.enter_context(served.client(family))
            for part in parts[:-1]:
                client.sendall(part)
                time.sleep(0.01)  # or TCP makes one segment of them
            stack.enter_context(sending(client, parts[-1]))
            time.sleep(0.2)
        assert_same(receive(client, len(data)), data)
        echo(client, b"and after")


def test_data_and_end_before_accept(served: support.Service, family: int) -> None:
    data = payload(50_000)
    with contextlib.ExitStack() as stack:
        with all_stopped(served):
            client = stack.enter_context(served.client(family))
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            time.sleep(0.1)
        assert_same(receive_all(client), data)


def test_gone_before_accept(served: support.Service) -> None:
    with all_stopped(served):
        for linger in (0, 1):
            with served.client() as client:
                client.sendall(b"too early")
                if linger:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert_idle(served)


def test_kernel_paths_need_no_controller(kernel_served: support.Service, family: int) -> None:
    with kernel_served.client(family) as client:
        echo(client, b"accepted")
        with all_stopped(kernel_served):
            for i in range(100):
                echo(client, payload(100, i))


# ---- the end of a stream ----


@pytest.mark.parametrize("size", [0, 1, 1000, 100_000, 300_000])
def test_half_close(served: support.Service, family: int, size: int) -> None:
    """Write, shut down, and only then read to the end."""
    data = payload(size)
    with served.client(family) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        assert_same(receive_all(client), data)


def test_half_close_big(served: support.Service, family: int) -> None:
    data = payload(8 << 20)
    with served.client(family) as client, sending(client, data, lambda: client.shutdown(socket.SHUT_WR)):
        assert_same(receive_all(client), data)


def test_half_close_after_fallback(kernel_served: support.Service) -> None:
    """The end comes while the controller still has data to send."""
    data = payload(3 << 20)
    with kernel_served.client() as client, sending(client, data, lambda: client.shutdown(socket.SHUT_WR)):
        time.sleep(0.5)  # all buffers fill
        assert_same(receive_all(client), data)
    assert_idle(kernel_served)


def test_write_then_close(served: support.Service) -> None:
    for i in range(200):
        with served.client() as client:
            client.sendall(payload(1 + i * 97 % 5000, i))
    assert_idle(served)


def test_write_much_then_close(served: support.Service) -> None:
    for i in range(20):
        with served.client() as client:
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                for _ in range(64):
                    client.send(payload(20_000, i))
    assert_idle(served)


def test_reset_in_mid_stream(served: support.Service, family: int) -> None:
    before = served.stats()["connections"]
    for i in range(20):
        with served.client(family) as client:
            echo(client, payload(1000, i))
            client.sendall(payload(70_000 + i))
            receive(client, 10_000)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert_idle(served)
    after = served.stats()["connections"]
    assert after["aborted"] - before["aborted"] == 20
    assert after["total"] - before["total"] == 21


def test_reset_with_full_buffers(served: support.Service) -> None:
    for i in range(5):
        with served.client() as client:
            _fill(client, i)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert_idle(served)


# ---- backpressure ----


def _fill(client: socket.socket, seed: int) -> bytes:
    """Send without reading until nothing more goes out for a while; returns what was sent."""
    rng, sent = random.Random(seed), bytearray()
    client.setblocking(False)
    poll = select.poll()
    poll.register(client, select.POLLOUT)
    while poll.poll(500) and len(sent) < 64 << 20:
        chunk = rng.randbytes(rng.randrange(1, 100_000))
        with contextlib.suppress(BlockingIOError):
            sent += chunk[: client.send(chunk)]
    client.settimeout(support.TIMEOUT_S)
    assert len(sent) < 64 << 20, "nothing ever held the sender back"
    return bytes(sent)


def test_never_reads_then_reads_all(served: support.Service, family: int) -> None:
    with served.client(family) as client:
        sent = _fill(client, 1)
        assert len(sent) > 2 * LIMIT
        assert_same(receive(client, len(sent)), sent)
        echo(client, payload(100_000))
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b""


def test_others_are_served_beside_one_that_does_not_read(served: support.Service) -> None:
    with served.client() as stuck:
        sent = _fill(stuck, 2)
        with served.client() as client:
            echo(client, payload(1 << 20))
        assert_same(receive(stuck, len(sent)), sent)


def test_back_to_the_kernel_after_fallback(kernel_served: support.Service, family: int) -> None:
    """Above the limit the controller takes over; once all has been read, the kernel's path has the connection again."""
    with kernel_served.client(family) as client:
        for turn in range(6):
            before = kernel_served.stats()["paths"]
            data = _fill(client, turn)
            assert_same(receive(client, len(data)), data)
            between = kernel_served.stats()["paths"]
            expected = kernel_served.expected
            assert between[expected]["fallbacks"] > before[expected]["fallbacks"]
            assert between["user"]["bytes"] > before["user"]["bytes"]
            total = sum(between[p]["bytes"] - before[p]["bytes"] for p in between)
            assert total == len(data)
            for i in range(50):
                echo(client, payload(64, i))
            after = kernel_served.stats()["paths"]
            assert after[expected]["echoes"] - between[expected]["echoes"] == 50
            assert after[expected]["bytes"] - between[expected]["bytes"] == 50 * 64
            assert after["user"] == between["user"]


def test_back_to_the_kernel_after_sends_cut_short(kernel_served: support.Service, family: int) -> None:
    """Of what does not block the kernel takes back what finds no room, after the verdict has seen it."""
    rng = random.Random(1)
    expected = kernel_served.expected
    for _ in range(5):
        with kernel_served.client(family) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
            client.setblocking(False)
            sent, cut = bytearray(), 0
            for i in range(200):
                chunk = payload(rng.choice((100, 5000, 70_000, 220_000)), i)
                try:
                    size = client.send(chunk)
                except BlockingIOError:
                    size = 0
                    time.sleep(0.001)
                sent += chunk[:size]
                cut += size < len(chunk)
            assert cut
            client.settimeout(support.TIMEOUT_S)
            assert_same(receive(client, len(sent)), bytes(sent))
            echo(client, b"x")  # the last verdict may still hold for this one
            before = kernel_served.path(expected)["echoes"]
            for i in range(10):
                echo(client, payload(64, i))
            assert kernel_served.path(expected)["echoes"] - before == 10


@pytest.mark.parametrize("path", KERNEL_PATHS)
def test_smallest_limit(service: object, path: str, family: int) -> None:
    served = service(path=path, limit=4096)  # type: ignore[operator]
    with served.client(family) as client:
        echo(client, payload(4096))
        stats = served.stats()["paths"]
        assert (stats[path]["bytes"], stats["user"]["bytes"]) == (4096, 0)
        echo(client, payload(4097))
        stats = served.stats()["paths"]
        assert (stats[path]["bytes"], stats["user"]["bytes"], stats[path]["fallbacks"]) == (4096, 4097, 1)
        echo(client, b"x")
        assert served.path(path)["bytes"] == 4097
        echo(client, payload(4 << 20))
        sent = _fill(client, 3)
        assert_same(receive(client, len(sent)), sent)
        echo(client, payload(1000))


# ---- what else programs do with a socket ----


def test_peek(served: support.Service, family: int) -> None:
    data = payload(3000)
    with served.client(family) as client:
        client.sendall(data)
        support.wait_for(lambda: len(client.recv(3000, socket.MSG_PEEK)) == 3000, "the whole echo")
        assert client.recv(3000, socket.MSG_PEEK) == data
        assert client.recv(1000, socket.MSG_PEEK) == data[:1000]
        assert receive(client, 1000) == data[:1000]
        assert client.recv(3000, socket.MSG_PEEK) == data[1000:]
        assert client.recv(3000) == data[1000:]


def test_waitall(served: support.Service) -> None:
    data = payload(100_000)
    with served.client() as client:
        client.setblocking(True)  # with a timeout Python makes it non-blocking, and MSG_WAITALL means nothing
        with sending(client, data):
            assert_same(client.recv(len(data), socket.MSG_WAITALL), data)


def test_poll(served: support.Service, family: int) -> None:
    with served.client(family) as client:
        poll = select.poll()
        poll.register(client, select.POLLIN)
        for i in range(50):
            assert poll.poll(0) == []
            client.sendall(payload(100, i))
            assert poll.poll(30_000) == [(client.fileno(), select.POLLIN)]
            assert receive(client, 100) == payload(100, i)
        client.shutdown(socket.SHUT_WR)
        ((fd, events),) = poll.poll(30_000)
        assert fd == client.fileno() and events & select.POLLIN
        assert client.recv(1) == b""


def test_epoll_edge_triggered(served: support.Service, family: int) -> None:
    with served.client(family) as client, select.epoll() as epoll:
        client.setblocking(False)
        epoll.register(client, select.EPOLLIN | select.EPOLLET | select.EPOLLRDHUP)
        for i in range(50):
            data = payload(10_000, i)
            assert client.send(data) == len(data)
            got = bytearray()
            while len(got) < len(data):
                assert epoll.poll(30), f"no event for {len(data) - len(got)} bytes"
                with contextlib.suppress(BlockingIOError):
                    while chunk := client.recv(4096):
                        got += chunk
            assert_same(bytes(got), data)
        client.shutdown(socket.SHUT_WR)
        seen = 0
        for _ in range(10):
            if seen & select.EPOLLRDHUP:
                break
            seen |= sum(events for _, events in epoll.poll(30))
        assert seen & select.EPOLLRDHUP
        assert client.recv(1) == b""
