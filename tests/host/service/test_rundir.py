# SPDX-License-Identifier: MIT
"""A hostile /run/kecho: folders that others can write to are refused, left-overs are removed.

Each is made in a mount namespace with its own /run, so that a defect removes nothing of this machine.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import support

Kecho = Callable[..., "subprocess.CompletedProcess[str]"]
Up = Callable[..., support.Service]
MODES = support.MODES_WITHOUT_MODULE
NAME = "hostile"
COMMANDS = ("up --mode=user --name=hostile --port=$PORT", "down hostile", "status hostile", "stats --name hostile")
# The fields of a state that the controller has written.
STATE: dict[str, Any] = {
    "schema": 1,
    "name": NAME,
    "mode": "user",
    "port": 7,
    "binds": ["127.0.0.1"],
    "pid": 2**22 + 1,  # above the kernel's PID_MAX_LIMIT
    "state": "up",
    "paths": ["user"],
    "netns": 1,
}


def in_own_run(script: str, *args: object, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Runs a shell script with its own /run. There `kecho` is kecho-ctl, and `precious` a file that must survive."""
    preamble = """
        mount -t tmpfs -o mode=755 none /run
        mkdir /run/else
        echo kept >/run/else/precious
        PORT=$1
        kecho=$0
        shift
    """
    prefix = ("unshare", "--mount", "--propagation=private", "sh", "-ec", preamble + script)
    return support.run_kecho(support.free_port(), *args, prefix=prefix, **kwargs)


