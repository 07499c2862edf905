# SPDX-License-Identifier: MIT
"""Mode module of kecho-ctl from `up` to `down`, and everything that can keep it from working."""

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fastecho
import pytest
from support import live, run_kecho

from kecho.service import rundir
from kecho.service.client import Client

RUN = Path("/run/kecho/kecho")  # of a service with the default name
MODULES = Path("/lib/modules") / os.uname().release
MESSAGES = 1009


def up(*options: object) -> str:
    """Brings mode module up and returns the line that `up` prints."""
    done = run_kecho("up", "--mode", "module", *options)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def up_fails(status: int, *options: object) -> str:
    """Asserts that mode module cannot be brought up, and returns the line that says why."""
    done = run_kecho("up", "--mode", "module", *options)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (status, "", 1)
    assert not RUN.exists()
    return done.stderr


def down() -> None:
    """Takes the service down with `kecho-ctl down`. Nothing may be left."""
    Client("kecho").down()
    assert not fastecho.is_loaded()
    assert not RUN.exists()


def ctl_json(*arguments: str, status: int = 0) -> dict:
    """The object that a command prints with --json. It ends with that exit status."""
    done = run_kecho(*arguments, "--json")
    assert (done.returncode, done.stderr) == (status, "")
    return json.loads(done.stdout)


def kill_controller() -> None:
    """Kills the controller with SIGKILL and waits until it is gone."""
    pid = json.loads((RUN / "state.json").read_text())["pid"]
    os.kill(pid, signal.SIGKILL)
    fastecho.wait_for(lambda: not rundir.is_held(RUN.name), "the controller to end")


@pytest.fixture(autouse=True)
def nothing_up() -> Iterator[None]:
    """Clears up after a test that failed, so that the next one can pass."""
    yield
    if RUN.exists():
        run_kecho("down")


@contextmanager
def leaving_no_bpf() -> Iterator[None]:
    """Asserts that the BPF objects made in the block are gone soon after it."""

    def objects() -> set[tuple[str, int]]:
        return {(kind, number) for kind in ("prog", "map", "link") for number in live(kind)}

    before = objects()
    yield
    fastecho.wait_for(lambda: objects() <= before, "the kernel to free programs and maps")


@contextmanager
def mounted(source: Path, target: Path) -> Iterator[None]:
    """Mounts `source` over `target`, whose file system is read-only."""
    subprocess.run(["mount", "--bind", str(source), str(target)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(target)], check=True)


def test_up_counts_exactly_and_down(tmp_path: Path) -> None:
    with leaving_no_bpf():
        assert "is up: mode module, 127.0.0.1:12345, [::1]:12345, paths: softirq, then workqueue\n" in up()
        fastecho.pingpong(61, MESSAGES)
        fastecho.pingpong(61, MESSAGES, "::1")
        fastecho.wait_idle()
        with socket.create_connection(("127.0.0.1", fastecho.PORT)) as sock:
            sock.sendall(b"still here")
            sock.recv(10)
            found = ctl_json("stats")
            (status,) = ctl_json("status", "kecho")["services"]
        assert found["connections"] == {"active": 1, "total": 3, "rejected": 0, "aborted": 0}
        assert (status["mode"], status["state"], status["paths"]) == ("module", "up", ["softirq", "workqueue"])
        assert len(status["sockets"]) == 1
        # The first message of a connection may arrive before accept(); the workqueue echoes that one.
        paths = found["paths"]
        assert paths["softirq"]["echoes"] >= 2 * MESSAGES - 2
        assert sum(path["echoes"] for path in paths.values()) == 2 * MESSAGES + 1
        assert sum(path["bytes"] for path in paths.values()) == 2 * MESSAGES * 61 + 10
        for path in paths.values():
            assert path["latency_ns"]["count"] == path["echoes"]
        done = run_kecho("stats", "--plot", tmp_path / "latency.png")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")
        assert run_kecho("down").returncode == 0
        assert not fastecho.is_loaded() and not RUN.exists()


def test_options_reach_the_module() -> None:
    line = up("--port", 12346, "--bind", "127.0.0.2", "--backlog", 300, "--bench", 1, "--no-inline")
    assert "127.0.0.2:12346, paths: workqueue\n" in line
    names = ["port", "bind", "backlog", "bench", "inline"]
    assert [fastecho.parameter(name) for name in names] == ["12346", "127.0.0.2", "300", "1", "0"]
    fastecho.pingpong(64, MESSAGES, "127.0.0.2", 12346)
    paths = Client("kecho").snapshot().paths
    assert [paths[name].echoes for name in ("softirq", "workqueue")] == [0, MESSAGES]
    down()


