# SPDX-License-Identifier: MIT
"""Every byte comes back once and in order, whatever the client does, on every path.

KECHO_TEST_PATHS names the paths. By default they are those that this machine can run without the module.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import select
import selectors
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import support
from support import assert_same, echo, few, fill, payload, receive, receive_all, sending

STREAM_MB = int(os.environ.get("KECHO_TEST_STREAM_MB", "64"))
STREAM_BYTES = STREAM_MB << 20
LIMIT = 128 << 10
SIZES = [1, 2, 63, 64, 65, 1448, 4095, 4096, 4097, 65535, 65536, 65537, LIMIT - 1, LIMIT, LIMIT + 1, 1 << 20]
BIG = few(8 << 20)

controlled = pytest.mark.paths(*support.KERNEL_PATHS, "mirror", "user")
in_kernel = pytest.mark.paths(*support.KERNEL_PATHS)
returns = pytest.mark.paths("egress", "skb")  # who has left path ingress with unread data stays off it


@pytest.fixture(scope="module", params=support.PATHS)
def kept(request: pytest.FixtureRequest) -> Iterator[support.Kept]:
    with contextlib.closing(support.Kept(request.param, backlog=1024)) as found:
        yield found


@pytest.fixture
def path(kept: support.Kept) -> str:
    """The path that `served` is of."""
    return kept.path


@contextlib.contextmanager
def all_stopped(service: support.Service) -> Iterator[None]:
    """No process of the service runs within the block."""
    with contextlib.ExitStack() as stack:
        for pid in support.session(service.pid):
            stack.enter_context(support.stopped(pid))
        yield


def assert_idle(service: support.Server) -> None:
    """No connection is left, and a new one is served."""
    support.wait_for(lambda: service.active() == 0, "the end of all connections", timeout_s=15)
    with service.client() as client:
        echo(client, b"still there")


# ---- contents ----


def test_every_byte_value(served: support.Server, family: int) -> None:
    with served.client(family) as client:
        for value in range(256):
            client.sendall(bytes([value]))
            assert receive(client, 1) == bytes([value])
        echo(client, bytes(range(256)))


@controlled
def test_counts_are_exact(served: support.Service, path: str) -> None:
    before = served.stats()
    with served.client() as client:
        for i in range(257):
            echo(client, payload(61, i))
    support.wait_for(lambda: served.active() == 0, "the end of the connection")
    after = served.stats()
    assert after["connections"]["total"] - before["connections"]["total"] == 1
    for name, found in after["paths"].items():
        echoes = 257 if name == path else 0
        assert found["echoes"] - before["paths"][name]["echoes"] == echoes
        assert found["bytes"] - before["paths"][name]["bytes"] == 61 * echoes
        if path != "user":  # mode user has no latency
            assert found["latency_ns"]["count"] - before["paths"][name]["latency_ns"]["count"] == echoes


@controlled
def test_bytes_of_streams_add_up(served: support.Service) -> None:
    def echoed() -> int:
        return sum(found["bytes"] for found in served.stats()["paths"].values())

    before = echoed()
    served.stream(7, 100_003)
    support.wait_for(lambda: served.active() == 0, "the end of all connections")
    assert echoed() - before == 7 * 100_003


def test_sizes(served: support.Server, family: int) -> None:
    for size in [*SIZES, BIG]:
        with served.client(family) as client:
            for seed in range(2):
                echo(client, payload(size, seed))
            echo(client, b"and what comes next")


def test_random_writes(served: support.Server, family: int) -> None:
    """One thread sends, another reads; KECHO_TEST_STREAM_MB says how much."""
    rng = random.Random(STREAM_MB)
    source = payload(4 << 20)
    total = few(STREAM_MB << 20)
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


def test_stream(served: support.Server) -> None:
    """One thread sends what does not block, and reads; KECHO_TEST_STREAM_MB says how much."""
    served.stream(1, STREAM_MB << 20)


def test_many_streams(served: support.Server) -> None:
    before = served.connections()
    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(served.stream, 32, 300_000) for _ in range(2)]:
            done.result()
    support.wait_for(lambda: served.active() == 0, "the end of all connections")
    after = served.connections()
    assert (after["total"] - before["total"], after["aborted"] - before["aborted"]) == (64, 0)


def test_two_streams_do_not_mix(served: support.Server) -> None:
    first, second = payload(BIG // 2, 1), payload(BIG // 2, 2)
    with served.client() as one, served.client(socket.AF_INET6) as two, sending(one, first), sending(two, second):
        for start in range(0, len(first), 1 << 16):
            assert_same(receive(one, 1 << 16), first[start : start + (1 << 16)])
            assert_same(receive(two, 1 << 16), second[start : start + (1 << 16)])


def test_many_connections(served: support.Server) -> None:
    """300 connections stay while 300 more work: none gets a byte of another, and none needs a worker of its own."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(served.client((socket.AF_INET, socket.AF_INET6)[i % 2])) for i in range(300)]
        support.wait_for(lambda: served.active() == 300, "300 connections at once")
        served.stream(300, 10_000)
        for turn in range(few(10)):
            tokens = [f"{turn}.{i}.".encode() + payload(i % 50, i) for i in range(300)]
            for client, token in zip(clients, tokens, strict=True):
                client.sendall(token)
            for i in random.Random(turn).sample(range(300), 300):
                assert receive(clients[i], len(tokens[i])) == tokens[i]
        for client in clients:  # nothing came twice
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == b""
    assert_idle(served)