def with_answers(answer: str, script: str, *args: object, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """As in_own_run, with a server on the control socket. `answer` is its Python code, with the socket as `client`."""
    server = f"""if True:
        import contextlib, socket, sys, time
        sock = socket.socket(socket.AF_UNIX)
        sock.bind("/run/kecho/{NAME}/control.sock")
        sock.listen()
        open("/run/kecho/{NAME}/control.sock.ready", "w").close()
        while True:
            client = sock.accept()[0]
            with contextlib.suppress(OSError):
                {answer}
            client.close()
    """
    serve = f"""
        mkdir -m 755 /run/kecho /run/kecho/{NAME}
        server=$1
        shift
        /usr/bin/python3 -c "$server" "$@" &
        trap "kill $!" EXIT
        until [ -e /run/kecho/{NAME}/control.sock.ready ]; do sleep 0.01; done
    """
    return in_own_run(serve + script, server, *args, **kwargs)


def assert_one_line(stderr: str, *words: str) -> None:
    assert stderr.startswith("kecho-ctl: ") and stderr.count("\n") == 1, stderr
    for word in words:
        assert word in stderr


# ---- folders that are not root's alone ----

FOREIGN = {
    "base-link": "mkdir -m 755 /run/else/base; ln -s /run/else/base /run/kecho",
    "base-foreign": "mkdir -m 755 /run/kecho; chown 65534 /run/kecho",
    "base-for-a-group": "mkdir /run/kecho; chmod 775 /run/kecho",
    "base-file": "touch /run/kecho",
    "base-fifo": "mkfifo /run/kecho",
    "link": "mkdir -m 755 /run/kecho /run/else/hostile; ln -s /run/else/hostile /run/kecho/hostile",
    "foreign": "mkdir -m 755 /run/kecho /run/kecho/hostile; chown 65534 /run/kecho/hostile",
    "for-all": "mkdir -m 755 /run/kecho; mkdir /run/kecho/hostile; chmod 1777 /run/kecho/hostile",
    "file": "mkdir -m 755 /run/kecho; touch /run/kecho/hostile",
}


@pytest.mark.parametrize("prepared", FOREIGN)
def test_a_folder_that_is_not_roots_alone(prepared: str) -> None:
    """Every command refuses the folder and names it, and leaves what it leads to alone."""
    script = f"""
        {FOREIGN[prepared]}
        before=$(find /run -printf '%p %y %U %m %s\\n' | sort)
        for command in {" ".join(f'"{command}"' for command in COMMANDS)}; do
            code=0
            "$kecho" $command || code=$?
            echo "$code"
        done
        after=$(find /run -printf '%p %y %U %m %s\\n' | sort)
        test "$before" = "$after"
        test "$(cat /run/else/precious)" = kept
    """
    done = in_own_run(script.replace("$PORT", str(support.free_port())))
    assert done.returncode == 0, done
    folder = "/run/kecho" if prepared.startswith("base") else "/run/kecho/hostile"
    lines = done.stderr.splitlines()
    assert len(lines) == len(COMMANDS)
    for line, code, command in zip(lines, done.stdout.split(), COMMANDS, strict=True):
        assert line.startswith("kecho-ctl: "), line
        if command.startswith("status") and folder != "/run/kecho":
            assert (code, line) == ("1", f"kecho-ctl: no service {NAME} is up")
        else:
            assert code == "3" and f"{folder} is not a folder of root's alone: remove {folder}" in line


def test_status_names_the_folder_that_it_leaves_out(service: Up, kecho: Kecho) -> None:
    """`status` still lists the other services."""
    one = service(mode="user")
    foreign = support.RUN / f"pytest-{os.getpid()}-{random.randrange(1 << 32):08x}"
    foreign.mkdir(mode=0o755)
    try:
        os.chown(foreign, 65534, 65534)
        done = kecho("status", "--json")
    finally:
        foreign.rmdir()
    assert one.name in [found["name"] for found in json.loads(done.stdout)["services"]]
    assert_one_line(done.stderr, str(foreign), "root's alone")


# ---- what a dead service, or a careless root, left in the folder ----


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("state", ["link", "folder", "fifo", "nonsense"])
def test_left_overs_are_cleared_away(service: Up, tmp_path: Path, mode: str, state: str) -> None:
    """Files, links, sockets, pipes and folders are removed; the targets of links stay."""
    precious = tmp_path / "precious"
    precious.write_text("kept")
    name = f"pytest-{os.getpid()}-{random.randrange(1 << 32):08x}"
    folder = support.RUN / name
    folder.mkdir(parents=True, mode=0o755)
    try:
        for link in ("state.json.new", "log"):
            (folder / link).symlink_to(precious)
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(folder / "control.sock"))
        (folder / "more" / "and more").mkdir(parents=True)
        (folder / "more" / "link").symlink_to(tmp_path)
        os.mkfifo(folder / "fifo")
        os.mkfifo(folder / "lock")
        match state:
            case "link":
                (folder / "state.json").symlink_to(precious)
            case "folder":
                (folder / "state.json").mkdir()
            case "fifo":
                os.mkfifo(folder / "state.json")
            case "nonsense":
                (folder / "state.json").write_text("{")
        one = service(mode=mode, name=name)
        with one.client() as client:
            support.echo(client, b"kecho")
        assert {entry.name for entry in folder.iterdir()} == {"lock", "state.json", "control.sock"}
    finally:
        if not (folder / "control.sock").is_socket():
            shutil.rmtree(folder)
    assert precious.read_text() == "kept" and precious.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("kind", ["ln -s /run/else/precious", "mkdir", "ln -s /run/else/nothing"])
def test_a_lock_that_is_none(kind: str) -> None:
    script = f"""
        mkdir -m 755 /run/kecho /run/kecho/{NAME}
        {kind} /run/kecho/{NAME}/lock
        code=0
        "$kecho" up --mode=user --name={NAME} --port="$PORT" || code=$?
        test "$(cat /run/else/precious)" = kept
        ! test -e /run/else/nothing
        exit "$code"
    """
    done = in_own_run(script)
    assert (done.returncode, done.stdout) == (1, "")
    assert_one_line(done.stderr, f"/run/kecho/{NAME}/lock")


# ---- a state that makes no sense ----


def state_with(**fields: object) -> bytes:
    return json.dumps({**STATE, **fields}).encode()


