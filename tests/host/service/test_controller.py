# SPDX-License-Identifier: MIT
"""The controller: up, down, killed, its folder, its control socket, and exact counts."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import support

from kecho.kernel import features

Kecho = Callable[..., "subprocess.CompletedProcess[str]"]
Up = Callable[..., support.Service]
NOBODY: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []}
MODES = support.MODES_WITHOUT_MODULE
SERVED = pytest.mark.parametrize("mode", ["sockmap", "user"])  # in which user-echo-server accepts
ECHOES = 10_007


def unique() -> str:
    return f"pytest-{os.getpid()}-{random.randrange(1 << 32):08x}"


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def user_server(one: support.Service) -> int:
    """The pid of the user-echo-server that the controller runs."""
    (found,) = (pid for pid in support.session(one.pid) if pid != one.pid and parent(pid) == one.pid)
    return found


def kill_controller(one: support.Service) -> None:
    os.kill(one.pid, signal.SIGKILL)
    support.wait_for(lambda: not support.session(one.pid), "the end of all its processes")


def control(one: support.Service) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(str(support.RUN / one.name / "control.sock"))  # blocking: with a timeout, a full queue is EAGAIN
    sock.settimeout(30)
    return sock


def answer_to(one: support.Service, line: bytes) -> dict[str, Any]:
    """Sends a line and returns the answer. The service must close the connection after it."""
    with control(one) as sock, contextlib.suppress(ConnectionResetError, BrokenPipeError):
        got = bytearray()
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            sock.sendall(line)
        try:
            while chunk := sock.recv(65536):
                got += chunk
        except ConnectionResetError:  # the service closed with part of the line unread
            pass
        return dict(json.loads(got))
    raise AssertionError("no answer")


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def echoes(one: support.Service) -> int:
    """The echoes of a service, over all paths."""
    return sum(stats["echoes"] for stats in one.stats()["paths"].values())


@pytest.fixture(scope="module")
def asked() -> Iterator[support.Service]:
    """A service for all tests that only use its control socket."""
    one = support.up(mode="user")
    try:
        yield one
    finally:
        one.down()


@pytest.fixture(scope="module", params=support.PATHS)
def busy(request: pytest.FixtureRequest) -> Iterator[support.Service]:
    """A service for each path, for tests that echo as well."""
    one = support.up(path=request.param)
    try:
        yield one
    finally:
        one.down()


# ---- up and down ----


@pytest.mark.parametrize("mode", MODES)
def test_up_returns_when_the_service_answers(kecho: Kecho, mode: str) -> None:
    name, port = unique(), support.free_port()
    done = kecho("up", f"--mode={mode}", f"--name={name}", f"--port={port}")
    try:
        for address in ("127.0.0.1", "::1"):
            with support.connect(address, port) as client:
                support.echo(client, b"at once")
        assert done.returncode == 0 and done.stderr == ""
        for part in (name, f"mode {mode}", f"127.0.0.1:{port}", f"[::1]:{port}", "paths: "):
            assert part in done.stdout
        assert done.stdout.count("\n") == 1
        assert {"sockmap": "egress for local clients", "mirror": "tc ingress of lo", "user": "user"}[
            mode
        ] in done.stdout
    finally:
        down = kecho("down", name)
    assert down.stdout == f"{name} is down\n"
    assert not (support.RUN / name).exists()
    with pytest.raises(ConnectionRefusedError):
        support.connect("127.0.0.1", port)


@pytest.mark.parametrize("engine", ["epoll", "io_uring"])
def test_the_engine_of_mode_user(service: Up, kecho: Kecho, engine: str) -> None:
    one = service(mode="user", engine=engine)
    with one.client() as client:
        support.echo(client, b"kecho" * 1000)
    assert f"--engine={engine}".encode() in Path(f"/proc/{user_server(one)}/cmdline").read_bytes().split(b"\0")
    assert one.path("user")["bytes"] == 5000


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_foreground(mode: str, number: int) -> None:
    name, port = unique(), support.free_port()
    command = [support.KECHO_CTL, "up", f"--mode={mode}", f"--name={name}", f"--port={port}", "--foreground"]
    with subprocess.Popen(
        command,
        env=support.clean_env(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            assert f"{name} is up: mode {mode}" in process.stdout.readline()
            one = support.Service(name, port, ["127.0.0.1", "::1"], mode)
            assert one.pid == process.pid
            with one.client() as client:
                support.echo(client, b"kecho")
                assert process.poll() is None
                process.send_signal(number)
                assert process.wait(30) == 0
            assert process.stdout.read() == "" and process.stderr.read() == ""
        finally:
            process.kill()
    one.belongings.assert_gone()


@pytest.mark.parametrize("mode", MODES)
def test_down_with_open_connections_leaves_nothing(service: Up, kecho: Kecho, mode: str) -> None:
    one = service(mode=mode)
    with one.client() as a, one.client(socket.AF_INET6) as b:
        support.echo(a, b"kecho")
        support.echo(b, b"kecho")
        assert kecho("down", one.name).returncode == 0
        one.belongings.assert_gone()


@pytest.mark.parametrize("mode", MODES)
def test_a_taken_name(service: Up, kecho: Kecho, mode: str) -> None:
    one = service(mode="user")
    done = kecho("up", f"--mode={mode}", f"--name={one.name}", f"--port={support.free_port()}")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    for part in (one.name, f"port {one.port}", f"pid {one.pid}"):
        assert part in done.stderr
    with one.client() as client:
        support.echo(client, b"untouched")


@SERVED
def test_a_port_that_another_service_has(service: Up, kecho: Kecho, mode: str) -> None:
    one = service(mode=mode)
    name = unique()
    done = kecho("up", "--mode=sockmap", f"--name={name}", f"--port={one.port}")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert str(one.port) in done.stderr and f"user-echo-serve (pid {user_server(one)})" in done.stderr
    assert not (support.RUN / name).exists()


def test_auto_picks_and_says_why(service: Up, kecho: Kecho) -> None:
    name = unique()
    found = json.loads(kecho("doctor", "--json").stdout)
    done = kecho("up", f"--name={name}", f"--port={support.free_port()}")
    try:
        assert done.returncode == 0, done.stderr
        assert f"mode {found['auto']}" in done.stdout and f"auto chose {found['auto']}" in done.stdout
        missing = [
            feature["detail"]
            for feature in found["modes"]["module"]["features"]
            if feature["required"] and not feature["ok"]
        ]
        if missing:
            assert f"no module: {missing[0]}" in done.stdout
        else:
            assert found["auto"] == "module"
    finally:
        assert kecho("down", name).returncode == 0


# ---- killed ----


@pytest.mark.parametrize("mode", MODES)
def test_killed(service: Up, kecho: Kecho, mode: str) -> None:
    one = service(mode=mode)
    client = one.client()
    support.echo(client, b"kecho")
    kill_controller(one)
    client.close()
    left = one.belongings.left
    folder = [str(support.RUN / one.name)]
    support.wait_for(lambda: left() == folder, "nothing but the folder is left", 10)
    assert one.status()["state"] == "died"
    assert "died" in kecho("status", one.name).stdout
    done = kecho("stats", "--name", one.name)
    assert done.returncode == 1 and "died" in done.stderr
    again = service(mode=mode, name=one.name, port=one.port)
    with again.client() as client:
        support.echo(client, b"again")
    assert again.status()["state"] == "up"


@pytest.mark.parametrize("mode", MODES)
def test_down_clears_away_a_dead_one(service: Up, kecho: Kecho, mode: str) -> None:
    one = service(mode=mode)
    kill_controller(one)
    refused = kecho("down", one.name, **NOBODY)
    assert refused.returncode == 3 and (support.RUN / one.name).exists()
    assert kecho("down", one.name).returncode == 0
    assert not (support.RUN / one.name).exists()
    assert kecho("down", one.name).returncode == 1


def test_a_controller_that_hangs(service: Up, kecho: Kecho) -> None:
    one = service(mode="sockmap")
    with support.stopped(one.pid), ThreadPoolExecutor() as threads:  # each request waits for the controller
        down = threads.submit(kecho, "down", one.name)
        assert one.status()["state"] == "silent"
        done = down.result()
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert "does not answer" in done.stderr and f"kill -9 {one.pid}" in done.stderr
    support.wait_for(lambda: not (support.RUN / one.name).exists(), "it ends, as it was asked to")


def test_a_pid_that_is_somebody_elses_now(service: Up, kecho: Kecho) -> None:
    """Only the lock says whether the controller lives: no message advises to kill a process that has its pid now."""
    one = service(mode="user")
    os.kill(one.pid, signal.SIGKILL)
    folder = support.RUN / one.name
    support.wait_for(lambda: not support.session(one.pid), "all of it is dead")
    (folder / "state.json").write_text(
        (folder / "state.json").read_text().replace(f'"pid": {one.pid}', f'"pid": {os.getpid()}')
    )
    assert one.status()["state"] == "died"
    done = kecho("down", one.name)
    assert (done.returncode, done.stderr) == (0, "")
    assert not folder.exists()


def test_up_that_fails_keeps_the_state_of_a_dead_one(service: Up, kecho: Kecho) -> None:
    """In mode module only that state says who owns the module that is still loaded."""
    one = service(mode="user")
    os.kill(one.pid, signal.SIGKILL)
    support.wait_for(lambda: not support.session(one.pid), "all of it is dead")
    before = (support.RUN / one.name / "state.json").read_text()
    done = kecho("up", "--mode=user", f"--name={one.name}", "--bind=192.0.2.1", f"--port={one.port}")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert (support.RUN / one.name / "state.json").read_text() == before
    assert one.status()["state"] == "died"
    assert kecho("down", one.name).returncode == 0


def test_killed_three_times_in_a_row(service: Up) -> None:
    name, port = unique(), support.free_port()
    dead = []
    for _ in range(3):
        dead.append(service(mode="sockmap", name=name, port=port))
        with dead[-1].client() as client:
            support.echo(client, b"kecho")
        kill_controller(dead[-1])
    dead[-1].down()
    for one in dead:
        one.belongings.assert_gone()


@SERVED
def test_a_server_that_dies_takes_its_controller_along(service: Up, mode: str) -> None:
    one = service(mode=mode)
    os.kill(user_server(one), signal.SIGKILL)
    support.wait_for(lambda: not (support.RUN / one.name).exists(), "the folder is gone")
    one.belongings.assert_gone()


# ---- several ----


@pytest.mark.parametrize("modes", [("sockmap", "user"), ("sockmap", "sockmap")], ids="-".join)
def test_two_services_count_each_their_own(service: Up, kecho: Kecho, modes: tuple[str, str]) -> None:
    services = [service(mode=mode) for mode in modes]
    for i, one in enumerate(services):
        with one.client() as client:
            for _ in range(101 + i):
                support.echo(client, bytes(10 + i))
    for i, one in enumerate(services):
        paths = one.stats()["paths"].values()
        assert sum(path["echoes"] for path in paths) == 101 + i
        assert sum(path["bytes"] for path in paths) == (101 + i) * (10 + i)
    assert kecho("down", services[0].name).returncode == 0
    with services[1].client() as client:
        support.echo(client, b"still here")


# ---- the folder, and who may what ----


@pytest.mark.parametrize("mode", MODES)
def test_modes_of_the_folder(service: Up, mode: str) -> None:
    folder = support.RUN / service(mode=mode).name

    def mode_of(path: Path) -> int:
        assert path.lstat().st_uid == 0
        return path.lstat().st_mode & 0o7777

    assert mode_of(folder.parent) == 0o755 and mode_of(folder) == 0o755
    assert mode_of(folder / "state.json") == 0o644
    assert mode_of(folder / "control.sock") == 0o666
    for entry in folder.iterdir():
        assert entry.name == "control.sock" or not mode_of(entry) & 0o022


@pytest.mark.parametrize("mode", MODES)
def test_an_unprivileged_user_reads_and_changes_nothing(service: Up, kecho: Kecho, tmp_path: Path, mode: str) -> None:
    one = service(mode=mode)
    found = json.loads(kecho("status", "--json", one.name, **NOBODY).stdout)["services"][0]
    assert found["pid"] == one.pid and found["sockets"] == (None if mode == "mirror" else [])
    assert json.loads(kecho("stats", "--json", "--name", one.name, **NOBODY).stdout)["name"] == one.name
    bench = kecho("bench", one.name, "--count=7", "--warmup=0", "--repeat=1", "--json", cwd="/", **NOBODY)
    assert bench.returncode == 0, bench.stderr
    assert json.loads(bench.stdout)["runs"][0]["latency_ns"]["count"] == 7
    before = echoes(one)
    assert before >= 7
    for args in (("down", one.name), ("reset", one.name), ("up", f"--mode={mode}", f"--name={one.name}")):
        done = kecho(*args, **NOBODY)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1), done
        assert done.stderr.startswith("kecho-ctl: ") and "sudo" in done.stderr
    assert echoes(one) == before


# ---- the control socket ----


@pytest.mark.parametrize(
    "line",
    [
        b"hello\n",
        b"\n",
        b"[]\n",
        b'"status"\n',
        b"3\n",
        b"null\n",
        b"{}\n",
        b'{"op"\n',
        b"\xff\xfe\n",
        b"[" * 60000 + b"\n",
        b'{"op": "status", "x": "' + bytes(64 << 10) + b'"}\n',
        b"x" * (1 << 20),
    ],
    ids=["word", "empty", "list", "string", "number", "null", "no-op", "half", "no-utf8", "deep", "long", "endless"],
)
def test_nonsense_is_answered_and_dropped(asked: support.Service, line: bytes) -> None:
    answer = answer_to(asked, line)
    assert list(answer) == ["error"] and isinstance(answer["error"], str)
    assert asked.status()["state"] == "up"


@pytest.mark.parametrize("op", ['"frobnicate"', '"__class__"', "3", "null", '["status"]', "{}"])
def test_an_unknown_op(asked: support.Service, op: str) -> None:
    with control(asked) as sock, sock.makefile("rb") as lines:
        sock.sendall(b'{"op": %s}\n' % op.encode())
        assert "unknown op" in json.loads(lines.readline())["error"]
        sock.sendall(b'{"op": "status"}\n')
        assert json.loads(lines.readline())["name"] == asked.name


def test_down_is_for_root_by_the_peers_credentials(asked: support.Service) -> None:
    code = """if True:
        import socket, sys
        for op in "down", "reset":
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(sys.argv[1])
                sock.sendall(b'{"op": "%s", "uid": 0}\\n' % op.encode())
                print(sock.makefile().readline(), end="")
    """
    done = subprocess.run(
        ["/usr/bin/python3", "-c", code, support.RUN / asked.name / "control.sock"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        **NOBODY,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["error"].split()[0] for answer in answers] == ["down", "reset"]
    with asked.client() as client:
        support.echo(client, b"still up")


@pytest.mark.parametrize("mode", MODES)
def test_clients_that_hang_up_before_their_answer(service: Up, mode: str) -> None:
    """The service survives the SIGPIPE of a write to a closed socket."""
    one = service(mode=mode)
    for _ in range(100):
        with control(one) as sock, contextlib.suppress(BrokenPipeError):
            sock.sendall(b'{"op": "stats"}\n' * 50)
    assert one.status()["state"] == "up"


@contextlib.contextmanager
def crowd(one: support.Service, size: int) -> Iterator[None]:
    """Connects `size` silent clients to the control socket."""
    with contextlib.ExitStack() as stack:
        for _ in range(size):
            stack.enter_context(control(one))
        yield


def test_a_thousand_silent_clients(busy: support.Service) -> None:
    support.wait_for(lambda: busy.active() == 0, "the end of earlier clients")
    before = echoes(busy)
    with busy.client() as client:
        support.wait_for(lambda: busy.active() == 1, "the client is accepted")
        held = descriptors(busy.pid)
        with crowd(busy, 1000):
            for _ in range(100):
                support.echo(client, b"kecho")
            with busy.client() as late:
                support.echo(late, b"kecho")
            assert echoes(busy) == before + 101
            assert descriptors(busy.pid) < held + 200
        support.wait_for(lambda: descriptors(busy.pid) <= held, "their descriptors are closed")


def test_a_client_that_leaves_before_its_answer(busy: support.Service) -> None:
    """A write to a client that has gone does not end the service."""
    for _ in range(50):
        with control(busy) as hasty:
            hasty.sendall(b'{"op": "status"}\n' * 50)
    assert busy.status()["pid"] == busy.pid
    with busy.client() as client:
        support.echo(client, b"kecho")


def test_clients_that_take_their_time_are_dropped(service: Up) -> None:
    """A client that never reads, one that sends nothing and one that does not end its line are dropped.

    The services of all paths are tested at once, because each takes seconds to drop them.
    """
    services = [service(path=path) for path in support.PATHS]
    before = [descriptors(one.pid) for one in services]
    with contextlib.ExitStack() as stack:
        silent, slow, greedy = ([stack.enter_context(control(one)) for one in services] for _ in range(3))
        for one in slow:
            one.sendall(b'{"op"')
        for one in greedy:
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
                for _ in range(10_000):
                    one.send(b'{"op": "stats"}\n')
        for one in services:
            with one.client() as client:
                for _ in range(100):
                    support.echo(client, b"kecho")
            assert echoes(one) == 100
        for sock in [*silent, *slow]:
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(1) == b""  # no end within the socket's timeout of 30 s would raise
        for one, held in zip(services, before, strict=True):
            support.wait_for(lambda one=one, held=held: descriptors(one.pid) <= held, "all are dropped", 30)


# ---- counts ----


def echo_from(one: support.Service, shares: list[int], size: int) -> None:
    """Makes the echoes of each share from a process of its own, on a CPU of its own, over two connections."""
    code = """if True:
        import os, socket, sys
        cpu, port, count, size = map(int, sys.argv[1:])
        os.sched_setaffinity(0, {cpu})
        clients = [socket.create_connection(("127.0.0.1", port), 60) for _ in range(2)]
        data = bytes(range(size))
        for i in range(count):
            client = clients[i % 2]
            client.sendall(data)
            got = b""
            while len(got) < size:
                step = client.recv(size - len(got))
                assert step
                got += step
            assert got == data
    """
    cpus = sorted(os.sched_getaffinity(0))
    processes = [
        subprocess.Popen(["/usr/bin/python3", "-c", code, *map(str, (cpus[i % len(cpus)], one.port, share, size))])
        for i, share in enumerate(shares)
    ]
    try:
        assert [process.wait(60) for process in processes] == [0] * len(shares)
    finally:
        for process in processes:
            process.kill()


def assert_counted(stats: dict[str, Any], path: str, echoes: int, size: int) -> None:
    found = stats["paths"].pop(path)
    assert (found["echoes"], found["bytes"], found["fallbacks"]) == (echoes, echoes * size, 0)
    assert not any(other["echoes"] or other["bytes"] for other in stats["paths"].values())
    latency = found["latency_ns"]
    if stats["mode"] == "user":
        assert latency is None and found["why"]["latency_ns"]
        return
    assert latency["count"] == echoes
    assert sum(cpu["count"] for cpu in latency["per_cpu"]) == echoes
    for cpu in latency["per_cpu"]:
        assert sum(n for _, _, n in cpu["buckets"]) == cpu["count"]
        assert all(low < high and n > 0 for low, high, n in cpu["buckets"])
    assert len(latency["per_cpu"]) == len({cpu["cpu"] for cpu in latency["per_cpu"]})
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p999"] <= latency["max"]


def test_counts_are_exact(service: Up, kecho: Kecho, path: str) -> None:
    one = service(path=path)
    shares = [ECHOES // 3, ECHOES // 3, ECHOES - 2 * (ECHOES // 3)]
    echo_from(one, shares, 61)
    stats = one.stats()
    if path in ("egress", "ingress"):
        assert len(stats["paths"][path]["latency_ns"]["per_cpu"]) == min(2, len(os.sched_getaffinity(0)))
    assert_counted(stats, path, ECHOES, 61)
    assert stats["connections"]["total"] == 6 and stats["connections"]["rejected"] == 0
    assert kecho("reset", one.name).returncode == 0
    assert_counted_nothing(one.stats())
    echo_from(one, [101, 102], 7)
    assert_counted(one.stats(), path, 203, 7)


def test_path_user_of_mode_sockmap_counts_and_measures_every_echo(service: Up) -> None:
    one = service(mode="sockmap", path="user")
    echo_from(one, [ECHOES // 2, ECHOES - ECHOES // 2], 61)
    assert_counted(one.stats(), "user", ECHOES, 61)
    assert one.connections() == {"active": 0, "total": 4, "rejected": 0, "aborted": 0}


def test_every_echo_is_a_sample_when_senders_migrate_and_preempt_each_other(service: Up) -> None:
    """The threads are not pinned and outnumber the CPUs; the number of echoes is not a multiple of theirs."""
    one = service(path="egress")
    command = [support.ROOT / "build/bench", f"--port={one.port}", "--connections=48", "--threads=12", "--count=100003"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=support.TIMEOUT_S)
    assert_counted(one.stats(), "egress", 100_003, 64)


def assert_counted_nothing(stats: dict[str, Any]) -> None:
    assert stats["connections"]["total"] == 0
    for found in stats["paths"].values():
        assert (found["echoes"], found["bytes"]) == (0, 0)
        assert found["latency_ns"] is None or found["latency_ns"]["count"] == 0


# ---- status ----


def test_status_schema(service: Up, kecho: Kecho, path: str) -> None:
    one = service(path=path)
    with one.client() as client:
        support.echo(client, b"kecho")
        found = json.loads(kecho("status", "--json").stdout)
        assert found["schema"] == 1
        (mine,) = [entry for entry in found["services"] if entry["name"] == one.name]
        assert (mine["mode"], mine["port"], mine["pid"], mine["state"]) == (one.mode, one.port, one.pid, "up")
        assert mine["binds"] == ["127.0.0.1", "::1"] and mine["uptime_s"] > 0
        assert mine["connections"] == {"active": 1, "total": 1, "rejected": 0, "aborted": 0}
        host, port = client.getsockname()
        if path == "mirror":
            assert mine["sockets"] is None and mine["why"] == {"sockets": "a mirror has no sockets"}
            return
        assert mine["sockets"] == [
            {
                "local": f"127.0.0.1:{one.port}",
                "remote": f"{host}:{port}",
                "state": "ESTABLISHED",
                "recv_queue": 0,
                "send_queue": 0,
            }
        ]
        text = kecho("status", one.name).stdout
        assert f"{host}:{port}" in text and "ESTABLISHED" in text


@pytest.mark.parametrize("slow", ["skb", "user"])
def test_status_shows_the_queue_of_a_client_that_does_not_read(service: Up, slow: str) -> None:
    one = service(path=slow)
    with one.client() as client:
        data = support.payload(16 << 20)
        with support.sending(client, data):
            support.wait_for(lambda: one.status()["sockets"][0]["send_queue"] > 0, "a queue shows")
            support.assert_same(support.receive(client, len(data)), data)


def test_many_read_while_others_count(service: Up) -> None:
    """Concurrent readers disturb neither each other nor the counts."""
    one = service(path="egress")
    failures: list[str] = []

    def read() -> None:
        for _ in range(5):
            done = support.run_kecho("stats", "--json", "--name", one.name)
            if done.returncode:
                failures.append(done.stderr)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    echo_from(one, [1009], 10)
    for reader in readers:
        reader.join()
    assert not failures
    assert_counted(one.stats(), "egress", 1009, 10)


@pytest.fixture
def sub_cgroup() -> Iterator[Path]:
    """A cgroup of the v2 hierarchy without processes."""
    group = features.cgroup2_mount() / f"kecho-{os.getpid()}-{random.randrange(1 << 32):x}"
    group.mkdir()
    yield group
    group.rmdir()


def test_up_says_where_local_clients_go(service: Up, kecho: Kecho, sub_cgroup: Path) -> None:
    """If programs at the mounted cgroup do not see connections, `--path egress` fails, and path auto uses path user."""
    mount = features.cgroup2_mount()
    alone = ["unshare", "--mount", "sh", "-c", f'mount --bind {sub_cgroup} {mount} && exec "$0" "$@"']
    done = kecho("up", "--mode=sockmap", "--path=egress", f"--name=pytest-{os.getpid()}-x", prefix=alone)
    assert (done.returncode, done.stdout) == (3, "")
    assert "path egress takes no local client: registration does not see" in done.stderr
    assert f"{mount} is the cgroup" in done.stderr and done.stderr.count("\n") == 1
    one = service(mode="sockmap", run={"prefix": alone})
    with one.client() as client:
        support.echo(client, b"kecho")
    assert list(one.stats()["paths"]) == ["user"]
    assert one.connections()["total"] == 1, "the client of `up` itself is not counted"