def test_many_threads(served: support.Server) -> None:
    """32 clients that do not wait for each other."""
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with served.client((socket.AF_INET, socket.AF_INET6)[number % 2]) as client:
                for turn in range(few(200)):
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


def test_burst(served: support.Server) -> None:
    """1,000 connect at once; each sends one message, reads it back and closes."""
    before = served.connections()
    left = 1000
    with selectors.DefaultSelector() as selector:
        for number in range(left):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex((served.address(), served.port))
            selector.register(client, selectors.EVENT_WRITE, b"message %d" % number)
        while left:
            events = selector.select(support.TIMEOUT_S)
            assert events, f"{left} got no answer"
            for key, mask in events:
                client = key.fileobj
                if mask & selectors.EVENT_WRITE:
                    client.send(key.data)
                    selector.modify(client, selectors.EVENT_READ, key.data)
                else:
                    assert client.recv(100) == key.data
                    selector.unregister(client)
                    client.close()
                    left -= 1
    # On path egress a client may have come and gone before it is accepted.
    support.wait_for(lambda: served.connections()["total"] - before["total"] == 1000, "all are accepted")
    support.wait_for(lambda: served.active() == 0, "the end of all connections")
    after = served.connections()
    assert (after["total"] - before["total"], after["aborted"] - before["aborted"]) == (1000, 0)


def test_pipelining(served: support.Server, family: int) -> None:
    """Many small sends before the first read."""
    messages = [payload(1 + i % 7, i) for i in range(3000)]
    with served.client(family) as client:
        for message in messages:
            client.sendall(message)
        assert_same(receive(client, sum(map(len, messages))), b"".join(messages))
        echo(client, b"next")


def test_scattered_writes(served: support.Server) -> None:
    """One sendmsg of many buffers."""
    parts = [payload(n, n) for n in (1, 5000, 0, 17, 70_000, 3)]
    with served.client() as client:
        whole = b"".join(parts)
        assert client.sendmsg(parts) == len(whole)
        assert_same(receive(client, len(whole)), whole)


def test_sendfile(served: support.Server) -> None:
    data = payload(1 << 20, 9)
    with served.client() as client, tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        with sending(client, b"", lambda: client.sendfile(file)):
            assert_same(receive(client, len(data)), data)


# ---- before accept, and without a process ----


def test_data_and_end_at_once(served: support.Server) -> None:
    """Data that a client sends as it connects, and even its FIN, may come before accept()."""
    with contextlib.ExitStack() as stack:
        clients = []
        for number in range(100):
            client = stack.enter_context(served.client())
            client.sendall(b"early %d" % number)
            client.shutdown(socket.SHUT_WR)
            clients.append(client)
        for number, client in enumerate(clients):
            assert receive_all(client) == b"early %d" % number
    assert_idle(served)


@controlled
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


@controlled
@pytest.mark.parametrize("wait", [False, True], ids=["until it would block", "blocking"])
def test_as_much_as_goes_before_accept(served: support.Service, wait: bool) -> None:
    """The server's socket has no owner yet that the kernel could notify when its memory is used up."""
    with contextlib.ExitStack() as stack:
        with all_stopped(served):
            client = stack.enter_context(served.client())
            data = payload(16 << 20) if wait else fill(client, 4)
            if wait:
                stack.enter_context(sending(client, data))
            time.sleep(0.3)
        assert_same(receive(client, len(data)), data)
        echo(client, b"and after")