NONSENSE = {
    "empty": b"",
    "half": state_with()[:-9],
    "binary": bytes(range(256)),
    "no-object": b"[]",
    "nothing-in-it": b"{}",
    "deep": b"[" * 50_000,
    "deep-inside": state_with().replace(b'["user"]', b"[" * 9_000 + b"]" * 9_000),
    "huge": state_with(config="x" * (1 << 20)),
    "long-number": state_with().replace(b'"port": 7', b'"port": ' + b"7" * 9_999),
    "name": state_with(name="another"),
    "pid-0": state_with(pid=0),
    "pid-negative": state_with(pid=-1),
    "pid-text": state_with(pid="1"),
    "pid-true": state_with(pid=True),
    "pid-float": state_with(pid=1.5),
    "pid-list": state_with(pid=[1]),
    "port-null": state_with(port=None),
    "mode-number": state_with(mode=3),
    "mode-escape": state_with(mode="\x1b[2J"),
    "paths-text": state_with(paths="user"),
    "paths-numbers": state_with(paths=[1]),
    "netns-text": state_with(netns="x"),
}


@pytest.mark.parametrize("as_nobody", [False, True], ids=["root", "nobody"])
def test_states_that_make_no_sense(as_nobody: bool, tmp_path: Path) -> None:
    """`status` reports each in a line and lists the others, `stats` says the same, and `down` removes them."""
    tmp_path.chmod(0o755)
    for name, content in NONSENSE.items():
        (tmp_path / name).write_bytes(content if name != "name" else state_with(name="not " + NAME))
    script = """
        mkdir -m 755 /run/kecho
        for state in "$1"/*; do
            name=${state##*/}
            mkdir -m 755 "/run/kecho/$name"
            sed "s/hostile/$name/" "$state" >"/run/kecho/$name/state.json"
            chmod 644 "/run/kecho/$name/state.json"
        done
        mkdir -m 755 /run/kecho/died /run/kecho/pipe /run/kecho/link
        mkfifo -m 644 /run/kecho/pipe/state.json
        ln -s /run/else/precious /run/kecho/link/state.json
        echo "$2" >/run/kecho/died/state.json
        as=
        if [ "$3" = True ]; then as='setpriv --reuid=65534 --regid=65534 --clear-groups'; fi
        ! $as "$kecho" status --json
        ! $as "$kecho" stats --name deep
        ! $as "$kecho" stats --name pid-text --json
        ! $as "$kecho" stats --name pipe
        "$kecho" down --all >/run/else/down
        test "$(cat /run/else/precious)" = kept
        ! test -e /run/kecho
    """
    done = in_own_run(script, tmp_path, json.dumps({**STATE, "name": "died"}), as_nobody)
    assert done.returncode == 0, done
    (found,) = json.loads(done.stdout)["services"]
    assert (found["name"], found["state"], found["pid"]) == ("died", "died", STATE["pid"])
    lines = done.stderr.splitlines()
    folders = sorted([*NONSENSE, "link", "pipe"])
    assert len(lines) == len(folders) + 3
    for line, name in zip(lines, [*folders, "deep", "pid-text", "pipe"], strict=True):
        assert line == (
            f"kecho-ctl: /run/kecho/{name}/state.json makes no sense: "
            f"`kecho-ctl down {name}` clears it away if nothing runs there"
        )


def test_a_controller_that_drips() -> None:
    """A slow answer delays root's `status` no longer than silence does."""
    script = f"""
        echo "$1" >/run/kecho/{NAME}/state.json
        timeout 30 "$kecho" status --json && exit 9
        timeout 30 "$kecho" stats {NAME} && exit 9
        true
    """
    drip = 'while True: client.sendall(b" "); time.sleep(0.5)'
    done = with_answers(drip, script, json.dumps(STATE), timeout=100)
    assert done.returncode == 0, done
    assert json.loads(done.stdout)["services"][0]["state"] == "silent"
    assert_one_line(done.stderr, NAME, "does not answer within")


