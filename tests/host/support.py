# SPDX-License-Identifier: MIT
"""Shared by the tests on the real kernel: running kecho-ctl, services, left-overs, sockets, payloads."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import select
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kecho.backends import base
from kecho.kernel import libc, procfs
from kecho.service.client import Client

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
KECHO_CTL = ROOT / ".venv/bin/kecho-ctl"
RUN = Path("/run/kecho")
TIMEOUT_S = float(os.environ.get("KECHO_TEST_TIMEOUT_S", "60"))
PROGRAMS = {
    *("kecho_egress_echo", "kecho_ingress_echo", "kecho_local_sent"),
    *("kecho_skb_echo", "kecho_skb_sent", "kecho_register"),
    "kretfunc__tcp_bpf_sendmsg",  # instead of kecho_local_sent on kernels without the tracepoint
}
MAPS = ("clients", "locals", "peers", "servers", "remotes", "unconfirmed")
KERNEL_PATHS = ("egress", "ingress", "skb")
MODULE_PATHS = {"softirq": (), "workqueue": ("inline=0",), "workqueue-percpu": ("inline=0", "bench=1")}
_FLAGS = {"inline=0": "--no-inline", "bench=1": "--bench=1"}


def _mode(path: str | None) -> str:
    """The mode of kecho-ctl that a path belongs to. A path without a line below is the only one of its mode."""
    return "sockmap" if path is None or path in KERNEL_PATHS else "module" if path in MODULE_PATHS else path


PATHS = tuple(os.environ.get("KECHO_TEST_PATHS", "egress ingress skb mirror user").split())
MODES = tuple(dict.fromkeys(_mode(path) for path in PATHS))
MODES_WITHOUT_MODULE = tuple(mode for mode in base.MODES if mode != "module")
OWN_MACHINE = os.environ.get("KECHO_TEST_OWN_MACHINE") == "1"  # tests may change settings of the whole machine
SHRINK = int(os.environ.get("KECHO_TEST_SHRINK", "1"))

_FREEING_S = TIMEOUT_S / 4  # the kernel frees programs and maps some time after their last descriptor
_LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


def clean_env() -> dict[str, str]:
    """An environment without settings of Python, BCC or kecho."""
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {"PATH": path, "LC_ALL": "C.UTF-8", "HOME": "/root"}


def few(count: int) -> int:
    """`count`, divided by KECHO_TEST_SHRINK on a slow machine."""
    return max(1, count // SHRINK)


def within(namespaces: str, script: str, *args: object) -> subprocess.CompletedProcess[str]:
    """Runs a script of sh, in which "$0" is kecho-ctl, in namespaces of its own."""
    words = [arg if isinstance(arg, bytes) else str(arg) for arg in args]
    return subprocess.run(
        ["unshare", *namespaces.split(), "sh", "-c", script, KECHO_CTL, *words],
        env=clean_env(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def run_kecho(*args: object, prefix: Sequence[str] = (), **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Runs kecho-ctl to its end, after the command `prefix` if there is one; keywords go to subprocess.run."""
    options: dict[str, Any] = {"env": clean_env(), "stdin": subprocess.DEVNULL, "timeout": TIMEOUT_S, **kwargs}
    command = [*prefix, str(KECHO_CTL), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = TIMEOUT_S) -> None:
    """Polls until condition() holds. Fails after a time that only a broken program takes."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.01)


def free_port() -> int:
    """A free port outside the range of local ports."""
    for _ in range(1000):
        port = random.randrange(20000, 32000)
        with socket.socket(socket.AF_INET) as v4, socket.socket(socket.AF_INET6) as v6:
            v6.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            with contextlib.suppress(OSError):
                v4.bind(("0.0.0.0", port))
                v6.bind(("::", port))
                return port
    raise AssertionError("no free port")


# ---- what a service has in the kernel ----


def bpftool(*args: object) -> Any:
    """The JSON output of bpftool; None if it is empty."""
    done = subprocess.run(["bpftool", "-j", *map(str, args)], capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout) if done.stdout.strip() else None


def fdinfo(pid: int, key: str) -> set[int]:
    """The BPF objects that a process holds, by their number: key is prog_id, map_id or link_id."""
    found = set()
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            found |= {int(number) for number in re.findall(rf"^{key}:\s*(\d+)$", entry.read_text(), re.MULTILINE)}
    return found


def live(kind: str) -> set[int]:
    """The numbers of all programs ("prog"), maps ("map") or links ("link") of the machine."""
    return {found["id"] for found in bpftool(kind, "show") or []}


def cgroup_programs() -> set[int]:
    """The numbers of the programs that are attached to any cgroup."""
    return {int(number) for number in re.findall(r'"id":\s*(\d+)', json.dumps(bpftool("cgroup", "tree")))}


def map_id(pid: int, name: str) -> int:
    """The number of a map of the service whose controller has this pid."""
    ids = fdinfo(pid, "map_id")
    (found,) = [found["id"] for found in bpftool("map", "show") if found["id"] in ids and found.get("name") == name]
    return int(found)


def map_entries(pid: int, name: str) -> int:
    """How many entries a map has. Counts keys: the values of a sockhash cannot always be read."""
    dump = bpftool("map", "dump", "id", map_id(pid, name))
    return len(dump)


def session(pid: int) -> set[int]:
    """The processes of the session that the controller leads."""
    return set(procfs.session(pid))


class Belongings:
    """What a service has in the kernel, recorded while it is up, to check that it is gone later."""

    def __init__(self, name: str, pid: int, sockmap: bool) -> None:
        self.name, self.pid = name, pid
        self.programs, self.maps = fdinfo(pid, "prog_id"), fdinfo(pid, "map_id")
        self.links = fdinfo(pid, "link_id")
        if sockmap:  # the check would be void if there were none
            names = {found["name"] for found in bpftool("prog", "show") if found["id"] in self.programs}
            assert {"kecho_register", "kecho_skb_echo"} <= names <= PROGRAMS, names
            assert self.links and self.programs & cgroup_programs()
            assert {self._map_name(number) for number in self.maps} >= set(MAPS)

    @staticmethod
    def _map_name(number: int) -> str:
        return str(bpftool("map", "show", "id", number).get("name"))

    def left(self) -> list[str]:
        """What is still there of it."""
        return [
            *(f"program {number}" for number in self.programs & live("prog")),
            *(f"map {number}" for number in self.maps & live("map")),
            *(f"link {number}" for number in self.links & live("link")),
            *(f"program {number} at a cgroup" for number in self.programs & cgroup_programs()),
            *(f"process {number}" for number in session(self.pid)),
            *([str(RUN / self.name)] if (RUN / self.name).exists() else []),
        ]

    def assert_gone(self) -> None:
        """Fails if anything is left after the time that the kernel may take."""
        deadline = time.monotonic() + _FREEING_S
        while (left := self.left()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left, f"left by {self.name}: {', '.join(left)}"


# ---- services ----


def waiting(port: int) -> int:
    """The connections that wait to be accepted at a port."""
    rows = subprocess.run(["ss", "-Hltn", f"sport = :{port}"], capture_output=True, text=True, check=True).stdout
    return sum(int(row.split()[1]) for row in rows.splitlines())


class Server:
    """An echo service, started by any means."""

    def __init__(self, port: int, addresses: Sequence[str] = tuple(_LOOPBACK.values())) -> None:
        self.port, self.addresses = port, list(addresses)

    def address(self, family: int = socket.AF_INET) -> str:
        """The address of that family that it is bound to; loopback if that is a wildcard."""
        (found,) = [a for a in self.addresses if (":" in a) == (family == socket.AF_INET6)][:1]
        return _LOOPBACK[socket.AddressFamily(family)] if found in ("0.0.0.0", "::") else found

    def client(self, family: int = socket.AF_INET) -> socket.socket:
        """A connected client."""
        return connect(self.address(family), self.port)

    def stream(self, connections: int, size: int, prefix: Sequence[str] = ()) -> None:
        """Sends and compares `size` bytes on each connection by tests/host/stream.c; waits as long as bytes come."""
        command = [*prefix, ROOT / "build/stream", self.address(), self.port, connections, size, 1]
        subprocess.run([str(word) for word in command], check=True)

    def connections(self) -> dict[str, int]:
        """Its counts of connections: active, total, rejected, aborted."""
        raise NotImplementedError

    def active(self) -> int:
        """The connections it has now."""
        return self.connections()["active"]


class Service(Server):
    """A service that `kecho-ctl up` brought up."""

    def __init__(self, name: str, port: int, addresses: Sequence[str], mode: str) -> None:
        super().__init__(port, addresses)
        self.name, self.mode = name, mode
        self.pid = int(Client(name).status()["pid"])
        self.belongings = Belongings(name, self.pid, mode == "sockmap")

    def status(self) -> dict[str, Any]:
        """Its entry of `status --json`."""
        done = run_kecho("status", "--json", self.name)
        (found,) = json.loads(done.stdout)["services"]
        assert done.returncode == (found["state"] != "up"), done
        return dict(found)

    def stats(self) -> dict[str, Any]:
        """The object of `stats --json`. It does not start kecho-ctl, which would be slow.

        A path in the kernel echoes before the connection is accepted and counted, so this waits for that.
        """
        until_s = time.monotonic() + 1  # a test may have stopped the server
        while self.mode == "sockmap" and waiting(self.port) and time.monotonic() < until_s:
            time.sleep(0.01)
        return Client(self.name).snapshot().to_json()

    def path(self, name: str) -> dict[str, Any]:
        """The counters of one path."""
        return dict(self.stats()["paths"][name])

    def connections(self) -> dict[str, int]:
        return dict(self.stats()["connections"])

    def rss_kb(self) -> int:
        """Resident memory of all its processes."""
        pages = 0
        for pid in session(self.pid):
            with contextlib.suppress(OSError):
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") >> 10

    def down(self) -> None:
        """Takes the service down by kecho-ctl, if it is up, and checks that nothing is left."""
        if (RUN / self.name).exists():
            done = run_kecho("down", self.name)
            assert done.returncode == 0, done.stderr
        self.belongings.assert_gone()


def up(**options: Any) -> Service:
    """Brings a service up, by default in the mode that has `path`; run={…} are keywords of subprocess.run."""
    run = options.pop("run", {})
    path = options.pop("path", None)
    mode = options.pop("mode", _mode(path))
    name = options.pop("name", f"pytest-{os.getpid()}-{random.randrange(1 << 32):08x}")
    port = options.pop("port", None) or free_port()
    binds = options.pop("bind", None) or []
    binds = [binds] if isinstance(binds, str) else list(binds)
    args = ["up", f"--mode={mode}", f"--name={name}", f"--port={port}", *(f"--bind={bind}" for bind in binds)]
    if mode == "sockmap" and path:
        args.append(f"--path={path}")
    args += [_FLAGS[parameter] for parameter in MODULE_PATHS.get(path, ())]
    for key, value in options.items():
        flag = f"--{key.replace('_', '-')}"
        args += [flag] if value is True else [f"{flag}={value}"]
    done = run_kecho(*args, **run)
    assert done.returncode == 0, done.stderr
    return Service(name, port, binds or list(_LOOPBACK.values()), mode)


class Kept:
    """The service of a path that several tests use in turn; `options` are those of `up`."""

    def __init__(self, path: str, **options: Any) -> None:
        self.path = path
        self._options = options
        self._service: Service | None = None

    def idle(self) -> Server:
        """The service without connections. If a failed test has left one, this brings a new service up."""
        if self.path in MODULE_PATHS:  # quickly loaded; tests/vm/guest.py unloads it after each test
            import fastecho

            parameters = (f"{name}={value}" for name, value in self._options.items())
            return fastecho.Server(*parameters, *MODULE_PATHS[self.path])
        if self._service and not self._becomes_idle(self._service):
            self.close()
        if not self._service:
            self._service = up(path=self.path, **self._options)
        return self._service

    @staticmethod
    def _becomes_idle(service: Service) -> bool:
        try:
            wait_for(lambda: service.active() == 0, "", timeout_s=5)
        except AssertionError:
            return False
        return True

    def close(self) -> None:
        service, self._service = self._service, None
        if service:
            service.down()


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process does not run inside the block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_for(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", "the stop")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


# ---- sockets and payloads ----


def connect(address: str, port: int, sock: socket.socket | None = None) -> socket.socket:
    """A client without Nagle's algorithm, with a timeout that only a hanging service exceeds."""
    if sock is None:
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.settimeout(TIMEOUT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect((address, port))
    except BaseException:
        sock.close()
        raise
    return sock


def receive(sock: socket.socket, size: int) -> bytes:
    """Receives exactly `size` bytes; fails at an early end."""
    data = bytearray(size)
    view, got = memoryview(data), 0
    while got < size:
        step = sock.recv_into(view[got:])
        assert step, f"the stream ended after {got} of {size} bytes"
        got += step
    return bytes(data)


def receive_all(sock: socket.socket, most: int = 1 << 30) -> bytes:
    """Receives everything up to the end of the stream."""
    data = bytearray()
    while len(data) <= most:
        chunk = sock.recv(1 << 18)
        if not chunk:
            return bytes(data)
        data += chunk
    raise AssertionError(f"more than {most} bytes came back")


def payload(size: int, seed: int = 0) -> bytes:
    """Bytes that depend on their position in the stream and on the seed."""
    return random.Random(seed).randbytes(size)


def assert_same(got: bytes, sent: bytes) -> None:
    """As assert got == sent, but prints the first difference instead of megabytes."""
    if got == sent:
        return
    at = next((i for i, (a, b) in enumerate(zip(got, sent, strict=False)) if a != b), min(len(got), len(sent)))
    raise AssertionError(
        f"{len(got)} bytes came back for {len(sent)}; the first difference is at {at}: "
        f"{got[at : at + 16].hex(' ')} instead of {sent[at : at + 16].hex(' ')}"
    )


def echo(sock: socket.socket, data: bytes) -> None:
    """Sends and receives at the same time, and compares."""
    with sending(sock, data):
        assert_same(receive(sock, len(data)), data)


def most_buffered() -> int:
    """The largest size of TCP's buffers at both ends of a connection, in bytes."""
    found = (Path("/proc/sys/net/ipv4", name).read_text().split()[2] for name in ("tcp_rmem", "tcp_wmem"))
    return 2 * sum(map(int, found))


def fill(sock: socket.socket, seed: int, most: int = 100_000) -> bytes:
    """Sends up to `most` bytes at a time without reading, until it blocks for a while. Returns what was sent."""
    rng, sent = random.Random(seed), bytearray()
    endless = max(most_buffered(), 64 << 20)
    sock.setblocking(False)
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    while poll.poll(500) and len(sent) < endless:
        chunk = rng.randbytes(rng.randrange(1, most))
        with contextlib.suppress(BlockingIOError):
            sent += chunk[: sock.send(chunk)]
    sock.settimeout(TIMEOUT_S)
    assert len(sent) < endless, "nothing ever held the sender back"
    return bytes(sent)


@contextlib.contextmanager
def sending(sock: socket.socket, data: bytes, then: Callable[[], object] | None = None) -> Iterator[None]:
    """A thread sends data and then calls `then`, while the block runs."""
    errors: list[BaseException] = []

    def send() -> None:
        try:
            sock.sendall(data)
            if then:
                then()
        except BaseException as e:
            errors.append(e)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(TIMEOUT_S)
    assert not thread.is_alive(), "the sender hangs"
    assert not errors, f"the sender: {errors[0]!r}"


_CLONE_NEWNET = 0x40000000
_CLONE_NEWNS = 0x00020000
# Puts a folder that everybody may enter in the place of another one, with the same content.
_OPEN = """
    mount --make-rprivate /
    new=$(mktemp -d)
    mount -t tmpfs -o mode=755 tmpfs "$new"
    for entry in "$1"/* "$1"/.[!.]*; do
        at=$new/${entry##*/}
        if [ -d "$entry" ]; then mkdir "$at"; elif [ -f "$entry" ]; then : >"$at"; else continue; fi
        mount --rbind "$entry" "$at"
    done
    mount --move "$new" "$1"
    rmdir "$new"
"""


def let_everybody_enter(folder: Path) -> None:
    """Gives this process mounts of its own, in which a user without privileges reaches a folder in root's home."""
    closed = [parent for parent in folder.parents if not parent.stat().st_mode & stat.S_IXOTH]
    if closed:
        here = Path.cwd()
        libc.call("unshare", _CLONE_NEWNS)
        for parent in reversed(closed):
            subprocess.run(["sh", "-ec", _OPEN, "sh", parent], check=True)
        os.chdir(here)


def enter_netns(name: str) -> None:
    """Moves this thread into a network namespace; in preexec_fn, the process to be started."""
    fd = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc.call("setns", fd, _CLONE_NEWNET)
    finally:
        os.close(fd)


def socket_in(netns: str, family: int, kind: int = socket.SOCK_STREAM, proto: int = 0) -> socket.socket:
    """A socket in a network namespace, to be used from any namespace."""
    found: list[socket.socket | BaseException] = []

    def make() -> None:
        try:
            enter_netns(netns)
            found.append(socket.socket(family, kind, proto))
        except BaseException as e:
            found.append(e)

    thread = threading.Thread(target=make)  # its namespace ends with it
    thread.start()
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]
