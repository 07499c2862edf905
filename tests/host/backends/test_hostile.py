# SPDX-License-Identifier: MIT
"""Load and hostile clients, floods, refusals and kills: none may harm the service or its other clients.

Sizes are small by default. KECHO_TEST_FULL=1 takes those of docs/reliability.md, which takes minutes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import re
import resource
import signal
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import network
import pytest
import support
from pyroute2 import netns
from support import assert_same, echo, few, payload, receive

from kecho.kernel import ingress

Up = Callable[..., support.Service]

FULL = os.environ.get("KECHO_TEST_FULL") == "1"
KERNEL_PATHS = pytest.mark.parametrize("path", support.KERNEL_PATHS)
MODES = pytest.mark.parametrize("mode", support.MODES)
# Of connections: what the mirror, which has no queue, always says.
NO_ROOM = {"overflows": 0, "drops": 0, "syncookies": 0}
GREEDY, GREEDY_S = (200, 10.0) if FULL else (few(50), 2.0)
MOST_BYTES_A_CONNECTION = 16 << 20
# On these paths the client itself does the work of its echo. On the others clients take turns and wait for each other.
MOST_P99_RATIO = {"egress": 5, "ingress": 5, "mirror": 5}  # where the echo is the client's own work
PAIRS = 15 if FULL else 7  # of rounds beside hostile clients and without
CHURN_THREADS, CHURN_ROUNDS = (64, 300) if FULL else (16, few(40))
KILLS = 50 if FULL else few(3)


def measured(text: str) -> None:
    """Prints a figure for docs/reliability.md; `pytest -s` shows it."""
    print(f"\nmeasured: {text}")


def entries(served: support.Service) -> dict[str, int]:
    return {name: support.map_entries(served.pid, name) for name in support.MAPS}


def assert_nothing_left(served: support.Service) -> None:
    """No connection and no map entry is left, and a new client is served."""
    support.wait_for(lambda: served.active() == 0, "the end of all connections", 30)
    if served.mode == "sockmap":
        support.wait_for(lambda: not any(entries(served).values()), "empty maps", 30)
    with served.client() as client:
        echo(client, b"and on")


def descriptors(served: support.Service) -> int:
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in support.session(served.pid))


def status_field(pid: int, name: str) -> int:
    (value,) = re.findall(rf"^{name}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(value)


def threads_and_rss_kb(served: support.Service) -> tuple[int, int]:
    pids = support.session(served.pid)
    return sum(status_field(p, "Threads") for p in pids), sum(status_field(p, "VmRSS") for p in pids)


def kworkers() -> int:
    """How many workers the kernel has."""
    names = (stat.read_text() for stat in Path("/proc").glob("[0-9]*/comm"))
    return sum(name.startswith("kworker") for name in names)


def tcp_bytes() -> int:
    """The memory charged to all TCP sockets of this machine."""
    (pages,) = re.findall(r"^TCP:.* mem (\d+)$", Path("/proc/net/sockstat").read_text(), re.MULTILINE)
    return int(pages) * resource.getpagesize()


class _MachineMemory:
    """The limit of TCP memory of the whole machine, which must be the test's own."""

    def __init__(self) -> None:
        self._sysctl = Path("/proc/sys/net/ipv4/tcp_mem")
        self._before = self._sysctl.read_text()

    def used(self) -> int:
        return tcp_bytes()

    def limit(self, more: int) -> None:
        pages = (self.used() + more) // resource.getpagesize()
        self._sysctl.write_text(f"{pages} {pages} {pages}")

    def unlimit(self) -> None:
        self._sysctl.write_text(self._before)

    def enter(self) -> None:
        """Called in the process to be limited."""

    def close(self) -> None:
        self.unlimit()


def handled(served: support.Service) -> int:
    """Connections accepted or refused."""
    connections = served.stats()["connections"]
    return int(connections["total"] + connections["rejected"])


# ---- clients that do not read ----

