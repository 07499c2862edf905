# SPDX-License-Identifier: MIT
"""Path user of the controller where the kernel refuses: no client is lost, and all are counted."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from native_support import ROOT, TIMEOUT_S, wait_for

# An acceptor, which answers each line with its counts.
_ACCEPTOR = """
import asyncio, json, socket, sys
from kecho.backends.acceptor import Acceptor

async def serve():
    listener = socket.create_server(("127.0.0.1", 0))
    acceptor = Acceptor([listener])
    acceptor.start(16)
    print(listener.getsockname()[1], flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(vars(acceptor.connections())), flush=True)
    acceptor.stop()

asyncio.run(serve())
"""


@dataclass
class Served:
    process: subprocess.Popen[str]
    port: int
    no_watch: Path  # while it exists, epoll refuses further descriptors
    no_accept: Path  # while it exists, accept() fails

    def counts(self) -> dict[str, int]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return dict(json.loads(self.process.stdout.readline()))

    def client(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT_S)


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("refusing") / "refusing.so"
    source = ROOT / "tests/unit/backends/refusing.c"
    subprocess.run(["cc", "-D_GNU_SOURCE", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


@pytest.fixture
def served(refusing: Path, tmp_path: Path) -> Iterator[Served]:
    no_watch, no_accept = tmp_path / "no-watch", tmp_path / "no-accept"
    more = {"LD_PRELOAD": refusing, "WATCH_REFUSED_WHILE": no_watch, "ACCEPT_REFUSED_WHILE": no_accept}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **{name: str(path) for name, path in more.items()}}
    with subprocess.Popen(
        [sys.executable, "-c", _ACCEPTOR],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout
            yield Served(process, int(process.stdout.readline()), no_watch, no_accept)
            _, err = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
    assert (process.returncode, err) == (0, ""), err


def echo(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    assert sock.recv(len(data), socket.MSG_WAITALL) == data


def read_to_the_end(sock: socket.socket) -> None:
    while sock.recv(1 << 16):
        pass
    raise AssertionError("the end of the stream, as if all had come back")


def test_a_client_that_cannot_be_watched(served: Served) -> None:
    with served.client() as first:
        echo(first, b"before")
        served.no_watch.touch()
        with pytest.raises(ConnectionResetError), served.client() as refused:
            read_to_the_end(refused)
        served.no_watch.unlink()
        assert served.counts() == {"active": 1, "total": 1, "rejected": 1, "aborted": 0}
        echo(first, b"after")
        with served.client() as second:
            echo(second, b"and another")
            assert served.counts() == {"active": 2, "total": 2, "rejected": 1, "aborted": 0}


def test_a_client_that_cannot_be_watched_any_more(served: Served) -> None:
    """The client reads nothing, so the server would have to watch it for room, which epoll refuses."""
    with socket.socket() as sock, served.client() as other:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(TIMEOUT_S)
        sock.connect(("127.0.0.1", served.port))
        echo(sock, b"before")
        echo(other, b"and another")
        served.no_watch.touch()
        sock.setblocking(False)
        with contextlib.suppress(ConnectionError):
            while served.counts()["active"] == 2:
                with contextlib.suppress(BlockingIOError):
                    sock.send(bytes(1 << 16))
        sock.settimeout(TIMEOUT_S)
        with pytest.raises(ConnectionResetError):
            read_to_the_end(sock)
        served.no_watch.unlink()
        assert served.counts() == {"active": 1, "total": 2, "rejected": 0, "aborted": 1}
        echo(other, b"after")


def test_a_listener_that_cannot_be_watched_for_a_while(served: Served) -> None:
    """The listener pauses without memory, and is watched again once that succeeds, here not at the first attempt."""
    served.no_accept.touch()
    served.no_watch.touch()
    with served.client() as sock:
        time.sleep(0.5)
        served.no_accept.unlink()
        served.no_watch.unlink()
        echo(sock, b"at last")
    wait_for(lambda: served.counts() == {"active": 0, "total": 1, "rejected": 0, "aborted": 0}, "counted")
