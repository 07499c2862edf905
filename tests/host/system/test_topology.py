# SPDX-License-Identifier: MIT
"""The client's namespace behind a veth pair: what it has, what it reaches, and that nothing of it is left."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import support

from kecho.kernel import sysctl
from kecho.model.errors import KechoError, Unavailable, UsageError
from kecho.system import limits, topology

# Makes a namespace, runs a command in it, and ends with the command.
HOLD = """
import os, subprocess
from kecho.system import topology
with topology.veth() as remote:
    print(os.fstat(remote.fds[0]).st_ino, flush=True)
    subprocess.run([*remote.command, "cat"], pass_fds=remote.fds)
"""


def links() -> set[str]:
    return {name for _, name in socket.if_nameindex() if re.fullmatch(r"kecho\d+", name)}


def in_namespace(inode: int) -> list[str]:
    """The processes in a network namespace."""
    found = []
    for path in Path("/proc").glob("[0-9]*/ns/net"):
        with contextlib.suppress(OSError):
            if path.stat().st_ino == inode:
                found.append(path.parts[2])
    return found


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    """The namespace goes with the last descriptor of it and the last process in it, and the pair with the namespace."""
    before, descriptors = links(), len(os.listdir("/proc/self/fd"))
    yield
    support.wait_for(lambda: not links() - before, f"the end of {links() - before}")
    assert len(os.listdir("/proc/self/fd")) == descriptors


def run_there(remote: topology.ClientNetns, *command: str) -> str:
    done = subprocess.run(
        [*remote.command, *command], pass_fds=remote.fds, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done
    return done.stdout


@contextlib.contextmanager
def serving(family: socket.AddressFamily, address: str) -> Iterator[int]:
    """The port of a listener that accepts nothing."""
    with socket.socket(family) as listener:
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address, 0))
        listener.listen()
        yield listener.getsockname()[1]


CONNECT = "import socket, sys; print(socket.create_connection((sys.argv[1], int(sys.argv[2])), 30).getsockname()[0])"


@pytest.mark.parametrize(
    ("family", "wildcard", "loopback"), [(socket.AF_INET, "0.0.0.0", "127.0.0.1"), (socket.AF_INET6, "::", "::1")]
)
def test_a_remote_client_reaches_a_server_here(family: socket.AddressFamily, wildcard: str, loopback: str) -> None:
    with topology.veth() as remote, serving(family, wildcard) as port:
        host = remote.reach(loopback, port)
        seen = run_there(remote, sys.executable, "-c", CONNECT, host, str(port)).strip()
        network = topology.NETWORK_4 if family == socket.AF_INET else topology.NETWORK_6
        assert ipaddress.ip_address(host) in network
        assert ipaddress.ip_address(seen) == ipaddress.ip_address(host) + 1


def test_every_other_address_of_this_machine() -> None:
    """Not only the address of the pair is reached, as across a network."""
    with topology.veth() as remote, topology.veth() as other, serving(socket.AF_INET, other.addresses[0]) as port:
        assert remote.reach(other.addresses[0], port) == other.addresses[0]
        run_there(remote, sys.executable, "-c", CONNECT, other.addresses[0], str(port))


@pytest.mark.parametrize(
    ("family", "address", "wildcard"), [(socket.AF_INET, "127.0.0.1", "0.0.0.0"), (socket.AF_INET6, "::1", "::")]
)
def test_a_server_for_local_clients_alone(family: socket.AddressFamily, address: str, wildcard: str) -> None:
    with topology.veth() as remote, serving(family, address) as port:
        with pytest.raises(KechoError, match=rf"for local clients alone.*--bind {wildcard}") as caught:
            remote.reach(address, port)
        assert "\n" not in str(caught.value) and caught.value.exit_code == 1


def test_an_ipv6_wildcard_takes_no_ipv4_clients() -> None:
    with (
        topology.veth() as remote,
        serving(socket.AF_INET6, "::") as port,
        pytest.raises(KechoError, match=r"--bind 0\.0\.0\.0"),
    ):
        remote.reach("127.0.0.1", port)


def test_another_machine() -> None:
    with topology.veth() as remote, pytest.raises(UsageError, match=r"192\.0\.2\.77 is not this machine"):
        remote.reach("192.0.2.77", 7)


def test_two_at_once() -> None:
    with topology.veth() as one, topology.veth() as other, serving(socket.AF_INET, "0.0.0.0") as port:
        hosts = [remote.reach("127.0.0.1", port) for remote in (one, other)]
        assert len(set(hosts)) == 2
        for remote, host in zip((one, other), hosts, strict=True):
            run_there(remote, sys.executable, "-c", CONNECT, host, str(port))


def test_its_ports_are_its_own() -> None:
    """All ports are the client's, and this machine's settings do not change."""
    before = sysctl.read(limits.PORT_RANGE), sysctl.read(limits.TW_REUSE)
    with topology.veth() as remote:
        there = run_there(remote, "sysctl", "-n", limits.PORT_RANGE, limits.TW_REUSE).split()
        assert there == [str(limits.FIRST_PORT), str(limits.LAST_PORT), "1"]
        assert (sysctl.read(limits.PORT_RANGE), sysctl.read(limits.TW_REUSE)) == before


def test_it_has_no_name() -> None:
    before = set(os.listdir("/run/netns")) if Path("/run/netns").exists() else set()
    with topology.veth():
        assert not Path("/run/netns").exists() or set(os.listdir("/run/netns")) <= before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=str)
def test_killed(number: int) -> None:
    """A command in the namespace ends at the end of its input; then namespace and pair are gone too."""
    before = links()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        cwd=support.ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    inode = int(process.stdout.readline())
    support.wait_for(lambda: in_namespace(inode), "a process in the namespace")
    assert len(links() - before) == 1
    process.send_signal(number)
    process.wait(support.TIMEOUT_S)
    process.communicate()
    support.wait_for(lambda: not in_namespace(inode), "the end of what ran there")


def test_no_address_is_free(namespace: str) -> None:
    """In a namespace that routes all addresses elsewhere, nothing of the pair is left."""
    script = "from kecho.system import topology\nwith topology.veth(): pass"
    inside = ("nsenter", f"--net=/run/netns/{namespace}")
    subprocess.run([*inside, "ip", "route", "add", "blackhole", str(topology.NETWORK_4)], check=True)
    done = subprocess.run(
        [*inside, sys.executable, "-c", script], cwd=support.ROOT, capture_output=True, text=True, check=False
    )
    assert re.search(r"KechoError: all of 198\.18\.0\.0/15, .* is in use here\n$", done.stderr)
    left = subprocess.run([*inside, "ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    assert "kecho" not in left


def test_delay() -> None:
    """Each direction is delayed if the kernel has netem; otherwise one line says what is missing."""
    try:
        with topology.veth(delay_ms=20) as remote, serving(socket.AF_INET, "0.0.0.0") as port:
            timed = "import time; t = time.monotonic(); " + CONNECT + "; print(time.monotonic() - t)"
            said = run_there(remote, sys.executable, "-c", timed, remote.reach("127.0.0.1", port), str(port))
            assert float(said.split()[-1]) >= 0.040, "the handshake is one round trip"
    except Unavailable as e:
        assert re.fullmatch(r"this machine cannot delay packets \(netem\): [^:]+: modprobe sch_netem, or .*", str(e))


def test_without_root() -> None:
    script = "from kecho.system import topology\nwith topology.veth(): pass"
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-c", script],
        cwd=support.ROOT,
        capture_output=True,
        text=True,
        timeout=support.TIMEOUT_S,
        check=False,
    )
    assert "Unavailable: a network namespace is root's to make: run it as root, with sudo" in done.stderr


# ---- bench ----

BENCH = ("bench", "--topology=veth", "--repeat=1")


@pytest.mark.parametrize(
    ("variant", "path"), [("sockmap", "skb"), ("sockmap:skb", "skb"), ("user", "user")], ids=lambda x: str(x)
)
def test_bench_compare(variant: str, path: str) -> None:
    """The remote path, measured on one machine; every byte counted inside as well as outside."""
    done = support.run_kecho(*BENCH, f"--compare={variant}", "--count=1009", "--warmup=0", "--json")
    assert done.returncode == 0, done.stderr
    (run,) = json.loads(done.stdout)["runs"]
    assert run["latency_ns"]["count"] == 1009
    assert (run["path"], run["kernel"][path]["bytes"]) == (path, 1009 * 64)
    assert (run["options"]["topology"], run["options"]["delay_ms"]) == ("veth", 0)
    assert ipaddress.ip_address(run["endpoint"].rpartition(":")[0]) in topology.NETWORK_4


@pytest.mark.parametrize("wildcard", ["0.0.0.0", "::"])
def test_bench_a_service_that_is_up(service: Callable[..., support.Service], wildcard: str) -> None:
    one = service(bind=wildcard)
    done = support.run_kecho(*BENCH, one.name, "--count=101", "--json")
    assert done.returncode == 0, done.stderr
    (run,) = json.loads(done.stdout)["runs"]
    assert (run["path"], run["latency_ns"]["count"]) == ("skb", 101)


def test_bench_of_a_service_for_local_clients(service: Callable[..., support.Service]) -> None:
    one = service(mode="user")
    done = support.run_kecho(*BENCH, one.name, "--count=101")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"kecho-ctl: 127.0.0.1:{one.port} is for local clients alone, and behind veth they are remote: "
        "let it listen on all addresses (up --bind 0.0.0.0)\n"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=str)
def test_bench_ended(number: int) -> None:
    before = links()
    process = subprocess.Popen(
        [support.KECHO_CTL, *BENCH, "--compare=user", "--duration=100"],
        env=support.clean_env(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        support.wait_for(lambda: there(process.pid, "bench"), "the load generator")
        (inode,) = there(process.pid, "bench")
        assert len(links() - before) == 1
        process.send_signal(number)
        _, err = process.communicate(timeout=support.TIMEOUT_S)
        assert process.returncode == (130 if number == signal.SIGINT else -number), err
        assert "Traceback" not in err
    finally:
        process.kill()
    support.wait_for(lambda: not in_namespace(inode), "the end of what ran there")


def there(pid: int, name: str) -> set[int]:
    """The other network namespaces that processes of that name are in, which a process has started."""
    found = set()
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{child}/comm").read_text().strip() == name:
                found.add(Path(f"/proc/{child}/ns/net").stat().st_ino)
    return found - {Path("/proc/self/ns/net").stat().st_ino}


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--delay=1"], "--delay is for --topology veth"),
        (["--topology=veth", "--delay=0"], "--delay"),
        (["--topology=veth", "--delay=x"], "--delay"),
        (["--topology=veth", "--delay=10001"], "--delay"),
        (["--topology=tunnel"], "--topology"),
    ],
)
def test_bench_refuses(args: list[str], says: str) -> None:
    done = support.run_kecho("bench", "--compare=user", *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"kecho-ctl: [^\n]*{says}[^\n]*\n", done.stderr)


def test_bench_with_delay() -> None:
    """If the kernel has netem, no reply comes before twice the delay."""
    done = support.run_kecho(*BENCH, "--compare=user", "--delay=10", "--count=5", "--warmup=0", "--json")
    if done.returncode == 3:
        assert re.fullmatch(r"kecho-ctl: this machine cannot delay packets \(netem\): [^\n]*\n", done.stderr)
    else:
        (run,) = json.loads(done.stdout)["runs"]
        assert run["latency_ns"]["min"] >= 20e6
        assert run["options"]["delay_ms"] == 10
