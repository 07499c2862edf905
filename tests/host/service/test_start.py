# SPDX-License-Identifier: MIT
"""How a service starts: what is compiled and kept, and what its processes hold when it is up."""

from __future__ import annotations

import os
import random
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import support

Up = Callable[..., support.Service]


def in_own_cache(script: str, *args: object) -> subprocess.CompletedProcess[str]:
    """Runs a script with a name and a port as first arguments, in a mount namespace with an empty /var/cache."""
    name = f"pytest-{os.getpid()}-{random.randrange(1 << 32):08x}"
    prologue = "set -e\nmount -t tmpfs none /var/cache\n"
    return support.within("--mount --propagation=private", prologue + script, name, support.free_port(), *args)


@pytest.mark.parametrize("mode", ["sockmap", "mirror"])
def test_the_second_time_nothing_is_compiled(mode: str) -> None:
    """And BCC, with the compiler in it, is not even imported. A service on another port serves as well."""
    script = """
        serve() { "$0" up --mode="$3" --name="$1" --port="$2" && "$0" check "$1" && "$0" down "$1"; }
        serve "$@"
        find /var/cache/kecho -type f | wc -l
        mount -t tmpfs none "$4"
        echo 'raise ImportError("bcc is imported")' >"$4/__init__.py"
        serve "$1" "$5" "$3"
        find /var/cache/kecho -type f | wc -l
        rm -r /var/cache/kecho
        serve "$@"
    """
    bcc = Path(__import__("bcc").__file__).parent
    done = in_own_cache(script, mode, bcc, support.free_port())
    said = done.stdout.splitlines()
    assert [line for line in said if line.isdigit()] == [{"sockmap": "2", "mirror": "1"}[mode]] * 2, done.stderr
    assert done.stdout.count("echoes: ") == done.stdout.count(" is down") == 2
    assert done.returncode == 1 and "ImportError: bcc is imported" in done.stderr


@pytest.mark.parametrize("options", ["-o ro,mode=0700", "-o mode=0777"], ids=["read-only", "others can write"])
def test_a_cache_that_cannot_be_used(options: str) -> None:
    """Then everything is compiled each time."""
    script = f"""
        mkdir /var/cache/kecho && mount -t tmpfs {options} none /var/cache/kecho
        "$0" up --mode=sockmap --name="$1" --port="$2" && "$0" check "$1" && "$0" logs "$1"; "$0" down "$1"
        ls -A /var/cache/kecho
    """
    done = in_own_cache(script)
    assert done.returncode == 0, done.stderr
    assert "echoes: " in done.stdout and done.stdout.splitlines()[-1].endswith(" is down")
    assert ("/var/cache/kecho is not used: " in done.stdout) == ("777" in options)


def test_killed_while_it_compiles() -> None:
    """The compiler ends with the controller, nothing is kept, and the next service comes up."""
    script = """
        "$0" up --mode=mirror --name="$1" --port="$2" --foreground &
        up=$!
        compiler=
        while ! [ "$compiler" ]; do
            sleep 0.02
            kill -0 $up
            for child in $(cat /proc/$up/task/$up/children); do
                if [ "$(cat /proc/$child/comm)" = kecho-compiler ]; then compiler=$child; fi
            done
        done
        kill -9 $up
        wait $up || true
        n=0
        while [ -e /proc/$compiler ] && ! grep -q '^State:.*zombie' /proc/$compiler/status; do
            n=$((n + 1)); [ $n -lt 100 ]; sleep 0.02
        done
        ls -A /var/cache/kecho 2>/dev/null || true
        "$0" up --mode=mirror --name="$1" --port="$2"
        "$0" check "$1"
        "$0" down "$1"
    """
    done = in_own_cache(script)
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert " is up: mode mirror" in first and "echoes: " in second and third.endswith(" is down")


@pytest.mark.parametrize(("mode", "most_mb"), [("sockmap", 40), ("user", 30)])
def test_resident_memory(service: Up, mode: str, most_mb: int) -> None:
    """Of all processes of a service together, with what they share counted for each. The compiler has gone."""
    one = service(mode=mode)
    resident_kb = {}
    for pid in support.session(one.pid):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        resident_kb[pid] = int(re.search(r"^Rss:\s+(\d+) kB", rollup, re.MULTILINE)[1])
        assert not re.search(r"lib(bcc|LLVM|clang)", Path(f"/proc/{pid}/maps").read_text())
    assert sum(resident_kb.values()) < most_mb * 1000, resident_kb
