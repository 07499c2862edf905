# SPDX-License-Identifier: MIT
"""bench and check refuse a service that is not reached from here by name: its port or address may be another's."""

from __future__ import annotations

import os
import random
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import support

Up = Callable[..., support.Service]


@pytest.fixture
def far(namespace: str) -> Iterator[tuple[str, int]]:
    """The name and port of a service in another namespace."""
    name, port = f"pytest-{os.getpid()}-{random.randrange(1 << 32):08x}", support.free_port()
    up = [support.KECHO_CTL, "up", "--mode=user", f"--name={name}", f"--port={port}"]
    subprocess.run(["ip", "netns", "exec", namespace, *up], env=support.clean_env(), check=True, timeout=60)
    yield name, port
    support.run_kecho("down", name)


@pytest.mark.parametrize("command", ["bench", "check"])
def test_refused_by_name_and_how_to_enter(far: tuple[str, int], service: Up, tmp_path: Path, command: str) -> None:
    name, port = far
    service(path="user", port=port)  # whom it would have measured
    done = support.run_kecho(command, name, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"kecho-ctl: {name} is in another network namespace; from within it: ")
    enter = shlex.split(done.stderr.partition("from within it: ")[2])
    assert enter[0] == "sudo" and enter[-2:] == ["bench", name]
    short = ["--count=10", "--repeat=1"] if command == "bench" else []
    there = [*enter[1:3], support.KECHO_CTL, command, name, *short]
    done = subprocess.run(there, env=support.clean_env(), cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_left_out_of_all(tmp_path: Path) -> None:
    """With a /run of its own, so that these are all the services there are."""
    script = """
        mount -t tmpfs none /run
        "$0" up --mode user --name near --port "$1" >/dev/null
        unshare --net "$0" up --mode user --name far --port "$1" >/dev/null
        "$0" bench --count 10 --repeat 1
        code=$?
        "$0" down near >/dev/null
        "$0" bench --count 10 --repeat 1
        echo "alone: $?"
        "$0" down far >/dev/null
        exit $code
    """
    done = subprocess.run(
        [
            "unshare",
            "--mount",
            "--propagation=private",
            "sh",
            "-c",
            script,
            support.KECHO_CTL,
            str(support.free_port()),
        ],
        env=support.clean_env(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done
    first, alone = done.stderr.splitlines()
    assert first.startswith("kecho-ctl: far is left out: in another network namespace; from within it: ")
    assert alone.startswith("kecho-ctl: far is in another network namespace; from within it: ")
    rows = [line.split()[0] for line in done.stdout.splitlines() if line]
    assert "near" in rows and "far" not in rows and done.stdout.endswith("alone: 1\n")


@pytest.mark.parametrize("command", ["bench", "check"])
def test_a_service_whose_address_has_gone(command: str) -> None:
    """What is sent to such an address leaves the machine."""
    script = f"""
        mount -t tmpfs none /run
        ip link set lo up
        ip address add 198.51.100.7/32 dev lo
        "$0" up --mode user --name gone --bind 198.51.100.7 --port "$1" >/dev/null
        "$0" check gone >/dev/null || exit 9
        ip address del 198.51.100.7/32 dev lo
        "$0" {command} gone
        code=$?
        "$0" down gone
        exit $code
    """
    done = support.within("--mount --net --propagation=private", script, support.free_port())
    assert (done.returncode, done.stdout) == (1, "gone is down\n")
    assert done.stderr == "kecho-ctl: gone is bound to 198.51.100.7, which no device here has any more\n"
