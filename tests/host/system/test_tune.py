# SPDX-License-Identifier: MIT
"""Limits are raised and restored, however the run ends. Each test has a network namespace with its own sysctls.

All sysctls below /proc/sys/net are compared, not only those that are raised.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import support

from kecho.system.limits import PORT_RANGE, SOMAXCONN, SYN_BACKLOG

NETNS = Path("/run/netns")
NOBODY = ("setpriv", "--reuid=65534", "--clear-groups")

# Raises the limits for a number of connections, prints "ready", and ends at the end of stdin.
RUN = """
import os, sys
from kecho.system import tune
from kecho.system.limits import Needs

with tune.raised(Needs.of_run(int(sys.argv[1]), None, paced=False), lambda line: print(line, flush=True)):
    if "fork" in sys.argv and not os.fork():
        os.execvp("sleep", ["sleep", "60"]) if "exec" in sys.argv else os.read(0, 1)
        os._exit(0)
    print("ready", flush=True)
    sys.stdin.readline()
    if "fail" in sys.argv:
        raise OSError("something went wrong")
"""


# Is killed while it brings a service up, before the service has asked to end with it.
KILLED = """
import os, signal, time
from kecho.backends import base as backends
from kecho.model.config import Config
from kecho.service.controller import run_background
from kecho.system import tune
from kecho.system.limits import Needs

def killed(parent=os.getpid()):
    os.kill(parent, signal.SIGKILL)
    while os.getppid() == parent:
        time.sleep(0.01)

os.setsid = killed  # what the service does first
signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as in kecho-ctl
with tune.raised(Needs.of_run(20000, None, paced=False), print):
    run_background(Config(mode="user", name="killed", backlog=128), backends.backend("user")(), dies_with_parent=True)
"""


def within(namespace: str, *command: object) -> list[str]:
    """The command line that runs `command` in that namespace."""
    return ["nsenter", f"--net={NETNS / namespace}", *map(str, command)]


def capture(*command: object) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, in the checkout."""
    return subprocess.run(
        list(map(str, command)),
        cwd=support.ROOT,
        capture_output=True,
        text=True,
        timeout=support.TIMEOUT_S,
        check=False,
    )


def read(namespace: str, name: str) -> str:
    return snapshot(namespace)[path_of(name)]


def path_of(name: str) -> str:
    return f"/proc/sys/{name.replace('.', '/')}"


def snapshot(namespace: str) -> dict[str, str]:
    """All sysctls of the network that can be read there."""
    found: dict[str, str] = {}

    def walk() -> None:
        support.enter_netns(namespace)
        for path in Path("/proc/sys/net").rglob("*"):
            with contextlib.suppress(OSError):
                if path.is_file() and path.name != "nf_conntrack_count":
                    found[str(path)] = " ".join(path.read_text(errors="replace").split())

    thread = threading.Thread(target=walk)
    thread.start()
    thread.join()
    assert len(found) > 100
    return found


def records(namespace: str) -> list[Path]:
    """The records of that namespace."""
    inode = (NETNS / namespace).stat().st_ino
    return list(support.RUN.glob(f"tune-{inode}.*"))


