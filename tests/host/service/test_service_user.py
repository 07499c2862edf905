# SPDX-License-Identifier: MIT
"""No account can become the user of a service, not even in a user namespace.

Each test has its own /etc/subuid in a mount namespace.
"""

from __future__ import annotations

import os
import random
import subprocess

import pytest
import support

# The range that useradd gives the fifth account, and the first two blocks that a service would take.
GRANTED = ((362_144, 65_536), (0x7000_0000, 131_072))
SUBUID = "".join(f"nobody:{first}:{count}\n" for first, count in GRANTED)

# Runs as an account: maps all ids that /etc/subuid grants it into a user namespace, as newuidmap(1) does, becomes the
# service's user there if that is among them, and tries to kill the service's processes.
ATTACK = """if True:
    import ctypes, os, signal, sys
    uid, *pids = map(int, sys.argv[1:])
    rows, inner = ["0 65534 1"], 1
    there = None
    for line in open("/etc/subuid"):
        _, first, count = line.split(":")
        rows.append(f"{inner} {int(first)} {int(count)}")
        if int(first) <= uid < int(first) + int(count):
            there = inner + uid - int(first)
        inner += int(count)
    made, mapped = os.pipe(), os.pipe()
    if (child := os.fork()) == 0:
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        libc = ctypes.CDLL(None)  # this Python has no kecho
        libc.prctl(4, 1)  # PR_SET_DUMPABLE, or its maps would be root's
        assert libc.unshare(0x10000000) == 0  # CLONE_NEWUSER
        os.write(made[1], b"x")
        os.read(mapped[0], 1)
        os.setresuid(there or 0, there or 0, there or 0)
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
                print("killed", pid)
            except PermissionError:
                print("refused", pid)
        sys.exit()
    os.read(made[0], 1)
    with open(f"/proc/{child}/uid_map", "w") as file:
        file.write("\\n".join(rows) + "\\n")
    os.write(mapped[1], b"x")
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def in_own_etc(subuid: str, script: str, *args: object) -> subprocess.CompletedProcess[str]:
    """Runs a shell script with this text as /etc/subuid and /etc/subgid."""
    preamble = """
        kecho=$0
        touch /etc/subuid /etc/subgid
        printf %s "$1" >/run/kecho-subuid
        mount --bind /run/kecho-subuid /etc/subuid
        mount --bind /run/kecho-subuid /etc/subgid
        shift
    """
    preamble = preamble.replace("/run/kecho-subuid", f"/run/kecho-subuid-{os.getpid()}")
    prefix = ("unshare", "--mount", "--propagation=private", "sh", "-ec", preamble + script)
    try:
        return support.run_kecho(subuid, *args, prefix=prefix)
    finally:
        os.unlink(f"/run/kecho-subuid-{os.getpid()}")


def test_an_account_cannot_end_it_from_its_user_namespace() -> None:
    name, port = f"pytest-{os.getpid()}-{random.randrange(1 << 32):08x}", support.free_port()
    script = """
        "$kecho" up --mode=user --name="$1" --port="$2" >&2
        trap '"$kecho" down "$1" >&2' EXIT
        pids=$(grep -o '"pid": [0-9]*' /run/kecho/"$1"/state.json | grep -o '[0-9]*')
        pids="$pids $(cat /proc/$pids/task/*/children)"
        set -- "$1" "$3" $pids
        uid=$(stat -c %u /proc/"$3")
        attack=$2
        name=$1
        shift 2
        python3 -c "$attack" "$uid" "$@"
        set -- "$name"
        "$kecho" status "$name" >&2
    """
    done = in_own_etc(SUBUID, script, name, port, ATTACK)
    assert done.returncode == 0, done
    said = done.stdout.split()
    assert len(said) == 4 and said[::2] == ["refused"] * 2, done.stdout


@pytest.mark.parametrize("granted", ["nobody:100000:4294867295\n"])
def test_where_every_id_is_somebodys(granted: str) -> None:
    done = in_own_etc(granted, '"$kecho" up --mode=user --name=nowhere --port="$1"', support.free_port())
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1), done
    assert "user id" in done.stderr and "/etc/subuid" in done.stderr
    assert not (support.RUN / "nowhere").exists()
