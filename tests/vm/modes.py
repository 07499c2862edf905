# SPDX-License-Identifier: MIT
"""The ways of echoing, each behind the same interface, so that one test of traffic serves them all."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import fastecho

from kecho.client import Client

BUILD = fastecho.TOP / "build"
KECHO_CTL = fastecho.TOP / ".venv/bin/kecho-ctl"


@dataclass(frozen=True)
class Service:
    """A running echo service. counter(name) is what it counted of its connections since the test began."""

    mode: str
    address: str = "127.0.0.1"
    port: int = fastecho.PORT
    counter: Callable[[str], int] = fastecho.counter

    @property
    def endpoint(self) -> tuple[str, int]:
        return self.address, self.port

    def wait_idle(self) -> None:
        """Waits until the service has no connections."""
        fastecho.wait_for(lambda: self.counter("active") == 0, "connections to end")

    def stream(self, connections: int, size_bytes: int, timeout_s: float = 300, prefix: tuple[str, ...] = ()) -> None:
        """Sends and compares size_bytes on each connection, by tests/vm/stream.c."""
        command = [*prefix, str(BUILD / "stream"), self.address, str(self.port), str(connections), str(size_bytes), "1"]
        subprocess.run(command, check=True, timeout=timeout_s)

    def pingpong(self, size_bytes: int, count: int) -> int:
        """The median round trip of so many messages, in nanoseconds, by tests/vm/pingpong.c."""
        command = [str(BUILD / "pingpong"), *map(str, (*self.endpoint, size_bytes, count))]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def kecho_ctl(*arguments: object, timeout_s: float | None = 300) -> subprocess.CompletedProcess[str]:
    """Runs kecho-ctl to its end. The environment tells it nothing about Python or BCC.

    With root's home, where matplotlib may find the list of fonts that it takes minutes to make in here.
    """
    env = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": "/root"}
    command = [str(KECHO_CTL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL, timeout=timeout_s)


def bpf_objects() -> set[tuple[str, int]]:
    """All BPF programs, maps and links of this kernel."""
    found = set()
    for kind in ("prog", "map", "link"):
        said = subprocess.run(["bpftool", "-j", kind, "show"], check=True, capture_output=True, text=True).stdout
        found |= {(kind, one["id"]) for one in json.loads(said or "[]")}
    return found


@contextmanager
def leaving_no_bpf() -> Iterator[None]:
    """Nothing that BPF got in the block may be there soon after it."""
    before = bpf_objects()
    yield
    fastecho.wait_for(lambda: bpf_objects() <= before, "the kernel to free programs and maps")


class Mode(Protocol):
    """A way of echoing."""

    def kept(self) -> AbstractContextManager[None]:
        """Around all of its tests: what is brought up once for all of them."""

    def serving(self) -> AbstractContextManager[Service]:
        """Around each test."""


class ModuleMode:
    """fastecho.ko, loaded and unloaded by each test."""

    def __init__(self, name: str, *parameters: str) -> None:
        self._name, self._parameters = name, parameters

    def kept(self) -> AbstractContextManager[None]:
        return nullcontext()

    @contextmanager
    def serving(self) -> Iterator[Service]:
        fastecho.load("backlog=1024", *self._parameters)
        yield Service(self._name)
        fastecho.unload()


class SockmapMode:
    """Mode sockmap on one path, brought up by kecho-ctl, which takes long: it compiles."""

    def __init__(self, path: str, port: int) -> None:
        self._path, self._port = path, port

    @contextmanager
    def kept(self) -> Iterator[None]:
        options = ("--path", self._path, "--name", self._path, "--port", self._port, "--backlog", 1024)
        with leaving_no_bpf():
            done = kecho_ctl("up", "--mode", "sockmap", *options)
            assert done.returncode == 0, done.stderr
            yield
            done = kecho_ctl("down", self._path)
            assert done.returncode == 0, done.stderr

    @contextmanager
    def serving(self) -> Iterator[Service]:
        client = Client(self._path)
        before = vars(client.snapshot().connections)
        assert before["active"] == 0
        yield Service(
            self._path,
            port=self._port,
            counter=lambda name: vars(client.snapshot().connections)[name] - before[name],
        )
        fastecho.wait_for(lambda: client.snapshot().connections.active == 0, "connections to end")


MODULE_MODES = {
    "softirq": ModuleMode("softirq"),
    "workqueue": ModuleMode("workqueue", "inline=0"),
    "workqueue-percpu": ModuleMode("workqueue-percpu", "inline=0", "bench=1"),
}
SOCKMAP_MODES = {"msg": SockmapMode("msg", fastecho.PORT + 5), "skb": SockmapMode("skb", fastecho.PORT + 6)}
MODES: dict[str, Mode] = {**MODULE_MODES, **SOCKMAP_MODES}