ANSWERS = {
    "nothing": b"",
    "no-json": b"hello\n",
    "half": b'{"name": "hostile"',
    "deep": b"[" * 50_000 + b"\n",
    "list": b"[]\n",
    "number": b"3\n",
    "empty": b"{}\n",
    "no-schema": b'{"name": "hostile", "pid": 1}\n',
    "pid-text": state_with(pid="1") + b"\n",
    "escape": b'{"schema": 1, "name": "hostile", "mode": "\\u001b[2J", "port": 7, "uptime_s": 1, "kernel": "",'
    b' "since_ns": 1, "connections": {}, "paths": {}}\n',
    "wrong-types": b'{"schema": 1, "name": [], "connections": 3, "paths": {"x": null}}\n',
    "error-escape": b'{"error": "\\u001b[2J"}\n',
    "error-object": b'{"error": {"a": ["b\\n\\u001b[2J"]}}\n',
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_service_that_answers_nonsense(answer: str, tmp_path: Path) -> None:
    """As a compromised service may answer. `down` does not remove the folder while the name is locked."""
    (tmp_path / "answer").write_bytes(ANSWERS[answer])
    script = f"""
        exec 9>/run/kecho/{NAME}/lock
        flock 9
        for command in stats reset; do
            "$kecho" $command {NAME} && exit 9
        done
        "$kecho" status >&2
        "$kecho" down {NAME} && exit 9
        test -S /run/kecho/{NAME}/control.sock
    """
    answers = 'client.recv(99); client.sendall(open(sys.argv[1], "rb").read())'
    done = with_answers(answers, script, tmp_path / "answer")
    assert done.returncode == 0, done
    assert "Traceback" not in done.stderr
    *lines, last = done.stderr.splitlines()
    assert all(line.startswith("kecho-ctl: ") for line in [*lines[:2], last])
    assert all(NAME in line and line.isprintable() for line in [*lines[:2], last])
    assert lines[2:] == ["nothing is up"]


MISLEADING: dict[str, dict[str, object]] = {
    "none": {},
    "trouble-escape": {"trouble": "\x1b[2J"},
    "bind-escape": {"binds": ["\x1b[2J"]},
    "bind-number": {"binds": [1]},
    "uptime-text": {"uptime_s": "x"},
    "uptime-endless": {"uptime_s": float("inf")},
    "connections-text": {"connections": {"active": "x", "total": 0, "rejected": 0, "aborted": 0}},
    "listen-text": {"listen": {"drops": "x"}},
    "state-escape": {"state": "\x1b[2J"},
    "port-huge": {"port": 10**30},
    "more": {"added_later": {"a": [1]}},
}


@pytest.mark.parametrize("changes", MISLEADING)
def test_a_status_that_makes_no_sense(changes: str, tmp_path: Path) -> None:
    """Of a service that somebody has broken into: `status` says what it said when it came up, and that it is silent."""
    honest = {"uptime_s": 1.5, "connections": dict.fromkeys(("active", "total", "rejected", "aborted"), 0)}
    (tmp_path / "answer").write_bytes(state_with(**{**honest, **MISLEADING[changes]}) + b"\n")
    (tmp_path / "state").write_bytes(state_with())
    script = f"""
        cp "$2" /run/kecho/{NAME}/state.json
        "$kecho" status {NAME} || true
        "$kecho" status {NAME} --json || true
    """
    answers = 'client.recv(99); client.sendall(open(sys.argv[1], "rb").read())'
    done = with_answers(answers, script, tmp_path / "answer", tmp_path / "state")
    assert done.returncode == 0 and done.stderr == "", done
    assert all(line.isprintable() for line in done.stdout.splitlines())
    *_, last = done.stdout.splitlines()
    assert json.loads(last)["services"][0]["state"] == ("up" if changes in ("none", "more") else "silent")


def test_who_holds_the_lock_has_not_died(tmp_path: Path) -> None:
    """It is coming up, or ending: nothing listens on its control socket then."""
    (tmp_path / "state").write_bytes(state_with())
    hold = """if True:
        import fcntl, subprocess, sys
        lock = open(sys.argv[1], "w")
        for how in (fcntl.LOCK_EX, fcntl.LOCK_UN):
            fcntl.flock(lock, how)
            subprocess.run([sys.argv[2], "status", "--json"])
    """
    script = f"""
        mkdir -m 755 /run/kecho /run/kecho/{NAME}
        cp "$1" /run/kecho/{NAME}/state.json
        /usr/bin/python3 -c "$2" /run/kecho/{NAME}/lock "$kecho"
    """
    done = in_own_run(script, tmp_path / "state", hold)
    assert [json.loads(line)["services"][0]["state"] for line in done.stdout.splitlines()] == ["silent", "died"], done
