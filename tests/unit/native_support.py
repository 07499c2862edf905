# SPDX-License-Identifier: MIT
"""What the tests of the native programs share: building them, running a server, reading its counters."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kecho.kernel import libc
from kecho.model.histogram import SLOTS, Histogram

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 30.0
_PIDFD_GETFD = 438  # include/uapi/asm-generic/unistd.h; Python has no name for it
STATS_FIELDS = ("active", "total", "rejected", "aborted", "echoes", "bytes")


@functools.cache
def build(variant: str) -> Path:
    """Build the programs and return the directory they are in.

    Plain, with sanitizers ("asan"), or with those, tiny queues and system calls that refuse ("unwilling").
    """
    directory = {"plain": "build", "asan": "build/asan", "unwilling": "build/unwilling"}[variant]
    command = ["make", "-s", "-f", "kecho/native/native.mk", f"BUILD={directory}"]
    if variant != "plain":
        command.append("SAN=1")
    if variant == "unwilling":
        refusing = ROOT / "tests/unit/native/unwilling-kernel.c"
        command += [
            "CFLAGS=-DSQ_ENTRIES=8 -DCQ_ENTRIES=1024 -DBUFFER_BYTES=1024",
            f"LDFLAGS=-D_GNU_SOURCE -g {refusing} -Wl,--wrap=malloc",
            f"{directory}/user-echo-server",
        ]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    return ROOT / directory


def bpf_twin(source: str, folder: Path) -> Path:
    """Compiles a program that includes headers of bpf/, and returns it. Skips the test where there is no compiler."""
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    program = folder / "twin"
    program.with_suffix(".c").write_text(source)
    command = ["cc", "-O1", "-Wall", "-Werror", f"-I{ROOT / 'bpf'}", "-o", program, program.with_suffix(".c")]
    subprocess.run(command, check=True)
    return program


def program(name: str, variant: str = "asan") -> str:
    return str(build(variant) / name)


def run(name: str, *args: object, variant: str = "asan", **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    command = [program(name, variant), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, **kwargs)


def free_port() -> int:
    """A port that was free on both loopback addresses a moment ago."""
    while True:
        with socket.socket(socket.AF_INET) as v4, socket.socket(socket.AF_INET6) as v6:
            v4.bind(("127.0.0.1", 0))
            port: int = v4.getsockname()[1]
            with contextlib.suppress(OSError):
                v6.bind(("::1", port))
                return port


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Poll until condition() holds; fail after a time that only a broken program takes."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.005)


class NotReady(AssertionError):
    """The server ended before it was ready."""

    def __init__(self, returncode: int, stderr: str) -> None:
        super().__init__(f"ended with {returncode}: {stderr}")
        self.returncode, self.stderr = returncode, stderr


@dataclass
class Server:
    """A running user-echo-server."""

    process: subprocess.Popen[str]
    port: int
    stats_fd: int

    def stats(self) -> dict[str, int]:
        """The counters, added up over threads."""
        data = os.pread(self.stats_fd, 1 << 20, 0)
        magic, version, header_bytes, block_bytes, blocks = struct.unpack_from("=5Q", data)
        assert magic == int.from_bytes(b"KECHOST1", "little")
        assert version == 1
        assert len(data) == header_bytes + blocks * block_bytes
        rows = [struct.unpack_from("=6Q", data, header_bytes + i * block_bytes) for i in range(blocks)]
        return {name: sum(column) % 2**64 for name, column in zip(STATS_FIELDS, zip(*rows, strict=False), strict=True)}

    def latency(self) -> Histogram:
        """What the threads measured, by CPU."""
        data = os.pread(self.stats_fd, 1 << 20, 0)
        header_bytes, block_bytes, blocks, cpus = struct.unpack_from("=4Q", data, 16)
        found = Histogram()
        for block in range(blocks):
            at = header_bytes + (block + 1) * block_bytes - cpus * 8 * SLOTS  # histograms end the block
            counts = {cpu: struct.unpack_from(f"={SLOTS}Q", data, at + cpu * 8 * SLOTS) for cpu in range(cpus)}
            found += Histogram.from_arrays(counts)
        return found

    def wait_stats(self, **expected: int) -> None:
        """Wait until these counters have these values."""

        def reached() -> bool:
            now = self.stats()
            return all(now[name] == value for name, value in expected.items())

        try:
            wait_for(reached, str(expected))
        except AssertionError as error:
            raise AssertionError(f"{error}, but {self.stats()}") from None

    def connect(self, host: str = "127.0.0.1") -> socket.socket:
        sock = socket.create_connection((host, self.port), timeout=TIMEOUT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def slow_reader(self, segment_bytes: int = 0) -> socket.socket:
        """A client with little room for what comes back. Small segments leave the server little room to send, too."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        if segment_bytes:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment_bytes)
        sock.settimeout(TIMEOUT_S)
        sock.connect(("127.0.0.1", self.port))
        return sock

    def end_of(self, client: socket.socket) -> socket.socket:
        """A duplicate of the server's own end of a connection."""
        pidfd = os.pidfd_open(self.process.pid)
        try:
            for name in os.listdir(f"/proc/{self.process.pid}/fd"):
                with contextlib.suppress(OSError), contextlib.ExitStack() as stack:  # a listener has no peer
                    if not os.readlink(f"/proc/{self.process.pid}/fd/{name}").startswith("socket:"):
                        continue
                    fd = libc.call("syscall", _PIDFD_GETFD, pidfd, int(name), 0)
                    end = stack.enter_context(socket.socket(fileno=fd))
                    if end.getpeername() == client.getsockname():
                        stack.pop_all()
                        return end
        finally:
            os.close(pidfd)
        raise AssertionError("it has no such connection")

    def assert_idle(self, seconds: float) -> None:
        """It does not spin while it has nothing to do."""
        before = self._cpu_ticks()
        signal.sigtimedwait([], seconds)
        assert self._cpu_ticks() - before <= 5, "it spins"

    def _cpu_ticks(self) -> int:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    def rss_bytes(self) -> int:
        fields = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


