# SPDX-License-Identifier: MIT
"""Every failure: the exit code, one line on stderr that names the cause, and nothing left half up."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import support

from kecho.backends.base import MODES

Kecho = Callable[..., "subprocess.CompletedProcess[str]"]
NOBODY: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []}


@pytest.fixture
def name() -> Iterator[str]:
    """The name of a service that must not come up. Takes it down if it does, and fails if anything of it is left."""
    unique = f"pytest-refused-{os.getpid()}-{random.randrange(1 << 32):08x}"
    yield unique
    left = (support.RUN / unique).exists()
    if left:
        support.run_kecho("down", unique)
    assert not left, f"{unique} was left half up"
    support.wait_for(lambda: not processes_named(unique), "the end of its processes")


def processes_named(name: str) -> list[int]:
    """The processes with `name` in their command line: a controller has that of the `up` that made it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.endswith(name.encode()) for word in words):
            found.append(int(entry.name))
    return found


def assert_refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Exit code, silence on stdout, and one line on stderr with all of `words`."""
    assert done.returncode == code, done
    assert done.stdout == ""
    assert done.stderr.startswith("kecho-ctl: ")
    assert done.stderr.endswith("\n") and done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def in_shell(script: str, name: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Runs `up` with a unique name in a mount namespace of its own, after the commands of `script`."""
    words = ("up", f"--name={name}", f"--port={support.free_port()}", *args)
    return support.within("--mount --propagation=private", f'set -e\n{script}\nexec "$0" "$@"', *words)


# ---- options of up ----


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--port=0"], ["--port", "0", "65535"]),
        (["--port=70000"], ["--port", "70000"]),
        (["--port=x"], ["--port", "'x'"]),
        (["--port=-1"], ["--port", "-1"]),
        (["--port", "-1"], ["--port"]),
        (["--port"], ["--port"]),
        (["--bind=foo"], ["--bind", "foo"]),
        (["--bind=127.0.0.1:7"], ["--bind", "127.0.0.1:7"]),
        (["--bind=fe80::1%lo"], ["--bind", "fe80::1%lo"]),
        (["--bind="], ["--bind"]),
        (["--bind=127.0.0.1", "--bind=127.0.0.1"], ["--bind", "twice"]),
        (["--bind=::1", "--bind=0:0::1"], ["--bind", "twice"]),
        (["--mode=foo"], ["--mode", "foo", "auto", *MODES]),
        (["--backlog=0"], ["--backlog", "0"]),
        (["--backlog=-5"], ["--backlog", "-5"]),
        (["--backlog=4294967296"], ["--backlog", "4294967296"]),
        (["--limit=4095"], ["--limit", "4095", "4096"]),
        (["--limit=x"], ["--limit", "'x'"]),
        (["--limit=99999999999999999999"], ["--limit", "99999999999999999999"]),
        (["--path=foo"], ["--path", "foo", "egress", "ingress", "skb"]),
        (["--engine=foo"], ["--engine", "foo", "epoll", "io_uring"]),
        (["--port=2_6_0_0_5"], ["--port", "2_6_0_0_5"]),
        (["--port=２６００５"], ["--port"]),
        (["--mode=user", "--path=skb"], ["--path", "--mode sockmap"]),
        (["--mode=user", "--no-latency"], ["--no-latency", "--mode mirror, sockmap"]),
        (["--mode=sockmap", "--engine=io_uring"], ["--engine", "--mode user"]),
        (["--mode=mirror", "--cpus=0"], ["--cpus", "--mode sockmap, user"]),
        (["--mode=user", "--cpus=0-"], ["--cpus", "'0-'"]),
        (["--mode=user", "--engine=io_uring", "--busy-poll=50"], ["--busy-poll", "epoll"]),
        (["--mode=sockmap", "--no-inline"], ["--no-inline", "--mode module"]),
        (["--path=skb", "--engine=epoll"], ["no mode has all of these options"]),
        (["--frobnicate"], ["--frobnicate"]),
        (["surplus"], ["surplus"]),
    ],
    ids=" ".join,
)
def test_up_refuses_an_option(kecho: Kecho, name: str, args: list[str], words: list[str]) -> None:
    assert_refused(kecho("up", f"--name={name}", *args), 2, *words)


