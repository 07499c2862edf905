# SPDX-License-Identifier: MIT
"""What one client or very many can use of the machine: memory, map entries, descriptors."""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
import support
from support import assert_same, echo, fill, payload, receive

CONNECTIONS = int(os.environ.get("KECHO_TEST_CONNECTIONS", "3000"))
AT_ONCE = 15_000
FULL = os.environ.get("KECHO_TEST_FULL") == "1"
KERNEL_PATHS = pytest.mark.parametrize("path", support.KERNEL_PATHS)
USED_MAPS = {"egress": {"clients", "locals", "peers"}, "ingress": {"clients", "locals"}, "skb": {"servers", "remotes"}}


def _socket_memory(port: int) -> int:
    """Bytes charged to the sockets at both ends of a port's connections."""
    query = ["ss", "-Htm", f"( sport = :{port} or dport = :{port} )"]
    rows = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60).stdout
    found = re.findall(r"skmem:\(r(\d+),rb\d+,t\d+,tb\d+,f\d+,w(\d+),o(\d+),bl(\d+)", rows)
    assert len(found) >= 2, rows
    return sum(int(part) for row in found for part in row)


@KERNEL_PATHS
def test_a_client_that_does_not_read(service: Callable[..., support.Service], path: str, family: int) -> None:
    """The client sends until it blocks for a while. Then every byte comes back in order.

    On path skb a kworker sends; until it runs no memory is charged and nothing holds the client back, so it gets time.
    """
    served = service(path=path)
    source = random.Random(1).randbytes(1 << 20)
    most = support.most_buffered()
    with served.client(family) as client:
        echo(client, b"warm")
        client.settimeout(0.5)
        sent = blocked = 0
        while blocked < 4 and sent <= most:
            at = sent % len(source)
            try:
                sent += client.send(source[at : at + 50_000])
                blocked = 0
                time.sleep(0.001)
            except TimeoutError:
                blocked += 1
        charged = _socket_memory(served.port)
        print(f"path {path}: {sent >> 10} KB sent, {charged >> 10} KB charged to the sockets")
        assert served.path(path)["fallbacks"] > 0
        client.settimeout(support.TIMEOUT_S)
        got = receive(client, sent)
        assert_same(got, (source * (sent // len(source) + 1))[:sent])
        echo(client, b"and on")
    assert sent <= most, "what was taken and not sent back is held somewhere"
    assert charged <= most


@KERNEL_PATHS
def test_smallest_limit(service: Callable[..., support.Service], path: str, family: int) -> None:
    served = service(path=path, limit=4096)
    with served.client(family) as client:
        support.wait_for(lambda: served.active() == 1, "accept(), before which path egress takes less")
        echo(client, payload(4096))
        stats = served.stats()["paths"]
        assert (stats[path]["bytes"], stats["user"]["bytes"]) == (4096, 0)
        echo(client, payload(4097))
        support.wait_for(lambda: served.path("user")["bytes"] == 4097, "counted by the server")
        stats = served.stats()["paths"]
        assert (stats[path]["bytes"], stats["user"]["bytes"], stats[path]["fallbacks"]) == (4096, 4097, 1)
        echo(client, b"x")
        assert served.path(path)["bytes"] == 4097
        echo(client, payload(4 << 20))
        sent = fill(client, 3)
        assert_same(receive(client, len(sent)), sent)
        echo(client, payload(1000))


def _entries(served: support.Service) -> dict[str, int]:
    return {name: support.map_entries(served.pid, name) for name in support.MAPS}


@KERNEL_PATHS
@pytest.mark.timeout(600)
def test_short_connections_leave_no_entries(service: Callable[..., support.Service], path: str) -> None:
    """KECHO_TEST_CONNECTIONS says how many."""
    served = service(path=path)
    with served.client() as client:  # the maps that are looked at are those in use
        echo(client, b"x")
        used = {name for name, entries in _entries(served).items() if entries}
        assert used == USED_MAPS[path]
    address, port = served.address(), served.port
    for i in range(CONNECTIONS):
        token = i.to_bytes(4, "big")
        with socket.socket() as client:
            client.settimeout(support.TIMEOUT_S)
            # Each from an address and port of its own: ports in TIME-WAIT would run out.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.bind((f"127.1.{i % 200}.1", 0))
            client.connect((address, port))
            client.sendall(token)
            assert receive(client, 4) == token
            if i % 10 == 0:  # some end by a reset
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    support.wait_for(lambda: served.active() == 0, "the end of all connections")
    support.wait_for(lambda: not any(_entries(served).values()), f"empty maps: {_entries(served)}", timeout_s=10)
    assert served.path(path)["echoes"] == CONNECTIONS + 1
    assert served.stats()["connections"]["total"] == CONNECTIONS + 1


_MANY_CLIENTS = """
import resource, socket, sys
sys.path.insert(0, sys.argv[3])
from support import receive
address, port, count, source = sys.argv[1], int(sys.argv[2]), int(sys.argv[4]), sys.argv[5]
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
clients = []
for i in range(count):
    client = socket.socket()
    client.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: by connect(), as others may use it elsewhere
    client.bind((source, 0))
    client.settimeout(30)
    client.connect((address, port))
    clients.append(client)
for turn in range(2):
    tokens = [f"{turn}.{i}".encode() for i in range(count)]
    for client, token in zip(clients, tokens):
        client.sendall(token)
    for client, token in zip(clients, tokens):
        got = receive(client, len(token))
        assert got == token, (got, token)
print("all echoed", flush=True)
sys.stdin.readline()
"""


@KERNEL_PATHS
def test_very_many_connections_at_once(service: Callable[..., support.Service], path: str) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < AT_ONCE + 200:
        pytest.skip(f"the descriptor limit is {hard}")
    served = service(path=path, backlog=4096)
    with very_many_clients(served, AT_ONCE):
        pass
    support.wait_for(lambda: not any(_entries(served).values()), "empty maps", timeout_s=10)


@contextlib.contextmanager
def very_many_clients(served: support.Service, each: int, processes: int = 1, uncounted: int = 0) -> Iterator[None]:
    """Clients that have all had echoes, and are connected meanwhile: `each` in every process, by its own address.

    The service may have missed up to `uncounted` of them in its counts.
    """
    command = [sys.executable, "-c", _MANY_CLIENTS, served.address(), served.port, support.HERE, each]
    with contextlib.ExitStack() as stack:
        clients = []
        for i in range(processes):
            words = list(map(str, [*command, f"127.0.0.{1 + i}"]))
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            clients.append(stack.enter_context(subprocess.Popen(words, text=True, **pipes)))  # type: ignore[call-overload]
            stack.callback(clients[-1].kill)
        for process in clients:
            line = process.stdout.readline()
            assert line == "all echoed\n", process.stderr.read()
        support.wait_for(lambda: served.active() >= each * processes - uncounted, "all connections")
        connections = served.stats()["connections"]
        assert each * processes - uncounted <= connections["active"] == connections["total"] <= each * processes
        assert not connections["rejected"]
        yield
        for process in clients:
            process.communicate("\n", timeout=60)
            assert process.returncode == 0
    support.wait_for(lambda: served.active() == 0, "the end of all connections")


@pytest.mark.timeout(600)
def test_a_mirror_holds_nothing_for_its_connections(service: Callable[..., support.Service]) -> None:
    """No socket, and no memory: the map of connections was there before. KECHO_TEST_FULL=1 has 100,000 of them."""
    each, processes = (12_500, 8) if FULL else (support.few(5000), 3)
    served = service(mode="mirror")
    served.active()  # with what the controller needs to count
    before_kb, start_s = served.rss_kb(), time.monotonic()
    with very_many_clients(served, each, processes, uncounted=each * processes // 1000):  # known-limits.md
        took_s, more_kb = time.monotonic() - start_s, served.rss_kb() - before_kb
        command = ["ss", "-Htan", f"sport = :{served.port}"]
        ours = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
        # Newer programs show the sockets that hold the port, too.
        assert not [line for line in ours if not line.startswith("UNCONN")]
    print(f"\nmeasured: {each * processes} connections in {took_s:.1f} s: {more_kb} kB more resident")
    assert more_kb < 1024 + 16 * each * processes // 1024


@KERNEL_PATHS
def test_out_of_descriptors(service: Callable[..., support.Service], path: str) -> None:
    """Clients over the limit are refused, counted, and harm no others. Once others have gone, new ones are served."""

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))

    served = service(path=path, run={"preexec_fn": lower})
    with contextlib.ExitStack() as stack:
        accepted: list[socket.socket] = []
        refused = 0
        for i in range(300):
            try:
                accepted.append(stack.enter_context(served.client()))
            except ConnectionResetError:  # refused before connect() returned
                refused += 1
            known = served.stats()["connections"] if i % 100 == 99 else None
            if known:
                assert known["active"] <= 200
        support.wait_for(lambda: _handled(served) == 300, "an answer to all")
        connections = served.stats()["connections"]
        assert 100 < connections["active"] < 200
        alive = []
        for i, client in enumerate(accepted):
            try:
                token = f"token {i}".encode()
                client.sendall(token)
                assert receive(client, len(token)) == token
                alive.append(client)
            except ConnectionError:
                refused += 1
        assert (len(alive), refused) == (connections["active"], connections["rejected"])
        for client in alive[:50]:
            client.close()
        support.wait_for(lambda: served.active() == len(alive) - 50, "the end of fifty")
        for _ in range(50):
            echo(stack.enter_context(served.client()), b"a new one")
        for client in alive[50:]:
            echo(client, b"an old one")
        assert served.stats()["connections"]["rejected"] == refused
    support.wait_for(lambda: served.active() == 0, "the end of all connections")
    support.wait_for(lambda: not any(_entries(served).values()), "empty maps", timeout_s=10)


def _handled(served: support.Service) -> int:
    connections = served.stats()["connections"]
    return int(connections["total"] + connections["rejected"])