@contextlib.contextmanager
def server(
    *args: object,
    variant: str = "asan",
    prefix: tuple[str, ...] = (),
    env: Mapping[str, str] | None = None,
    fds: Collection[int] = (),
) -> Iterator[Server]:
    """A server that is ready, and has the descriptors `fds`. It must end by SIGTERM with status 0 and a silent stderr.

    Raises NotReady.
    """
    port = free_port()
    stats_fd = os.memfd_create("stats")
    ready, ready_write = os.pipe()
    command = [*prefix, program("user-echo-server", variant), "--port", str(port), "--die-with-parent"]
    command += ["--ready-fd", str(ready_write), "--stats-fd", str(stats_fd), *map(str, args)]
    process = subprocess.Popen(
        command,
        pass_fds=(ready_write, stats_fd, *fds),
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(ready_write)
    try:
        assert select.select([ready], [], [], TIMEOUT_S)[0], "not ready in time"
        line = os.read(ready, 100)
        if line != b"ready\n":
            _, err = process.communicate(timeout=TIMEOUT_S)
            raise NotReady(process.returncode, err)
        assert os.read(ready, 100) == b"", "the ready descriptor is still open"
        yield Server(process, port, stats_fd)
        assert process.poll() is None, "the server died"
    finally:
        process.terminate()
        out, err = process.communicate(timeout=TIMEOUT_S)
        os.close(ready)
        os.close(stats_fd)
    assert (process.returncode, out, err) == (0, "", "")


def exchange(sock: socket.socket, data: bytes, close: bool = False) -> bytes:
    """Send all of data while receiving; with close, half-close and receive to the end, else as many bytes as sent."""

    def send() -> None:
        sock.sendall(data)
        if close:
            sock.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    received = bytearray()
    while close or len(received) < len(data):
        chunk = sock.recv(1 << 18)
        if not chunk:
            break
        received += chunk
    sender.join(TIMEOUT_S)
    return bytes(received)


def fill(sock: socket.socket) -> int:
    """Sends without waiting until there is no room. Returns how many bytes; the socket is non-blocking then."""
    sock.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += sock.send(bytes(65536))
    return sent


class ScriptedServer:
    """A listener whose connections are served, one thread each, by a function of the test."""

    def __init__(self, serve: Callable[[socket.socket], None], backlog: int = 128) -> None:
        self.serve = serve
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=backlog)
        self.port: int = self.listener.getsockname()[1]
        self.socks: list[socket.socket] = []
        self.threads: list[threading.Thread] = []

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.serve(sock)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                self.socks.append(sock)
                self._start(self._serve, sock)

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self.threads.append(thread)
        thread.start()

    def __enter__(self) -> ScriptedServer:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for sock in self.socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(TIMEOUT_S)


def echo(sock: socket.socket) -> None:
    """A correct echo, for ScriptedServer."""
    while data := sock.recv(1 << 16):
        sock.sendall(data)


def bench_json(port: int, *args: object, variant: str = "asan") -> dict[str, Any]:
    """Run bench, which must succeed in silence, and return its result."""
    done = run("bench", "--port", port, "--json", *args, variant=variant)
    assert (done.returncode, done.stderr) == (0, ""), done
    result: dict[str, Any] = json.loads(done.stdout)
    return result