@pytest.mark.parametrize("bad", ["../x", "", "x" * 65, ".hidden", "-dash", "a/b", "a b", "a\nb", "ä"])
def test_up_refuses_a_name(kecho: Kecho, bad: str) -> None:
    assert_refused(kecho("up", f"--name={bad}", f"--port={support.free_port()}"), 2, "--name")


@pytest.mark.parametrize("mode", ["sockmap", "user"])
@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
def test_an_address_that_is_not_ours(kecho: Kecho, name: str, mode: str, address: str) -> None:
    done = kecho("up", f"--mode={mode}", f"--name={name}", f"--bind={address}", f"--port={support.free_port()}")
    assert_refused(done, 1, address)


@pytest.mark.parametrize("mode", ["sockmap", "user"])
def test_a_busy_port_names_who_has_it(kecho: Kecho, name: str, mode: str) -> None:
    port = support.free_port()
    code = f"import socket, time; s = socket.create_server(('127.0.0.1', {port})); print(1, flush=True); time.sleep(99)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == b"1\n"
            done = kecho("up", f"--mode={mode}", f"--name={name}", f"--port={port}")
        finally:
            holder.kill()
    assert_refused(done, 1, f"127.0.0.1:{port}", f"python (pid {holder.pid})")


# ---- usage of the other commands ----


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["frobnicate"], ["frobnicate", "up"]),
        (["stats", "0"], ["INTERVAL", "0"]),
        (["stats", "x", "y"], ["INTERVAL", "y"]),
        (["stats", "x", "--name=y"], ["x", "y"]),
        (["stats", "1e99"], ["INTERVAL", "1e99"]),
        (["stats", "--plot=x"], ["--plot", "'x'", ".png"]),
        (["stats", "--plot="], ["--plot", ".png"]),
        (["stats", "--plot=/nonexistent/x.png"], ["cannot write to '/nonexistent/x.png': No such file or directory"]),
        (["check", "--timeout=0"], ["--timeout", "0"]),
        (["check", "127.0.0.1:x"], ["127.0.0.1:x"]),
        (["tune", "--connections=0"], ["--connections", "0"]),
        (["stats", "1", "0"], ["COUNT", "0"]),
        (["stats", "1", "x"], ["COUNT", "x"]),
        (["stats", "1", "1.5"], ["COUNT", "1.5"]),
        (["stats", "1", "1", "1"], ["1"]),
        (["bench", "--size=0", "127.0.0.1:7"], ["--size", "'0'"]),
        (["bench", "--size=x", "127.0.0.1:7"], ["--size", "'x'"]),
        (["bench", "--size=2M", "127.0.0.1:7"], ["--size", "2097152"]),
        (["bench", "--count=0", "127.0.0.1:7"], ["--count", "'0'"]),
        (["bench", "--connections=0", "127.0.0.1:7"], ["--connections"]),
        (["bench", "--cpus=x", "127.0.0.1:7"], ["x"]),
        (["bench", "127.0.0.1:x"], ["127.0.0.1:x"]),
        (["bench", "127.0.0.1:70000"], ["127.0.0.1:70000"]),
        (["bench", "::1:7"], ["::1:7", "[ADDRESS]:PORT"]),
        (["bench", "[::1]:7", "[::1]:7"], ["[::1]:7", "twice"]),
        (["plot", "x.json"], ["--output"]),
        (["--print-completion=frob"], ["--print-completion", "frob", "bash"]),
        (["down", "../x"], ["../x"]),
        (["down", ""], ["''"]),
        (["reset", "../x"], ["../x"]),
        (["stats", "--name=../x"], ["../x"]),
    ],
    ids=" ".join,
)
def test_wrong_usage(kecho: Kecho, args: list[str], words: list[str]) -> None:
    assert_refused(kecho(*args), 2, *words)


def test_no_command_shows_the_help_and_fails(kecho: Kecho) -> None:
    done = kecho()
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "COMMAND" in done.stdout + done.stderr


@pytest.mark.parametrize(
    "args",
    [["down"], ["reset"], ["status"], ["stats"], ["stats", "--name"], ["bench"], ["check"], ["logs"]],
    ids=" ".join,
)
def test_no_such_service(kecho: Kecho, name: str, args: list[str]) -> None:
    assert_refused(kecho(*args, name), 1, name)