class Run:
    """A process in a namespace that has raised the limits for a number of connections."""

    def __init__(self, namespace: str, connections: int, *how: str) -> None:
        self.process = subprocess.Popen(
            within(namespace, sys.executable, "-c", RUN, connections, *how),
            cwd=support.ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ready(self) -> list[str]:
        """Its output until it was ready."""
        assert self.process.stdout is not None
        said = []
        while (line := self.process.stdout.readline()) not in ("", "ready\n"):
            said.append(line.strip())
        assert line, self.process.communicate()
        return said

    def end(self, number: int | None = None) -> str:
        """Ends it, by a signal if one is given. Returns the rest of its output."""
        if number is not None:
            self.process.send_signal(number)
        out, _ = self.process.communicate(timeout=support.TIMEOUT_S)
        return out


@pytest.fixture
def run(namespace: str) -> Iterator[Callable[..., Run]]:
    """Starts a Run; none is left in the end, nor a record."""
    runs: list[Run] = []

    def start(connections: int = 20_000, *how: str) -> Run:
        runs.append(Run(namespace, connections, *how))
        return runs[-1]

    yield start
    for one in runs:
        one.process.kill()
        one.process.communicate(timeout=support.TIMEOUT_S)
    for record in records(namespace):
        record.unlink()


Start = Callable[..., Run]


def restore(namespace: str | None = None) -> subprocess.CompletedProcess[str]:
    """`tune --restore`, from that namespace or from the test's."""
    command = (support.KECHO_CTL, "tune", "--restore")
    return capture(*(within(namespace, *command) if namespace else command))


# ---- one run ----


@pytest.mark.parametrize("number", [None, signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=str)
@pytest.mark.parametrize("how", ["", "fail"])
def test_every_sysctl_is_as_it_was(run: Start, namespace: str, number: int | None, how: str) -> None:
    before = snapshot(namespace)
    one = run(20_000, how)
    said = one.ready()
    during = snapshot(namespace)
    changed = {path_of(name) for name in (SOMAXCONN, SYN_BACKLOG, PORT_RANGE)}
    assert {name for name in before if during[name] != before[name]} == changed
    assert int(read(namespace, SOMAXCONN)) == 20_000
    assert int(read(namespace, SYN_BACKLOG)) * 3 // 4 >= 20_000
    assert read(namespace, PORT_RANGE) == "1024 65535"
    assert f"{SOMAXCONN}: 4096 → 20000" in said
    assert records(namespace)
    told = one.end(number)
    assert snapshot(namespace) == before
    assert f"{SOMAXCONN}: 20000 → 4096, as it was\n" in told
    assert not records(namespace)
    expected = {None: 1 if how else 0, signal.SIGINT: -signal.SIGINT}
    assert one.process.returncode == expected.get(number, 128 + (number or 0))


def test_nothing_is_raised_that_suffices(run: Start, namespace: str) -> None:
    before = snapshot(namespace)
    one = run(1000)
    assert [line for line in one.ready() if line.startswith((SOMAXCONN, SYN_BACKLOG))] == []
    one.end()
    assert snapshot(namespace) == before


def test_descriptors(namespace: str) -> None:
    """Raises the limit of the process as far as allowed, and restores it."""
    script = """
import resource
from kecho.system import tune
from kecho.system.limits import Needs
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 2000))
with tune.raised(Needs.of_run(1000, 1000), print):
    print(resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 1064)
print(resource.getrlimit(resource.RLIMIT_NOFILE))
with tune.raised(Needs.of_run(5000, 5000), print):
    print(resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 2000)
print(resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    command = within(namespace, sys.executable, "-c", script)
    without = ["setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource", *command]
    done = capture(*without)
    assert done.stdout.splitlines() == [
        "descriptors: 256 → 1064",
        "True",
        "(256, 2000)",
        "descriptors: 256 → 2000",
        "descriptors: 5,064 are needed, a process may have 2,000 at most (ulimit -Hn)",
        "True",
        "(256, 2000)",
    ]


# ---- killed ----


@pytest.mark.parametrize("there", [True, False], ids=["same namespace", "other namespace"])
def test_restore_after_kill(run: Start, namespace: str, there: bool) -> None:
    before = snapshot(namespace)
    one = run()
    one.ready()
    one.end(signal.SIGKILL)
    assert snapshot(namespace) != before
    done = restore(namespace if there else None)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{SOMAXCONN}: 20000 → 4096, as it was\n" in done.stdout
    assert snapshot(namespace) == before
    assert not records(namespace)
    assert SOMAXCONN not in restore(namespace).stdout


def test_the_next_run_restores(run: Start, namespace: str) -> None:
    """The next run starts from the original values, not from those of the killed run."""
    before = snapshot(namespace)
    first = run(30_000)
    first.ready()
    first.end(signal.SIGKILL)
    second = run(20_000)
    said = second.ready()
    assert f"{SOMAXCONN}: 30000 → 4096, as it was" in said
    assert f"{SOMAXCONN}: 4096 → 20000" in said
    second.end()
    assert snapshot(namespace) == before


def test_killed_at_any_moment(run: Start, namespace: str) -> None:
    """Killed before, between and after the changes, and while they are restored."""
    before = snapshot(namespace)
    for i in range(12):
        one = run()
        if i % 2:
            one.ready()
            assert one.process.stdin is not None
            one.process.stdin.close()
            one.process.stdin = None
            threading.Event().wait(random.random() * 0.002)
        else:
            while not records(namespace) and one.process.poll() is None:
                pass
            threading.Event().wait(random.random() * 0.001)
        one.end(signal.SIGKILL)
        assert restore().returncode == 0
        assert snapshot(namespace) == before
        assert not records(namespace)


@pytest.mark.parametrize("how", [("fork",), ("fork", "exec")], ids="-".join)
def test_children_that_outlive_a_killed_run(run: Start, namespace: str, how: tuple[str, ...]) -> None:
    """A service that the run has brought up is no user of its limits."""
    before = snapshot(namespace)
    one = run(20_000, *how)
    one.ready()
    (child,) = map(int, Path(f"/proc/{one.process.pid}/task/{one.process.pid}/children").read_text().split())
    one.process.kill()
    one.process.wait()
    try:
        assert restore().returncode == 0
        assert snapshot(namespace) == before
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_namespace_that_is_gone(run: Start, namespace: str) -> None:
    one = run()
    one.ready()
    (record,) = [path for path in records(namespace) if path.suffix == ".json"]
    one.end(signal.SIGKILL)
    subprocess.run(["umount", NETNS / namespace], check=True)  # the file stays for the fixture
    done = restore()
    assert (done.returncode, done.stderr) == (0, "")
    assert not record.exists()


# ---- several runs ----


@pytest.mark.parametrize("ends", [None, signal.SIGKILL], ids=["ends", "is killed"])
@pytest.mark.parametrize("first", [0, 1])
def test_two_runs(run: Start, namespace: str, first: int, ends: int | None) -> None:
    """The limits stay raised for the remaining run, which restores the values before both."""
    before = snapshot(namespace)
    runs = run(20_000), run(30_000)
    for one in runs:
        one.ready()
    assert int(read(namespace, SOMAXCONN)) == 30_000
    told = runs[first].end(ends)
    left = runs[1 - first]
    assert int(read(namespace, SOMAXCONN)) == 30_000
    says = f"what is raised stays so: process {left.process.pid} needs it, and puts it back when it ends\n"
    if ends is None:
        assert told == says
    done = restore()
    assert (done.returncode, done.stderr) == (0, "")
    assert says in done.stdout
    assert int(read(namespace, SOMAXCONN)) == 30_000
    left.end()
    assert snapshot(namespace) == before
    assert not records(namespace)


def test_many_runs_at_once(run: Start, namespace: str) -> None:
    """In any order of beginnings and ends."""
    before = snapshot(namespace)
    runs = [run(10_000 + 1000 * i) for i in range(8)]
    for one in random.sample(runs, len(runs)):
        one.ready()
    assert int(read(namespace, SOMAXCONN)) == 17_000
    for one in runs:
        one.process.send_signal(signal.SIGTERM)
    for one in runs:
        one.end()
    assert snapshot(namespace) == before
    assert not records(namespace)


@pytest.mark.parametrize("killed", [False, True], ids=["at the end", "by --restore"])
def test_what_somebody_else_set_meanwhile_stays(run: Start, namespace: str, killed: bool) -> None:
    before = snapshot(namespace)
    one = run()
    one.ready()
    subprocess.run(within(namespace, "sysctl", "-qw", f"{SOMAXCONN}=777"), check=True)
    told = one.end(signal.SIGKILL if killed else None)
    if killed:
        told = restore().stdout
    after = snapshot(namespace)
    assert {name for name in before if after[name] != before[name]} == {"/proc/sys/net/core/somaxconn"}
    assert read(namespace, SOMAXCONN) == "777"
    assert f"{SOMAXCONN} is 777, which somebody else set meanwhile: left so (it was 4096)\n" in told
    assert not records(namespace)


# ---- refused ----


def test_all_or_nothing(namespace: str) -> None:
    """If one limit cannot be written, those written before it are restored."""
    before = snapshot(namespace)
    path = "/proc/sys/net/ipv4/tcp_max_syn_backlog"
    script = f'mount --bind {path} {path}; mount -o remount,bind,ro {path}; exec "$@"'
    shell = ("unshare", "--mount", "--propagation=private", "sh", "-ec", script, "sh")
    done = capture(*within(namespace, *shell, sys.executable, "-c", RUN, 20_000))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(
        rf"kecho.model.errors.Unavailable: cannot set {SYN_BACKLOG} to \d+: Read-only file system: .*", last
    )
    assert snapshot(namespace) == before
    assert not records(namespace)


def test_without_root(namespace: str) -> None:
    before = snapshot(namespace)
    done = capture(*within(namespace, *NOBODY, sys.executable, "-c", RUN, 20_000))
    assert "Unavailable: limits of the system are root's to be raised: run it as root, with sudo" in done.stderr
    assert snapshot(namespace) == before


def test_a_lock_that_is_a_link(namespace: str, tmp_path: Path) -> None:
    support.RUN.mkdir(exist_ok=True)
    link = support.RUN / f"tune-{(NETNS / namespace).stat().st_ino}.lock"
    link.symlink_to(tmp_path / "target")
    try:
        one = Run(namespace, 20_000)
        one.end()
        assert one.process.returncode == 1
        assert not (tmp_path / "target").exists()
        assert read(namespace, SOMAXCONN) == "4096"
    finally:
        link.unlink()


# ---- what is shown ----


def test_what_is_raised_is_shown_to_all(run: Start, namespace: str) -> None:
    one = run()
    one.ready()
    command = within(namespace, *NOBODY, support.KECHO_CTL, "tune")
    found = json.loads(capture(*command, "--json").stdout)
    assert found["raised"][SOMAXCONN] == {"old": "4096", "ours": ["20000"]}
    assert all(row["raised_to"] is None for row in found["limits"] if row["name"] != "descriptors")
    shown = capture(*command).stdout
    assert f"{SOMAXCONN} is raised, from 4096: by a run that goes on, or one that was killed\n" in shown


# ---- bench ----

BENCH = ("bench", "--compare=user", "--connections=5000", "--tune", "--topology=loopback")


@pytest.fixture
def bench(namespace: str) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a benchmark in the namespace, whose service needs a longer queue than there is."""
    started: list[subprocess.Popen[str]] = []

    def start(*options: str) -> subprocess.Popen[str]:
        command = within(namespace, support.KECHO_CTL, *BENCH, *options)
        started.append(
            subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=support.TIMEOUT_S)


Bench = Callable[..., "subprocess.Popen[str]"]


def test_bench(bench: Bench, namespace: str) -> None:
    before = snapshot(namespace)
    process = bench("--count=5000", "--repeat=2", "--json")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    syn_backlog = before[path_of(SYN_BACKLOG)]
    assert err.splitlines() == [
        f"kecho-ctl: {SOMAXCONN}: 4096 → 5000",
        f"kecho-ctl: {SYN_BACKLOG}: {syn_backlog} → 6667",
        f"kecho-ctl: {SOMAXCONN}: 5000 → 4096, as it was",
        f"kecho-ctl: {SYN_BACKLOG}: 6667 → {syn_backlog}, as it was",
    ]
    assert snapshot(namespace) == before
    result = json.loads(out)
    assert result["host"]["sysctls"][SOMAXCONN] == "5000", "what it ran with, not what came after"
    assert [run["listen"] for run in result["runs"]] == [{"overflows": 0, "drops": 0}] * 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=str)
def test_bench_interrupted(bench: Bench, namespace: str, number: int) -> None:
    before = snapshot(namespace)
    process = bench("--duration=100")
    support.wait_for(lambda: read(namespace, SOMAXCONN) == "5000", "the raise")
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err
    assert snapshot(namespace) == before
    assert not records(namespace)


def test_bench_interrupted_at_any_moment(bench: Bench, namespace: str) -> None:
    """Ctrl-C is neither lost nor handled twice, even while services come up."""
    before = snapshot(namespace)
    for _ in range(8):
        process = bench("--duration=100")
        assert process.stderr is not None
        assert process.stderr.readline().startswith(f"kecho-ctl: {SOMAXCONN}")
        threading.Event().wait(random.random() * 0.3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, "Traceback" in err) == (130, False), err
        assert snapshot(namespace) == before


def test_bench_killed(bench: Bench, namespace: str) -> None:
    """The next benchmark restores the limits, even if it raises none."""
    before = snapshot(namespace)
    process = bench("--duration=100")
    support.wait_for(lambda: read(namespace, SOMAXCONN) == "5000", "the raise")
    process.kill()
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, err
    done = capture(*within(namespace, support.KECHO_CTL, "bench", "--compare=user", "--count=10", "--repeat=1"))
    assert done.returncode == 0
    assert f"kecho-ctl: {SOMAXCONN}: 5000 → 4096, as it was\n" in done.stderr
    assert snapshot(namespace) == before
    assert not records(namespace)


def test_killed_beside_its_service(namespace: str) -> None:
    """The service, a fork of the killed process, does not restore in its place."""
    before = snapshot(namespace)
    done = capture(*within(namespace, sys.executable, "-c", KILLED))
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "")
    assert "as it was" not in done.stdout
    assert read(namespace, SOMAXCONN) == "20000"
    done = capture(*within(namespace, support.KECHO_CTL, "tune", "--restore"))
    assert f"{SOMAXCONN}: 20000 → 4096, as it was\n" in done.stdout
    assert snapshot(namespace) == before


def test_bench_warns_of_what_it_does_not_raise(namespace: str) -> None:
    """It warns before it starts; here of too few ports, for lack of which it then fails."""
    subprocess.run(within(namespace, "sysctl", "-qw", f"{PORT_RANGE}=40000 40099"), check=True)
    command = within(namespace, support.KECHO_CTL, "bench", "--compare=user", "--connections=200", "--count=200")
    done = capture(*command, "--repeat=1")
    assert done.returncode == 1
    assert f"kecho-ctl: 200 connections to one address cannot be made from 100 ports ({PORT_RANGE})\n" in done.stderr
    assert "kecho-ctl: --tune raises limits for the time of the run\n" in done.stderr
    assert "no local port is free" in done.stderr.splitlines()[-1]
    done = capture(*command, "--repeat=1", "--tune")
    assert done.returncode == 0
    assert f"kecho-ctl: {PORT_RANGE}: 40000 40099 → 40000 40199\n" in done.stderr
    assert read(namespace, PORT_RANGE) == "40000 40099"