# Sends on every connection for some seconds and prints how much. When told to, reads everything and compares.
_GREEDY = """
import select, socket, sys, time
sys.path.insert(0, sys.argv[1])
from support import assert_same, payload
address, port, count, seconds = sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])
source = payload(1048573, 5)
source += source
clients = [socket.create_connection((address, port), 60) for _ in range(count)]
sent = dict.fromkeys(clients, 0)
poll = select.epoll()
for client in clients:
    client.setblocking(False)
    poll.register(client, select.EPOLLOUT)
by_fd = {client.fileno(): client for client in clients}
print("connected", flush=True)
until = time.monotonic() + seconds
while (left := until - time.monotonic()) > 0:
    for fd, _ in poll.poll(left, 64):
        client = by_fd[fd]
        at = sent[client] % 1048573
        try:
            sent[client] += client.send(memoryview(source)[at : at + 50_000])
        except BlockingIOError:
            pass
print(sum(sent.values()), flush=True)
sys.stdin.readline()
got = dict.fromkeys(clients, 0)
for client in clients:
    poll.modify(client, select.EPOLLIN)
while got != sent:
    ready = poll.poll(200)  # longer than TCP waits before it sends again (TCP_RTO_MAX)
    assert ready, f"{sum(sent.values()) - sum(got.values())} bytes do not come"
    for fd, _ in ready:
        client = by_fd[fd]
        at = got[client] % 1048573
        data = client.recv(1 << 18)
        assert data, "the end came early"
        assert_same(data, source[at : at + len(data)])
        got[client] += len(data)
print("all there", flush=True)
"""


