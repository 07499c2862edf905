# SPDX-License-Identifier: MIT
"""What a client of any echo service may do, on every path."""

import os
import random
import re
import selectors
import socket
import struct
import subprocess
import threading
import time

import fastecho
import pytest
from modes import Service

STREAM_BYTES = int(os.environ.get("KECHO_VM_STREAM_BYTES", 50_000_000))


def connect(service: Service, **options) -> socket.socket:
    sock = socket.create_connection(service.endpoint, timeout=60, **options)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def read_exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = sock.recv(min(size - len(data), 1 << 20))
        assert piece, f"the stream ended after {len(data)} of {size} bytes"
        data += piece
    return bytes(data)


def read_to_end(sock: socket.socket) -> bytes:
    data = bytearray()
    while piece := sock.recv(1 << 20):
        data += piece
    return bytes(data)


def send_in_background(sock: socket.socket, data: bytes) -> threading.Thread:
    thread = threading.Thread(target=sock.sendall, args=(data,), daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("size", [1, 2, 63, 64, 1447, 4096, 65535, 65536, 1 << 20])
def test_round_trips(service: Service, size: int) -> None:
    with connect(service) as sock:
        for _ in range(3):
            data = random.randbytes(size)
            sender = send_in_background(sock, data)
            assert read_exactly(sock, size) == data
            sender.join()


@pytest.mark.parametrize("size", [0, 1, 1000, 100_000, 1 << 20])
def test_half_close_gets_everything_then_the_end(service: Service, size: int) -> None:
    data = random.randbytes(size)
    with connect(service) as sock:
        sender = send_in_background(sock, data)
        sender.join(0.2)  # big ones only get out while somebody reads
        reader_sees = bytearray()
        if not sender.is_alive():
            sock.shutdown(socket.SHUT_WR)
        else:
            reader_sees += read_exactly(sock, size // 2)
            sender.join()
            sock.shutdown(socket.SHUT_WR)
        assert bytes(reader_sees) + read_to_end(sock) == data
    service.wait_idle()
    assert service.counter("aborted") == 0


def test_data_and_end_before_accept(service: Service) -> None:
    """What a client sends in the moment that it connects, and even its FIN, may be there before accept() is."""
    socks = []
    for number in range(100):
        sock = socket.create_connection(service.endpoint, timeout=60)
        sock.sendall(b"early %d" % number)
        sock.shutdown(socket.SHUT_WR)
        socks.append(sock)
    for number, sock in enumerate(socks):
        assert read_to_end(sock) == b"early %d" % number
        sock.close()
    service.wait_idle()
    assert service.counter("total") == 100


def test_one_byte_writes(service: Service) -> None:
    data = random.randbytes(5000)
    with connect(service) as sock:
        for byte in data:
            sock.send(bytes([byte]))
        assert read_exactly(sock, len(data)) == data


@pytest.mark.parametrize("buffer_size", [None, 4096])
def test_fills_both_buffers_and_then_reads(service: Service, buffer_size: int | None) -> None:
    """Data that nobody reads stays where TCP charges for it; once it is read, every byte comes."""
    sock = socket.socket()
    if buffer_size:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_size)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_size)
    sock.connect(service.endpoint)
    sock.setblocking(False)
    block = random.randbytes(1 << 20)
    sent = 0
    last_progress = time.monotonic()
    while time.monotonic() - last_progress < 0.5:
        try:
            sent += sock.send(block[sent % len(block) :])
            last_progress = time.monotonic()
        except BlockingIOError:
            time.sleep(0.02)
    assert sent < 64 << 20, "a client that never reads is not held back"

    sock.settimeout(60)
    received = 0
    while received < sent:
        piece = sock.recv(1 << 16)
        assert piece
        start = received % len(block)
        wanted = block[start : start + len(piece)]
        wanted += block[: len(piece) - len(wanted)]
        assert piece == wanted
        received += len(piece)
    sock.sendall(b"still there?")
    assert read_exactly(sock, 12) == b"still there?"
    sock.close()


def test_stream(service: Service) -> None:
    service.stream(1, STREAM_BYTES, timeout_s=300 + STREAM_BYTES / 1_000_000)


def test_many_streams(service: Service) -> None:
    clients = [threading.Thread(target=service.stream, args=(32, 300_000)) for _ in range(2)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    service.wait_idle()
    assert (service.counter("total"), service.counter("aborted")) == (64, 0)


def test_300_work_while_300_stay_open(service: Service) -> None:
    """A server that gives each connection a worker runs out of workers here."""
    idle = [connect(service) for _ in range(300)]
    for sock in idle:
        sock.sendall(b"first")
    for sock in idle:
        assert read_exactly(sock, 5) == b"first"
    service.stream(300, 10_000)
    for sock in idle:
        sock.sendall(b"last")
    for sock in idle:
        assert read_exactly(sock, 4) == b"last"
        sock.close()


def test_burst_of_1000(service: Service) -> None:
    """Each connects, sends one message, reads it back and closes; all at once."""
    selector = selectors.DefaultSelector()
    for number in range(1000):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(service.endpoint)
        selector.register(sock, selectors.EVENT_WRITE, b"message %d" % number)
    left = 1000
    while left:
        events = selector.select(timeout=60)
        assert events, f"{left} of 1000 got no answer"
        for key, mask in events:
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            if mask & selectors.EVENT_WRITE:
                sock.send(key.data)
                selector.modify(sock, selectors.EVENT_READ, key.data)
            else:
                assert sock.recv(100) == key.data
                selector.unregister(sock)
                sock.close()
                left -= 1
    service.wait_idle()
    assert (service.counter("total"), service.counter("aborted")) == (1000, 0)


def test_reset_in_mid_stream(service: Service) -> None:
    with connect(service) as neighbour:
        for _ in range(10):
            sock = connect(service)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.sendall(random.randbytes(100_000))
            sock.close()
        fastecho.wait_for(lambda: service.counter("active") == 1, "the reset connections to go")
        assert service.counter("aborted") == 10
        neighbour.sendall(b"unharmed")
        assert read_exactly(neighbour, 8) == b"unharmed"


def test_urgent_byte_is_a_byte(service: Service) -> None:
    with connect(service) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        sock.sendall(b"before ")
        sock.send(b"!", socket.MSG_OOB)
        sock.sendall(b" after")
        assert read_exactly(sock, 14) == b"before ! after"


def test_telnet(service: Service) -> None:
    telnet = subprocess.Popen(
        ["telnet", service.address, str(service.port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert telnet.stdin and telnet.stdout
    telnet.stdin.write("hello from telnet\n")
    telnet.stdin.flush()
    for line in telnet.stdout:
        if re.fullmatch(r"hello from telnet\r?\n", line):
            break
    else:
        pytest.fail("telnet did not show the echo")
    telnet.stdin.close()
    telnet.wait(60)


def test_ipv6(service: Service) -> None:
    with socket.create_connection(("::1", service.port), timeout=60) as sock:
        sock.sendall(b"six")
        assert read_exactly(sock, 3) == b"six"


def test_inspection_by_ss(service: Service) -> None:
    """ss -i takes the lock of each socket: echoes that meet it have to wait, not to be lost."""
    stop = threading.Event()

    def inspect() -> None:
        while not stop.is_set():
            subprocess.run(["ss", "-tine", "sport", "=", str(service.port)], stdout=subprocess.DEVNULL, check=True)

    inspector = threading.Thread(target=inspect)
    inspector.start()
    try:
        service.stream(8, 1_000_000)
    finally:
        stop.set()
        inspector.join()