@controlled
def test_data_and_end_before_accept(served: support.Service, family: int) -> None:
    data = payload(50_000)
    with contextlib.ExitStack() as stack:
        with all_stopped(served):
            client = stack.enter_context(served.client(family))
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            time.sleep(0.1)
        assert_same(receive_all(client), data)


@controlled
def test_gone_before_accept(served: support.Service) -> None:
    with all_stopped(served):
        for linger in (0, 1):
            with served.client() as client:
                client.sendall(b"too early")
                if linger:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert_idle(served)


@pytest.mark.paths(*support.KERNEL_PATHS, "mirror")
def test_kernel_paths_need_no_process(served: support.Service, family: int) -> None:
    with served.client(family) as client:
        echo(client, b"accepted")
        with all_stopped(served):
            for i in range(100):
                echo(client, payload(100, i))


# ---- the end of a stream ----


def test_half_close(served: support.Server, family: int) -> None:
    """Write, shut down, and only then read to the end."""
    before = served.connections()
    for size in (0, 1, 1000, 100_000, 300_000):
        data = payload(size)
        with served.client(family) as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            assert_same(receive_all(client), data)
    assert_idle(served)
    assert served.connections()["aborted"] == before["aborted"]


def test_half_close_big(served: support.Server, family: int) -> None:
    data = payload(BIG)
    with served.client(family) as client, sending(client, data, lambda: client.shutdown(socket.SHUT_WR)):
        assert_same(receive_all(client), data)


@in_kernel
def test_half_close_after_fallback(served: support.Service) -> None:
    """The FIN comes while the server still has data to send."""
    data = payload(3 << 20)
    with served.client() as client, sending(client, data, lambda: client.shutdown(socket.SHUT_WR)):
        time.sleep(0.5)  # all buffers fill
        assert_same(receive_all(client), data)
    assert_idle(served)


def test_write_then_close(served: support.Server) -> None:
    for i in range(few(200)):
        with served.client() as client:
            client.sendall(payload(1 + i * 97 % 5000, i))
    assert_idle(served)


def test_write_much_then_close(served: support.Server) -> None:
    for i in range(few(20)):
        with served.client() as client:
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                for _ in range(64):
                    client.send(payload(20_000, i))
    assert_idle(served)


def test_reset_in_mid_stream(served: support.Server, family: int) -> None:
    before = served.connections()
    with served.client(family) as neighbour:
        for i in range(20):
            with served.client(family) as client:
                echo(client, payload(1000, i))
                client.sendall(payload(70_000 + i))
                receive(client, 10_000)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        support.wait_for(lambda: served.active() == 1, "the end of those that were reset")
        echo(neighbour, b"unharmed")
    assert_idle(served)
    after = served.connections()
    assert after["aborted"] - before["aborted"] == 20
    assert after["total"] - before["total"] == 22


def test_reset_with_full_buffers(served: support.Server) -> None:
    for i in range(5):
        with served.client() as client:
            fill(client, i)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert_idle(served)


# ---- backpressure ----


# On a slow machine a hundred bytes a send would take minutes.
@pytest.mark.parametrize(("receive_buffer", "most"), [(None, 100_000), (4096, 100_000), (None, 100 * support.SHRINK)])
def test_never_reads_then_reads_all(served: support.Server, family: int, receive_buffer: int | None, most: int) -> None:
    """A small window and small payloads make small skbs, whose overhead takes most of the send buffer."""
    with socket.socket(family) as client:
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        support.connect(served.address(family), served.port, client)
        sent = fill(client, 1, most)
        assert len(sent) > 2 * LIMIT
        assert_same(receive(client, len(sent)), sent)
        echo(client, payload(100_000))
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b""


def test_others_are_served_beside_one_that_does_not_read(served: support.Server) -> None:
    with served.client() as stuck:
        sent = fill(stuck, 2)
        with served.client() as client:
            echo(client, payload(1 << 20))
        assert_same(receive(stuck, len(sent)), sent)