def test_killed() -> None:
    """A killed controller leaves the module loaded. The next `up` replaces it and says so; `down` removes it too."""
    with leaving_no_bpf():
        up()
        kill_controller()
        assert fastecho.is_loaded()
        (status,) = ctl_json("status", status=1)["services"]
        assert (status["mode"], status["state"]) == ("module", "died")
        assert "replaced the fastecho that a killed controller had left" in up()
        fastecho.pingpong(64, MESSAGES)
        found = Client("kecho").snapshot()
        assert (found.connections.total, sum(path.echoes for path in found.paths.values())) == (1, MESSAGES)
        kill_controller()
        down()


def test_loaded_by_hand() -> None:
    fastecho.load()
    assert "not by kecho-ctl; rmmod fastecho first" in up_fails(1)
    assert fastecho.is_loaded()


def test_one_at_a_time() -> None:
    """A second service does not take the module of the first. What a dead service left is not in the way."""
    up()
    done = run_kecho("up", "--mode", "module", "--name", "second", "--port", 12346)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "kecho-ctl down kecho" in done.stderr
    dead = RUN.parent / "dead"
    dead.mkdir()
    (dead / "state.json").write_text(json.dumps({"mode": "module", "pid": 1 << 22}))
    Client("dead").down()
    fastecho.pingpong(64, 3)
    down()


def test_port_taken() -> None:
    with socket.create_server(("127.0.0.1", fastecho.PORT)):
        line = up_fails(1)
    assert str(fastecho.PORT) in line and f"pid {os.getpid()}" in line
    assert not fastecho.is_loaded()


def test_built_for_another_kernel() -> None:
    other = min({ko.parent for ko in (fastecho.TOP / "build").glob("kmod-*-amd64/fastecho.ko")} - {fastecho.KO.parent})
    with mounted(other, fastecho.KO.parent):
        line = up_fails(3)
        done = run_kecho("up")
        Client("kecho").down()
    assert "built for another kernel" in line and "make kmod" in line
    assert done.returncode == 0 and "no module: fastecho.ko is built for another kernel" in done.stdout, "auto goes on"


def doctors_module() -> dict:
    """What `doctor` says about mode module. Asserts that `auto` agrees."""
    found = ctl_json("doctor")
    mode = found["modes"]["module"]
    mode["features"] = {feature.pop("name"): feature for feature in mode["features"]}
    assert mode["usable"] == all(feature["ok"] for feature in mode["features"].values())
    assert found["auto"] == ("module" if mode["usable"] else "sockmap")
    return mode


def test_doctor() -> None:
    mode = doctors_module()
    assert mode["usable"]
    assert mode["features"]["fastecho"]["detail"] == str(fastecho.KO)
    assert {"privilege", "loadable modules", "bcc", "headers"} < set(mode["features"])


def test_not_built(tmp_path: Path) -> None:
    with mounted(tmp_path, fastecho.KO.parent):
        line = up_fails(3)
        mode = doctors_module()
    assert "no fastecho.ko for" in line and "make kmod" in line
    assert "linux-headers" not in line, "the kernel's headers are here"
    assert [name for name, feature in mode["features"].items() if not feature["ok"]] == ["fastecho"]
    assert mode["features"]["fastecho"]["detail"] in line and mode["features"]["fastecho"]["remedy"] in line


def test_installed_is_loaded_by_name(tmp_path: Path) -> None:
    """modprobe loads the module from where DKMS installs it; that of the checkout is not used."""
    for headers in ("build", "source"):
        (tmp_path / headers).symlink_to((MODULES / headers).readlink())
    (tmp_path / "updates/dkms").mkdir(parents=True)
    shutil.copy(fastecho.KO, tmp_path / "updates/dkms")
    with mounted(tmp_path, MODULES), mounted(tmp_path / "updates", fastecho.KO.parent):
        subprocess.run(["depmod"], check=True)
        up()
        fastecho.pingpong(64, 3)
        down()


@pytest.mark.last
def test_no_unsigned_module() -> None:
    """Not under lockdown, and not where a signature is required. Both last until the next boot."""
    lockdown = Path("/sys/kernel/security/lockdown")
    if not lockdown.exists():
        subprocess.run(["mount", "-t", "securityfs", "none", "/sys/kernel/security"], check=True)
    lockdown.write_text("integrity")
    assert "locked down" in up_fails(3)
    Path("/sys/module/module/parameters/sig_enforce").write_text("1")
    assert "wants modules signed" in up_fails(3)


def test_listening_socket_ended_by_the_administrator() -> None:
    """`status` reports it, and `down` still works."""
    up("--bind", "127.0.0.1", "--bind", "::1")
    assert ctl_json("status")["services"][0]["trouble"] == ""
    subprocess.run(["ss", "-K", "-tln", "src", f"[::1]:{fastecho.PORT}"], check=True)
    fastecho.wait_for(lambda: fastecho.counter("listening") == 1, "the module to see it")
    assert "listens on 1 of its 2 addresses" in ctl_json("status")["services"][0]["trouble"]
    assert "listens on 1 of its 2 addresses" in run_kecho("status").stdout
    down()
