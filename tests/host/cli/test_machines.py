# SPDX-License-Identifier: MIT
"""Unusual machines: names that are not UTF-8, loopback down, no IPv6, few descriptors, nohup."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import support

Up = Callable[..., support.Service]


@pytest.fixture
def name() -> Iterator[str]:
    """A name for a service, which is taken down in the end if it is up."""
    unique = f"pytest-{os.getpid()}-{random.randrange(1 << 32):08x}"
    yield unique
    if (support.RUN / unique).exists():
        support.run_kecho("down", unique)


@pytest.mark.parametrize("command", ["doctor", "doctor --json", 'up --mode sockmap --name "$2" --port "$3"'])
def test_a_mount_point_that_is_not_utf8(name: str, tmp_path: Path, command: str) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9 \\040"
    os.mkdir(folder)
    script = f'mount -t tmpfs none "$1" && "$0" {command}'
    done = support.within("--mount", script, folder, name, support.free_port())
    assert done.returncode == 0, done
    assert done.stderr == ""


def test_cgroup2_below_a_name_that_is_not_utf8(name: str, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9 x"
    os.mkdir(folder)
    script = """
        for where in $(awk '$3 == "cgroup2" {print $2}' /proc/self/mounts); do umount "$where"; done
        mount -t cgroup2 none "$1" && "$0" up --mode sockmap --name "$2" --port "$3" && "$0" check "$2"
    """
    done = support.within("--mount", script, folder, name, support.free_port())
    assert done.returncode == 0, done
    assert "echoes" in done.stdout


def test_doctor_with_loopback_down() -> None:
    done = support.within("--net", '"$0" doctor --json')
    assert (done.returncode, done.stderr) == (0, "")
    features = {one["name"]: one for one in json.loads(done.stdout)["modes"]["sockmap"]["features"]}
    for path in ("path egress", "path ingress"):
        assert not features[path]["ok"]
        assert "unreachable" in features[path]["detail"] and features[path]["remedy"] == "ip link set lo up"


@pytest.mark.parametrize("options", ["", "--mode sockmap", "--mode user"])
def test_up_with_loopback_down(name: str, options: str) -> None:
    """The service comes up, and serves local clients once loopback is up."""
    script = f"""
        "$0" up {options} --name "$1" --port 7117 || exit
        ip link set lo up && "$0" check "$1"
    """
    done = support.within("--net", script, name)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert "echoes" in done.stdout


def test_a_probe_that_fails_otherwise_is_a_verdict(name: str) -> None:
    """A probe runs out of descriptors: doctor still reports all features, and says what mends it."""
    done = support.within("--mount", 'prlimit --nofile=12:12 "$0" doctor', name)
    assert done.returncode in (0, 1), done
    assert "Traceback" not in done.stderr and done.stderr.count("\n") <= 1


def test_up_without_descriptors(name: str) -> None:
    done = support.within("--mount", 'prlimit --nofile=10:10 "$0" up --mode user --name "$1" --port 7117', name)
    said = f"kecho-ctl: cannot bring {name} up: Too many open files (ulimit -n)\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)


@pytest.mark.parametrize("mode", ["user", "sockmap --path skb"])
def test_up_that_answers_has_room_for_a_client(name: str, mode: str) -> None:
    """With any number of descriptors a service either serves, or says why not and does not come up."""
    seen = set()
    for limit in (20, 31, 36, 80):
        script = f"""
            ip link set lo up
            prlimit --nofile={limit}:{limit} "$0" up --mode {mode} --name "$1" --port 7117 || exit 99
            "$0" check "$1"
        """
        done = support.within("--net", script, name)
        seen.add(done.returncode)
        if done.returncode == 99:
            assert done.stderr.startswith("kecho-ctl: ") and done.stderr.count("\n") == 1, done
            assert not (support.RUN / name).exists()
        else:
            assert (done.returncode, done.stderr) == (0, ""), (limit, done)
            support.run_kecho("down", name)
    assert seen == ({0} if mode == "user" else {0, 99})


def test_nohup(name: str) -> None:
    """A signal that is ignored at the start stays ignored."""
    port = support.free_port()
    up = subprocess.Popen(
        ["nohup", support.KECHO_CTL, "up", "--mode=user", f"--name={name}", f"--port={port}", "--foreground"],
        env=support.clean_env(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with up:
        assert up.stdout and " is up" in up.stdout.readline()
        up.send_signal(signal.SIGHUP)
        assert support.run_kecho("check", name).returncode == 0
        assert support.run_kecho("down", name).returncode == 0
        assert up.wait(10) == 0


def test_veth_where_new_devices_have_no_ipv6() -> None:
    script = """
        ip link set lo up && sysctl -qw net.ipv6.conf.default.disable_ipv6=1
        cd /tmp && "$0" bench --compare user --topology veth --duration 0.1 --repeat 1 --json
    """
    done = support.within("--net", script)
    assert done.returncode == 0, done
    (run,) = json.loads(done.stdout)["runs"]
    assert run["endpoint"].startswith("198.18.") and run["latency_ns"]["count"] > 0


def test_no_address_to_send_from() -> None:
    """EADDRNOTAVAIL without an address of the target's family is not reported as a lack of ports."""
    script = 'ip link set lo up; sysctl -qw net.ipv6.conf.all.disable_ipv6=1; cd /tmp; "$0" bench [::1]:7117 --count 1'
    done = support.within("--net", script)
    assert done.returncode == 1
    assert "Cannot assign requested address; this machine has no address to reach it from" in done.stderr
    assert "ip_local_port_range" not in done.stderr


def test_no_free_port_to_send_from() -> None:
    script = """
        ip link set lo up; sysctl -qw net.ipv4.ip_local_port_range="40000 40001"; cd /tmp
        "$0" up --mode user --name "$1" --port 7117 && "$0" bench "$1" --connections 3 --count 3
        code=$?; "$0" down "$1"; exit $code
    """
    done = support.within("--net", script, f"pytest-{os.getpid()}-ports")
    assert done.returncode == 1
    assert "no local port is free, see net.ipv4.ip_local_port_range" in done.stderr


def test_a_link_local_address(service: Up) -> None:
    """The zone is part of the address."""
    script = """
        ip link set lo up; ip addr add fe80::17/64 dev lo; cd /tmp
        "$0" up --mode user --name "$1" --port 7117 --bind ::
        "$0" check "[fe80::17%lo]:7117" && "$0" bench "[fe80::17%lo]:7117" --count 10 --repeat 1 --json
        code=$?; "$0" down "$1" >/dev/null; exit $code
    """
    done = support.within("--net", script, f"pytest-{os.getpid()}-zone")
    assert done.returncode == 0, done
    assert "echoes" in done.stdout


def test_nothing_in_a_run(service: Up, tmp_path: Path) -> None:
    """A run whose only request is due after its end is not reported as interrupted."""
    one = service(path="user")
    done = support.run_kecho("bench", one.name, "--rate=0.1", "--duration=1", "--repeat=1", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "kecho-ctl: no request was answered\n")


def test_an_interval_that_begins_with_a_point(service: Up) -> None:
    one = service(path="user")
    done = support.run_kecho("stats", one.name, ".5", "1")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2)