def test_bench_of_a_refused_port(kecho: Kecho, tmp_path: Path) -> None:
    target = f"127.0.0.1:{support.free_port()}"
    assert_refused(kecho("bench", target, cwd=tmp_path), 1, target, "refused")


# ---- a name is never a way out of /run/kecho ----


@pytest.mark.parametrize("way_out", ["../precious", "..", ".", "", "../../{tmp}"])
def test_down_removes_nothing_outside_its_folder(tmp_path: Path, way_out: str) -> None:
    """In a mount namespace with a /run of its own, so that a defect takes nothing of the machine's along."""
    kept = tmp_path / "kept"
    kept.write_text("kept")
    tmp_path.chmod(0o755)
    bad = way_out.format(tmp=str(tmp_path).lstrip("/"))
    script = """
        mount -t tmpfs none /run
        mkdir -p /run/kecho/other /run/precious
        touch /run/kecho/other/kept /run/precious/kept
        "$0" down "$1" && exit 9
        ls /run/kecho/other/kept /run/precious/kept
    """
    done = subprocess.run(
        ["unshare", "--mount", "--propagation=private", "sh", "-c", script, support.KECHO_CTL, bad],
        env=support.clean_env(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == ["/run/kecho/other/kept", "/run/precious/kept"], done
    assert done.returncode == 0
    assert kept.read_text() == "kept"


# ---- what this machine, or this user, cannot ----


@pytest.mark.parametrize("mode", ["auto", "sockmap", "user"])
def test_up_without_root(kecho: Kecho, name: str, mode: str) -> None:
    done = kecho("up", f"--mode={mode}", f"--name={name}", f"--port={support.free_port()}", **NOBODY)
    assert_refused(done, 3, "root", "sudo")


def test_bpf_refused(kecho: Kecho, name: str) -> None:
    """The capability counts, not the uid: root without it is refused as well."""
    assert_refused(kecho("up", "--mode=sockmap", f"--name={name}", **NOBODY), 3, "BPF", "unprivileged", "sudo")
    command = [support.KECHO_CTL, "up", "--mode=sockmap", f"--name={name}", f"--port={support.free_port()}"]
    done = subprocess.run(
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *command],
        env=support.clean_env(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert_refused(done, 3, "BPF")


@pytest.mark.skipif(Path("/proc/modules").exists(), reason="this kernel can load modules")
def test_no_loadable_modules(kecho: Kecho, name: str) -> None:
    assert_refused(kecho("up", "--mode=module", f"--name={name}"), 3, "cannot load modules", "--mode sockmap")


def test_no_cgroup_v2(name: str) -> None:
    script = """
        for where in $(awk '$3 == "cgroup2" {print $2}' /proc/self/mounts); do umount "$where"; done
        ! grep -q ' cgroup2 ' /proc/self/mounts
    """
    assert_refused(in_shell(script, name, "--mode=sockmap"), 3, "cgroup v2", "mount -t cgroup2")


def test_no_cgroup_v2_leaves_auto_the_user_server(name: str) -> None:
    script = 'for where in $(awk \'$3 == "cgroup2" {print $2}\' /proc/self/mounts); do umount "$where"; done'
    done = in_shell(script, name)
    assert done.returncode == 0, done.stderr
    try:
        assert "mode user" in done.stdout and "no sockmap: no cgroup v2" in done.stdout
    finally:
        assert support.run_kecho("down", name).returncode == 0


@pytest.mark.parametrize("structure", [b"tcp_skb_cb", b"sk_skb_cb", b"sk_psock"])
def test_a_kernel_that_lacks_a_structure(name: str, tmp_path: Path, structure: bytes) -> None:
    """A copy of this kernel's BTF, in which the structure has another name. Nothing needs the last one."""
    btf = Path("/sys/kernel/btf/vmlinux")
    (tmp_path / "btf").write_bytes(btf.read_bytes().replace(b"\0%s\0" % structure, b"\0%s_\0" % structure[:-1]))
    script = f"mount -t tmpfs none /var/cache; mount --bind {tmp_path}/btf {btf}"
    asked = support.within("--mount --propagation=private", f'{script}; "$0" doctor --json')
    doctor = json.loads(asked.stdout)
    usable = structure == b"sk_psock"
    assert doctor["modes"]["sockmap"]["usable"] == usable
    if not usable:
        done = in_shell(script, name, "--mode=sockmap")
        assert_refused(done, 3, "BTF", structure.decode())
    done = in_shell(script, name)
    try:
        assert done.returncode == 0, done.stderr
        assert f"auto chose {doctor['auto']}" in done.stdout
        assert usable or "no sockmap: the kernel's BTF does not serve: " in done.stdout
    finally:
        assert support.run_kecho("down", name).returncode == 0


def test_bcc_cannot_be_imported(kecho: Kecho, name: str, tmp_path: Path) -> None:
    """A Python that cannot import Debian's packages, as any other than Debian's own."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.path[:] = [entry for entry in sys.path if 'dist-packages' not in entry]\n"
    )
    done = kecho(
        "up",
        "--mode=sockmap",
        f"--name={name}",
        f"--port={support.free_port()}",
        env={**support.clean_env(), "PYTHONPATH": str(tmp_path)},
    )
    assert_refused(done, 3, "BCC", "apt-get install python3-bpfcc")


@pytest.mark.parametrize("mode", ["sockmap", "user"])
def test_run_is_read_only(name: str, mode: str) -> None:
    done = in_shell("mount -t tmpfs -o ro none /run", name, f"--mode={mode}")
    assert_refused(done, 1, "/run/kecho", "Read-only file system")
    assert "Error" not in done.stderr


@pytest.mark.parametrize("mode", ["sockmap", "user"])
def test_a_server_that_is_not_built(kecho: Kecho, name: str, mode: str, tmp_path: Path) -> None:
    """An empty build folder over the real one."""
    done = in_shell(f"mount --bind {tmp_path} {support.ROOT}/build", name, f"--mode={mode}")
    assert_refused(done, 3, "user-echo-server", "make")


# ---- plots ----


def test_plot_of_a_missing_file(kecho: Kecho, tmp_path: Path) -> None:
    picture = tmp_path / "x.png"
    assert_refused(kecho("plot", tmp_path / "none.json", "-o", picture), 1, "none.json", "No such file")
    assert not picture.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"\xff\xfe",
        b'{"schema": 1}',
        b'{"kind": "bench", "schema": 99}',
        b'{"kind": "bench", "schema": 1}',
        json.dumps(
            {
                "kind": "bench",
                "schema": 1,
                "host": {"hostname": "h", "kernel": "k", "cpu": "c", "cpus": 1},
                "date": "",
                "version": "",
                "command": "",
                "baseline": "x",
                "runs": [],
            }
        ).encode(),
        b'{"kind": "bench", "schema": 1, "host": [], "date": 0, "version": 0, "command": 0, "baseline": 0, "runs": 0}',
    ],
)
def test_plot_of_a_broken_result(kecho: Kecho, tmp_path: Path, content: bytes) -> None:
    result, picture = tmp_path / "broken.json", tmp_path / "x.png"
    result.write_bytes(content)
    assert_refused(kecho("plot", result, "-o", picture), 1)
    assert not picture.exists()


def test_stats_plot_without_a_sample(service: Callable[..., support.Service], kecho: Kecho, tmp_path: Path) -> None:
    one = service(mode="user")
    with one.client() as client:
        support.echo(client, b"kecho")
    assert_refused(kecho("stats", "--name", one.name, "--plot", tmp_path / "x.png"), 1, "nothing to draw")


def test_a_folder_that_somebody_else_prepared(kecho: Kecho, name: str) -> None:
    """/run/kecho/NAME that others may write to is not used, and not removed."""
    script = f"mount -t tmpfs none /run; mkdir -p /run/kecho/{name}; chmod 0777 /run/kecho/{name}"
    assert_refused(in_shell(script, name, "--mode=user"), 3, f"/run/kecho/{name}", "remove")


def test_the_port_stays_free_after_a_refusal(kecho: Kecho, name: str) -> None:
    """What failed half-way through holds no listener: here the second of two addresses is not ours."""
    port = support.free_port()
    for mode in ("sockmap", "user"):
        done = kecho("up", f"--mode={mode}", f"--name={name}", f"--port={port}", "--bind=127.0.0.1", "--bind=192.0.2.1")
        assert_refused(done, 1, "192.0.2.1")
        with socket.create_server(("127.0.0.1", port)):
            pass