@contextlib.contextmanager
def greedy(served: support.Service, count: int, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """Clients in a process of their own, all connected."""
    command = [sys.executable, "-c", _GREEDY, support.HERE, served.address(), served.port, count, seconds]
    with subprocess.Popen(
        list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout and process.stderr
            assert process.stdout.readline() == "connected\n", process.stderr.read()
            yield process
        finally:
            process.kill()


def p99_ns(client: socket.socket, count: int = 300) -> int:
    times = []
    for _ in range(count):
        begin = time.perf_counter_ns()
        client.sendall(b"x" * 64)
        receive(client, 64)
        times.append(time.perf_counter_ns() - begin)
    return sorted(times)[count * 99 // 100]


@pytest.fixture
def enough_tcp_memory() -> Iterator[None]:
    """The machine's limit is not reached: at it connections can stall (docs/known-limits.md).

    It is twice what the clients may take, or it would hide one that takes more.
    """
    memory = _MachineMemory()
    memory.limit(2 * GREEDY * MOST_BYTES_A_CONNECTION)
    yield
    memory.close()


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("enough_tcp_memory")
def test_clients_that_send_and_never_read(service: Up, path: str) -> None:
    """Their memory is bounded, other clients are served, and nothing is lost."""
    served = service(path=path, backlog=4096)
    before, most = tcp_bytes(), 0
    with served.client() as polite, greedy(served, GREEDY, GREEDY_S) as process:
        until = time.monotonic() + GREEDY_S
        while time.monotonic() < until:
            echo(polite, payload(64))
            most = max(most, tcp_bytes() - before)
        assert process.stdin and process.stdout and process.stderr
        sent = int(process.stdout.readline())
        most = max(most, tcp_bytes() - before)
        assert sent > GREEDY << 16, "they were held back at once"
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "all there\n", process.stderr.read()
    measured(
        f"path {path}, {GREEDY} clients that send and do not read, {GREEDY_S:.0f} s: {sent >> 20} MB sent, "
        f"{most / GREEDY / 1e6:.2f} MB of TCP memory a connection"
    )
    assert most / GREEDY <= MOST_BYTES_A_CONNECTION
    assert_nothing_left(served)


# On "go" it sends on every connection without reading. It resets a full connection and makes another, and never stops.
# On "rest" it closes all.
_RELENTLESS = """
import socket, struct, sys, threading
address, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
data = bytes(50_000)
def connect():
    client = socket.create_connection((address, port), 60)
    client.setblocking(False)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return client
going = threading.Event()
def work():
    clients = [connect() for _ in range(count)]
    print("gone", flush=True)
    while going.is_set():
        for i, client in enumerate(clients):
            try:
                client.send(data)
            except BlockingIOError:
                client.close()
                clients[i] = connect()
    for client in clients:
        client.close()
    print("rests", flush=True)
for line in sys.stdin:
    if line == "go\\n":
        going.set()
        threading.Thread(target=work).start()
    else:
        going.clear()
"""


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("enough_tcp_memory")
def test_a_client_beside_relentless_ones(service: Up, path: str) -> None:
    """Compares the medians of a client's p99 in alternating rounds with and without relentless clients.

    On the other paths it competes with them for the processor as the scheduler decides, but gets its answers.
    """
    served = service(path=path, backlog=4096)
    command = [sys.executable, "-c", _RELENTLESS, served.address(), served.port, GREEDY]
    rounds: dict[str, list[int]] = {"rest": [], "go": []}
    with (
        served.client() as polite,
        subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
    ):
        try:
            assert process.stdin and process.stdout
            p99_ns(polite)
            for _ in range(PAIRS):
                for told, answer in (("go", "gone\n"), ("rest", "rests\n")):
                    process.stdin.write(f"{told}\n")
                    process.stdin.flush()
                    assert process.stdout.readline() == answer
                    rounds[told].append(p99_ns(polite))
        finally:
            process.kill()
    quiet, hostile = (statistics.median(rounds[told]) for told in ("rest", "go"))
    measured(
        f"path {path}, beside {GREEDY} relentless clients, medians of {PAIRS} rounds: "
        f"p99 {quiet / 1e3:.1f} µs -> {hostile / 1e3:.1f} µs"
    )
    assert hostile <= MOST_P99_RATIO.get(path, math.inf) * quiet
    assert_nothing_left(served)


# ---- many, slow, silent ----


@pytest.mark.timeout(400)
def test_churn(service: Up, path: str) -> None:
    """Threads that connect, compare a token of their own, and close; some by a reset."""
    served = service(path=path, backlog=4096)
    before = descriptors(served)
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(CHURN_ROUNDS):
                token = f"{number}.{turn}.".encode() + payload(turn % 40, number * 1000 + turn)
                with socket.socket() as sock:
                    # From an address of its own: ports in TIME-WAIT would run out.
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    sock.bind((f"127.2.{number}.{1 + turn % 250}", 0))
                    client = support.connect(served.address(), served.port, sock)
                    client.sendall(token)
                    assert receive(client, len(token)) == token
                    if turn % 10 == 0:
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(CHURN_THREADS)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert not any(thread.is_alive() for thread in threads)
    assert not errors, errors[0]
    total = CHURN_THREADS * CHURN_ROUNDS
    measured(f"path {path}, churn: {total} connections in {time.monotonic() - began:.1f} s")
    support.wait_for(lambda: handled(served) == total, "all are accepted")
    assert served.connections()["rejected"] == 0
    assert_nothing_left(served)
    support.wait_for(lambda: served.active() == 0, "the end of the last one")
    support.wait_for(lambda: descriptors(served) <= before, f"descriptors back from {descriptors(served)} to {before}")


def test_slow_and_silent_clients(service: Up, path: str) -> None:
    """They cost no thread and no unbounded buffer, and do not delay others."""
    served = service(path=path)
    slow_bytes, seconds = 600_000, 10 if FULL else 2
    with contextlib.ExitStack() as stack:
        workers, (threads, rss_kb) = kworkers(), threads_and_rss_kb(served)
        silent = [stack.enter_context(served.client()) for _ in range(200)]
        readers, writers = ([stack.enter_context(served.client()) for _ in range(25)] for _ in range(2))
        data = payload(slow_bytes)
        sent = dict.fromkeys(readers, 0)
        got = dict.fromkeys(readers, b"")
        for second in range(seconds):
            for reader in readers:  # what fits goes out, one byte a second is read
                reader.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while sent[reader] < slow_bytes:
                        sent[reader] += reader.send(data[sent[reader] :])
                reader.settimeout(support.TIMEOUT_S)
                got[reader] += receive(reader, 1)
            for writer in writers:
                writer.sendall(data[second : second + 1])
            with served.client() as client:
                echo(client, payload(10_000, second))
            time.sleep(1)
        support.wait_for(lambda: served.active() == 250, "all of them")
        now_threads, now_rss_kb = threads_and_rss_kb(served)
        measured(f"path {path}, 250 slow or silent clients: {now_rss_kb - rss_kb} kB more resident")
        assert now_threads == threads
        assert kworkers() - workers < 50
        # The server keeps what one recv() took and one send() did not: at most 256 KiB for each slow reader.
        assert now_rss_kb - rss_kb < 25 * 256 + 8192
        for reader in readers:
            assert_same(got[reader] + receive(reader, sent[reader] - seconds), data[: sent[reader]])
        for writer in writers:
            assert receive(writer, seconds) == data[:seconds]
        for client in silent:
            echo(client, b"not so silent")
    assert_nothing_left(served)


# ---- floods, in a namespace of their own ----


@pytest.fixture
def pair() -> Iterator[network.Veth]:
    with network.veth() as found:
        yield found


def listen(served: support.Service) -> dict[str, int]:
    return dict(served.status()["listen"])


def up_in(service: Up, netns: str, **options: object) -> support.Service:
    """A service whose network namespace is that one."""
    return service(run={"preexec_fn": lambda: support.enter_netns(netns)}, **options)


def syn(source: str, sport: int, target: str, port: int) -> bytes:
    """An IPv4 packet that asks for a connection."""
    ends = socket.inet_aton(source) + socket.inet_aton(target)
    tcp = struct.pack("!HHIIBBHHH", sport, port, random.randrange(1 << 32), 0, 5 << 4, 2, 65535, 0, 0)
    pseudo = ends + struct.pack("!HH", socket.IPPROTO_TCP, len(tcp)) + tcp
    total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
    total = (total >> 16) + (total & 0xFFFF)
    check = ~((total >> 16) + total) & 0xFFFF
    tcp = tcp[:16] + struct.pack("!H", check) + tcp[18:]
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, socket.IPPROTO_TCP, 0) + ends + tcp


@MODES
def test_syn_flood(service: Up, pair: network.Veth, mode: str) -> None:
    """SYNs from unused addresses: connected clients go on, new ones are served, and `status` reports the flood."""
    served = up_in(service, pair.namespace, mode=mode, bind=pair.there, backlog=64)
    prefix = pair.here.rpartition(".")[0]
    with (
        support.connect(pair.there, served.port) as old,
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw,
    ):
        echo(old, b"before")
        assert listen(served) == NO_ROOM
        for i in range(20_000 if FULL else few(4000)):
            raw.sendto(syn(f"{prefix}.{3 + i % 250}", 1024 + i // 250, pair.there, served.port), (pair.there, 0))
            if i % 50 == 0:
                echo(old, payload(500, i))
        with support.connect(pair.there, served.port) as new:
            echo(new, payload(100_000))
        echo(old, payload(100_000))
        told = listen(served)
        measured(f"mode {mode}, SYN flood: {told}")
        if mode == "mirror":
            assert told == NO_ROOM
        else:
            assert told["syncookies"] > 0
            assert "syncookies" in support.run_kecho("status").stdout
    support.wait_for(lambda: served.active() == 0, "the end of all connections")


@contextlib.contextmanager
def nobody_accepts(served: support.Service) -> Iterator[None]:
    """Nothing is accepted within the block."""
    with contextlib.ExitStack() as stack:
        if served.mode == "module":
            import fastecho

            stack.enter_context(fastecho.workers_starve())
        else:
            for pid in support.session(served.pid):
                stack.enter_context(support.stopped(pid))
        yield


@MODES
def test_listen_overflow(service: Up, pair: network.Veth, mode: str) -> None:
    """More clients at once than the backlog holds, while nothing accepts: those in the queue go on."""
    served = up_in(service, pair.namespace, mode=mode, bind=pair.there, backlog=8)
    with contextlib.ExitStack() as stack:
        old = stack.enter_context(support.connect(pair.there, served.port))
        echo(old, b"before")
        waiting = []
        with nobody_accepts(served):
            for _ in range(40):
                client = stack.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex((pair.there, served.port))
                waiting.append(client)
            if mode != "user":
                for i in range(50):
                    echo(old, payload(1000, i))
            time.sleep(1.5)  # some try again, and find no room again
        echo(old, b"after")
        for i, client in enumerate(waiting):
            client.settimeout(support.TIMEOUT_S)
            client.connect_ex((pair.there, served.port))  # waits until it is through
            echo(client, payload(100, i))
        told = listen(served)
        measured(f"mode {mode}, listen overflow: {told}")
        if mode == "mirror":
            assert told == NO_ROOM
        else:
            assert told["overflows"] > 0 and told["drops"] >= told["overflows"]
        (entry,) = json.loads(support.run_kecho("status", "--json", served.name).stdout)["services"]
        assert entry["listen"] == told
    support.wait_for(lambda: served.active() == 0, "the end of all connections")


# ---- refusals ----


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError:
        return False
    return True


class _GroupMemory:
    """A group of cgroup v1 whose TCP memory can be limited. (v2 has one limit for all, and ends the process at it.)"""

    def __init__(self) -> None:
        self._base = Path("/sys/fs/cgroup/memory")
        if not (self._base / "memory.kmem.tcp.limit_in_bytes").exists() and not list(
            self._base.glob("*/memory.kmem.tcp.*")
        ):
            pytest.skip("no cgroup v1 with memory.kmem.tcp here")
        self._group = self._base / f"kecho-{os.getpid()}-{random.randrange(1 << 32):x}"
        self._group.mkdir()
        self.limit(64 << 20)  # accounting begins with the first limit

    def used(self) -> int:
        return int((self._group / "memory.kmem.tcp.usage_in_bytes").read_text())

    def limit(self, more: int) -> None:
        (self._group / "memory.kmem.tcp.limit_in_bytes").write_text(str(self.used() + more))

    def unlimit(self) -> None:
        (self._group / "memory.kmem.tcp.limit_in_bytes").write_text("-1")

    def enter(self) -> None:
        (self._group / "cgroup.procs").write_text(str(os.getpid()))

    def close(self) -> None:
        self.unlimit()
        for pid in (self._group / "cgroup.procs").read_text().split():
            (self._base / "cgroup.procs").write_text(pid)
        support.wait_for(lambda: _removed(self._group), f"{self._group} is empty", 20)


@pytest.fixture
def tcp_memory() -> Iterator[_MachineMemory | _GroupMemory]:
    found = _MachineMemory() if support.OWN_MACHINE else _GroupMemory()
    try:
        yield found
    finally:
        found.close()


def test_memory_refused(service: Up, path: str, tcp_memory: _MachineMemory | _GroupMemory) -> None:
    """The sockets of the service may hold almost no memory: it stays up, and every byte arrives."""
    # On path ingress the service's sockets hold nothing before a client is past its limit.
    options = {"limit": 128 << 10} if path == "ingress" else {}
    served = service(path=path, run={"preexec_fn": tcp_memory.enter}, **options)
    data = payload(2 << 20)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(served.client()) for _ in range(8)]
        for client in clients:
            echo(client, b"accepted")
        before = most = tcp_memory.used()
        tcp_memory.limit(128 << 10)
        for client in clients:
            stack.enter_context(support.sending(client, data))
        until = time.monotonic() + 1
        while time.monotonic() < until:
            most = max(most, tcp_memory.used())
        assert served.status()["state"] == "up"
        tcp_memory.unlimit()
        for client in clients:
            assert_same(receive(client, len(data)), data)
        measured(f"path {path}, TCP memory limited to 128 KiB: {(most - before) >> 10} KiB at most")
        if path == "mirror" and not support.OWN_MACHINE:  # whose memory is the clients' too
            assert most == before
        else:
            assert most - before >= 128 << 10, "the limit was not met"
        assert (most - before) / len(clients) <= MOST_BYTES_A_CONNECTION
    assert_nothing_left(served)


@KERNEL_PATHS
def test_full_maps(service: Up, path: str) -> None:
    """Clients without room in the maps take path user; without descriptors they are refused and counted. It passes."""
    room = 1024

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (room, room))

    served = service(path=path, backlog=4096, run={"preexec_fn": lower})
    with contextlib.ExitStack() as stack:
        with nobody_accepts(served):
            clients = [stack.enter_context(served.client()) for _ in range(room + 200)]
            used = ("servers", "remotes") if path == "skb" else ("clients", "locals")
            assert {entries(served)[name] for name in used} == {room}
            gone = clients[:400]
            if path == "skb":  # their sockets wait to be accepted, and keep their entries
                for client in gone:
                    client.close()
        # Paths egress and ingress echo before the other end is accepted, or refused.
        support.wait_for(lambda: handled(served) == len(clients), "an answer to all")
        kept = 0
        for i, client in enumerate(clients[400:]):
            with contextlib.suppress(ConnectionError):
                client.sendall(payload(100, i))
                assert_same(receive(client, 100), payload(100, i))
                kept += 1
        stats = served.stats()
        refused = int(stats["connections"]["rejected"])
        measured(f"path {path}, maps of {room} entries and {room + 200} clients: {refused} refused, {kept} served")
        if path == "skb":
            assert stats["paths"]["user"]["echoes"] > 0, "nobody was without an entry"
        else:  # nobody has gone
            assert refused > 0
            assert kept + refused == len(clients) - 400
    assert_nothing_left(served)
    before = served.path(path)["echoes"]
    with served.client() as client:
        for i in range(10):
            echo(client, payload(64, i))
    assert served.path(path)["echoes"] - before == 10


# ---- clients that vanish ----

_STREAM = """
import os, socket, sys, threading
sys.path.insert(0, sys.argv[1])
import support
if sys.argv[4]:
    support.enter_netns(sys.argv[4])
clients = [socket.create_connection((sys.argv[2], int(sys.argv[3])), 30) for _ in range(4)]
def send(client):
    while True:
        client.sendall(bytes(30_000))
def read(client):
    while client.recv(1 << 16):
        pass
for client in clients:
    client.settimeout(None)
    threading.Thread(target=send, args=(client,), daemon=True).start()
for client in clients[:2]:
    threading.Thread(target=read, args=(client,), daemon=True).start()
print("streaming", flush=True)
threading.Event().wait()
"""


@contextlib.contextmanager
def streaming(address: str, port: int, netns: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process that streams over four connections, and reads from two of them."""
    command = [sys.executable, "-c", _STREAM, str(support.HERE), address, str(port), netns]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout and process.stderr
            assert process.stdout.readline() == "streaming\n", process.stderr.read()
            yield process
        finally:
            process.kill()


def test_client_killed_in_mid_stream(service: Up, path: str) -> None:
    served = service(path=path)
    before = descriptors(served)
    for _ in range(10 if FULL else 2):
        with streaming(served.address(), served.port) as process:
            support.wait_for(lambda: served.active() == 4, "its connections")
            time.sleep(random.uniform(0.05, 0.5))
            process.kill()
        assert_nothing_left(served)
    support.wait_for(lambda: descriptors(served) <= before, "descriptors back")


@pytest.fixture
def impatient(pair: network.Veth) -> network.Veth:
    """A pair whose namespace gives up soon on peers that do not answer."""
    settings = {"tcp_keepalive_time": 1, "tcp_keepalive_intvl": 1, "tcp_keepalive_probes": 2, "tcp_retries2": 2}

    def tune() -> None:
        support.enter_netns(pair.namespace)
        for name, value in settings.items():
            Path(f"/proc/sys/net/ipv4/{name}").write_text(str(value))

    thread = threading.Thread(target=tune)
    thread.start()
    thread.join()
    return pair


@pytest.mark.parametrize("mode", [mode for mode in support.MODES if mode != "mirror"])  # it keeps no time
@pytest.mark.parametrize("how", ["link down", "link deleted"])
def test_interface_gone(service: Up, impatient: network.Veth, mode: str, how: str) -> None:
    """No FIN and no reset come: TCP's timeouts end streams, and keepalive ends idle connections."""
    pair = impatient
    served = up_in(service, pair.namespace, mode=mode, bind=pair.there)
    with support.connect(pair.there, served.port) as idle, streaming(pair.there, served.port):
        echo(idle, b"kecho")
        support.wait_for(lambda: served.active() == 5, "its connections")
        if how == "link down":
            pair.down()
        else:
            pair.close()
        support.wait_for(lambda: served.active() == 0, "the end of all connections")
        if mode == "sockmap":
            support.wait_for(lambda: not any(entries(served).values()), "empty maps")


def test_namespace_deleted(service: Up, path: str, impatient: network.Veth) -> None:
    """A remote client's namespace is removed while it streams, and then the client.

    Its FIN may arrive, with no peer left to acknowledge the rest of the echo: a timeout ends that too.
    """
    pair = impatient
    served = up_in(service, pair.namespace, bind=pair.there, path=None if path == "skb" else path)
    with network.namespace() as clients:
        pair.move_here_to(clients)
        with streaming(pair.there, served.port, clients) as process:
            support.wait_for(lambda: served.active() == 4, "its connections")
            netns.remove(clients)
            time.sleep(0.2)
            process.kill()
        support.wait_for(lambda: served.active() == 0, "the end of all connections")
        if served.mode == "sockmap":
            support.wait_for(lambda: not any(entries(served).values()), "empty maps")


# ---- the controller killed ----


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("mode", [mode for mode in support.MODES if mode != "module"])  # that one stays loaded
def test_killed_under_traffic(service: Up, mode: str) -> None:
    """After kill -9 at any moment nothing of the service goes on, and the next `up` on the same port works at once."""
    name, port, rng = f"pytest-{os.getpid()}-killed-{mode}", support.free_port(), random.Random(1)
    for _ in range(KILLS):
        served = service(mode=mode, name=name, port=port)
        with streaming(served.address(), port):
            time.sleep(rng.uniform(0, 0.5))
            os.kill(served.pid, signal.SIGKILL)
            support.wait_for(lambda served=served: not support.session(served.pid), "the end of its processes")
            with pytest.raises(OSError), socket.create_connection((served.address(), port), 5) as sock:
                raise AssertionError(f"somebody listens: {sock}")
        left = served.belongings.left
        support.wait_for(lambda left=left: left() == [str(support.RUN / name)], "nothing but the folder is left", 20)
    last = service(mode=mode, name=name, port=port)
    with last.client() as client:
        echo(client, payload(100_000))


if support.OWN_MACHINE:

    @pytest.fixture
    def memory_group() -> Iterator[Path]:
        """A group of cgroup v2, whose memory can be limited."""
        root = Path("/sys/fs/cgroup")
        (root / "cgroup.subtree_control").write_text("+memory")
        group = root / f"kecho-{random.randrange(1 << 32):x}"
        group.mkdir()
        yield group
        support.wait_for(lambda: _removed(group), f"{group} is empty", 20)

    def test_group_out_of_memory(service: Up, path: str, memory_group: Path) -> None:
        """cgroup v2 has one limit for memory of every kind, and ends the process at it: as if by kill -9."""

        def enter() -> None:
            (memory_group / "cgroup.procs").write_text(str(os.getpid()))

        name, port = f"pytest-{os.getpid()}-memory", support.free_port()
        served = service(path=path, name=name, port=port, run={"preexec_fn": enter})
        with streaming(served.address(), port):
            support.wait_for(lambda: served.active() == 4, "its connections")
            (memory_group / "memory.max").write_text("0")
            support.wait_for(lambda: not support.session(served.pid), "the end of its processes")
        assert "\noom_kill 0\n" not in (memory_group / "memory.events").read_text()

        def nothing_is_left() -> None:
            left = served.belongings.left
            support.wait_for(lambda: left() == [str(support.RUN / name)], "nothing but the folder is left", 20)

        # The module stays loaded. Filters stay until the next `up`, as what would remove them has ended, too.
        filters = served.mode == "mirror" and not ingress.has_links()
        if served.mode != "module" and not filters:
            nothing_is_left()
        again = service(path=path, name=name, port=port)
        with again.client() as client:
            echo(client, payload(100_000))
        if filters:
            nothing_is_left()