@returns
def test_back_to_the_kernel_after_fallback(served: support.Service, path: str, family: int) -> None:
    """Above the limit the server takes over; once all is read, the connection returns to the kernel's path."""
    with served.client(family) as client:
        for turn in range(few(6)):
            before = served.stats()["paths"]
            data = fill(client, turn)
            assert_same(receive(client, len(data)), data)
            between = served.stats()["paths"]
            assert between[path]["fallbacks"] > before[path]["fallbacks"]
            assert between["user"]["bytes"] > before["user"]["bytes"]
            total = sum(between[p]["bytes"] - before[p]["bytes"] for p in between)
            assert total == len(data)
            for i in range(50):
                echo(client, payload(64, i))
            after = served.stats()["paths"]
            assert after[path]["echoes"] - between[path]["echoes"] == 50
            assert after[path]["bytes"] - between[path]["bytes"] == 50 * 64
            assert after["user"] == between["user"]


@pytest.mark.paths("ingress")
def test_off_ingress_for_good(served: support.Service, family: int) -> None:
    """Many clients do not cope with data in both queues, so a connection has that at most once."""
    with served.client(family) as client:
        echo(client, b"accepted")
        for i in range(10):
            echo(client, payload(64, i))
        data = fill(client, 1)
        assert_same(receive(client, len(data)), data)
        before = served.stats()["paths"]
        for i in range(50):
            echo(client, payload(64, i))
        # The server counts an echo after the client may have it.
        support.wait_for(lambda: served.path("user")["bytes"] - before["user"]["bytes"] == 50 * 64, "50 echoes")
        assert served.path("ingress") == before["ingress"]


@returns
def test_back_to_the_kernel_after_sends_cut_short(served: support.Service, path: str, family: int) -> None:
    """The kernel cuts a non-blocking send that finds no room, after the verdict has seen all of it."""
    rng = random.Random(1)
    for _ in range(few(5)):
        with served.client(family) as client:
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
            before = served.path(path)["echoes"]
            for i in range(10):
                echo(client, payload(64, i))
            assert served.path(path)["echoes"] - before == 10


# ---- what else programs do with a socket ----


def test_peek(served: support.Server, family: int) -> None:
    data = payload(3000)
    with served.client(family) as client:
        client.sendall(data)
        support.wait_for(lambda: len(client.recv(3000, socket.MSG_PEEK)) == 3000, "the whole echo")
        assert client.recv(3000, socket.MSG_PEEK) == data
        assert client.recv(1000, socket.MSG_PEEK) == data[:1000]
        assert receive(client, 1000) == data[:1000]
        assert client.recv(3000, socket.MSG_PEEK) == data[1000:]
        assert client.recv(3000) == data[1000:]


def test_waitall(served: support.Server) -> None:
    data = payload(100_000)
    with served.client() as client:
        client.setblocking(True)  # with a timeout Python makes it non-blocking, and MSG_WAITALL means nothing
        with sending(client, data):
            assert_same(client.recv(len(data), socket.MSG_WAITALL), data)


def test_poll(served: support.Server, family: int) -> None:
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


def test_epoll_edge_triggered(served: support.Server, family: int) -> None:
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


def test_urgent_byte_is_a_byte(served: support.Server) -> None:
    with served.client() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        client.sendall(b"before ")
        client.send(b"!", socket.MSG_OOB)
        client.sendall(b" after")
        assert receive(client, 14) == b"before ! after"


@pytest.mark.paths(*support.KERNEL_PATHS)
def test_urgent_byte_on_path_user(served: support.Server) -> None:
    """Path user has the connection, as its client has not read everything."""
    with served.client() as client:
        sent = support.fill(client, 1)
        half = len(sent) // 2
        assert_same(receive(client, half), sent[:half])
        assert client.send(b"!", socket.MSG_OOB) == 1
        assert_same(receive(client, len(sent) - half + 1), sent[half:] + b"!")
        echo(client, b"and on")


def test_telnet(served: support.Server) -> None:
    telnet = subprocess.Popen(
        ["telnet", served.address(), str(served.port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert telnet.stdin and telnet.stdout
    telnet.stdin.write("hello from telnet\n")
    telnet.stdin.flush()
    assert any(re.fullmatch(r"hello from telnet\r?\n", line) for line in telnet.stdout)
    telnet.communicate(timeout=support.TIMEOUT_S)


def test_inspection_by_ss(served: support.Server) -> None:
    """ss -i takes the lock of each socket: echoes at that moment have to wait, and are not lost."""
    stop = threading.Event()

    def inspect() -> None:
        while not stop.is_set():
            subprocess.run(["ss", "-tine", "sport", "=", str(served.port)], stdout=subprocess.DEVNULL, check=True)

    inspector = threading.Thread(target=inspect)
    inspector.start()
    try:
        served.stream(8, 1_000_000)
    finally:
        stop.set()
        inspector.join()
