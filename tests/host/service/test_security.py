# SPDX-License-Identifier: MIT
"""Security: the privileges of a running service, and hostile use of its folder and control socket.

docs/security.md names these tests beside its claims.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import support
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kecho.kernel import privileges, syscall, userids

Kecho = Callable[..., "subprocess.CompletedProcess[str]"]
Up = Callable[..., support.Service]
NOBODY: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []}
MODES = support.MODES_WITHOUT_MODULE
SERVED = ("sockmap", "user")  # the modes in which user-echo-server accepts
SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def comm(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def processes(one: support.Service) -> dict[str, int]:
    """The pids of a service's processes, by name."""
    return {comm(pid): pid for pid in support.session(one.pid)}


def rights(pid: int) -> list[dict[str, str]]:
    """The fields of /proc/PID/status for each thread: privileges belong to threads."""
    return [
        dict(re.findall(r"^(\w+):[ \t]*(.*)$", (task / "status").read_text(), re.MULTILINE))
        for task in Path(f"/proc/{pid}/task").iterdir()
    ]


def descriptors(pid: int) -> Counter[str]:
    """The number of a process's descriptors of each kind: what they lead to, without numbers."""
    links = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            links.append(os.readlink(entry))
    return Counter(re.sub(r"^anon_inode:\[?([\w-]+)\]?$|:?\[?\d+\]?$", r"\1", link) for link in links)


def low_port() -> int:
    """A free port that only root may listen on."""
    for port in random.sample(range(600, 1024), 400):
        with socket.socket(socket.AF_INET6) as sock:
            try:
                sock.bind(("::", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port below 1024")


def echoes(one: support.Service) -> int:
    return sum(int(path["echoes"]) for path in one.stats()["paths"].values())


# ---- what a service keeps after it has come up ----


@pytest.fixture(scope="module")
def inherited() -> Iterator[tuple[int, int]]:
    """A pipe. `lasting` inherits its writing end, as from a shell that calls `up`."""
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


@pytest.fixture(scope="module", params=MODES)
def lasting(request: pytest.FixtureRequest, inherited: tuple[int, int]) -> Iterator[support.Service]:
    """A service on a privileged port, for all tests that do not harm it."""
    one = support.up(mode=request.param, port=low_port(), run={"pass_fds": inherited[1:]})
    yield one
    one.down()


def test_no_capability_is_left(lasting: support.Service) -> None:
    """No thread of the service has a capability in any set, or a way to get one back."""
    found = processes(lasting)
    assert found.keys() == {"kecho-ctl", "kecho-keeper"} | ({"user-echo-serve"} if lasting.mode in SERVED else set())
    uid = str(userids.id_for(lasting.port))
    for name, pid in found.items():
        for status in rights(pid):
            assert {key: int(status[key], 16) for key in SETS} == dict.fromkeys(SETS, 0), name
            assert status["NoNewPrivs"] == "1", name
            expected = "0" if name == "kecho-keeper" else uid
            assert status["Uid"].split() == status["Gid"].split() == [expected] * 4, name
            assert expected == "0" or status["Groups"].split() == [], name


def test_descriptors_that_are_left(lasting: support.Service) -> None:
    """The service has only descriptors that it uses. The only file is the lock on its name."""
    found = {name: descriptors(pid) for name, pid in processes(lasting).items()}
    assert found["kecho-keeper"] == {"/dev/null": 2, "socket": 1}
    controller = {
        "/dev/null": 3,
        str(support.RUN / lasting.name / "lock"): 1,
        "eventpoll": 1,
        "socket": 4,  # the control socket, that of the keeper, and asyncio's pair
    }
    if lasting.mode in SERVED:
        server = {"/dev/null": 3, "pipe": 1, "signalfd": 1, "socket": 2, "eventpoll": 1}
        controller |= {"pidfd": 1, "pipe": 1, "/memfd:kecho-stats (deleted)": 1}
        if lasting.mode == "sockmap":
            server |= {"pipe": 2, "timerfd": 1}  # a pipe of the connections to reset
            controller["pipe"] += 1
        assert found["user-echo-serve"] == server
    if lasting.mode != "user":
        bpf = {kind: found["kecho-ctl"].pop(kind) for kind in ("bpf-map", "bpf-prog", "bpf_link", "btf")}
        assert all(bpf.values())
    if lasting.mode == "mirror":
        controller["socket"] += 3  # two hold the port, and rtnetlink: changes of devices
    assert found["kecho-ctl"] == controller


def test_inherited_descriptors_are_closed(lasting: support.Service, inherited: tuple[int, int]) -> None:
    """The shell that called `up` may have had any file open."""
    pipe = os.readlink(f"/proc/self/fd/{inherited[1]}")
    for name, pid in processes(lasting).items():
        assert pipe not in [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()], name


def test_a_port_of_roots(lasting: support.Service, kecho: Kecho) -> None:
    """The port is bound before the privilege is given up. Everything else works without it."""
    assert lasting.port < 1024
    before = echoes(lasting)
    for family in (socket.AF_INET, socket.AF_INET6):
        with lasting.client(family) as client:
            support.echo(client, b"kecho")
    assert echoes(lasting) == before + 2
    assert kecho("reset", lasting.name).returncode == 0
    assert echoes(lasting) == 0


def test_another_user_cannot_end_it(lasting: support.Service) -> None:
    for pid in support.session(lasting.pid):
        code = f"import os\ntry: os.kill({pid}, 9)\nexcept PermissionError: print('refused')"
        done = subprocess.run(["/usr/bin/python3", "-c", code], capture_output=True, text=True, check=True, **NOBODY)
        assert done.stdout == "refused\n"


@pytest.mark.parametrize(
    ("mode", "lacking"),
    [("user", "+setuid"), ("user", "+setpcap"), ("user", ""), ("sockmap", "")],
    ids=["user, no setpcap", "user, no setuid", "user, the least", "sockmap, the least"],
)
def test_up_where_capabilities_are_missing(service: Up, mode: str, lacking: str) -> None:
    """As in a container: the service gives up as much as the capabilities of `up` allow."""
    has = "+setgid,+net_bind_service," + ("+bpf,+perfmon,+net_admin,+syslog," if mode == "sockmap" else "")
    prefix = ["setpriv", f"--bounding-set=-all,{has}{lacking or '-setgid'}", "--inh-caps=-all"]
    one = service(mode=mode, run={"prefix": prefix})
    support.wait_for(lambda: "kecho-keeper" in processes(one), "the keeper, which has another name at first")
    names = processes(one).keys() - {"kecho-keeper"}
    for name in names:
        for status in rights(processes(one)[name]):
            held = [int(status[key], 16) for key in SETS if key != "CapBnd"]
            assert held == [0] * 4 and status["NoNewPrivs"] == "1"
            changed = str(userids.id_for(one.port)) if lacking == "+setuid" else "0"
            assert status["Uid"].split() == [changed] * 4
            assert lacking == "+setuid" or not lacking or not int(status["CapBnd"], 16)
    with one.client() as client:
        support.echo(client, b"kecho")
    assert echoes(one) == 1


def test_up_in_a_user_namespace() -> None:
    """As in a rootless container, whose root has no privilege outside and no other user to change to."""
    script = """
        mount -t tmpfs -o mode=755 none /run
        trap '"$0" down "$1" >&2' EXIT
        "$0" up --mode=user --name="$1" --port="$2" >&2
        exec 3<>"/dev/tcp/127.0.0.1/$2"
        echo kecho >&3
        read -r line <&3
        echo "$line"
        "$0" status "$1" >&2
        for pid in $(cat /run/kecho/"$1"/state.json | grep -o '"pid": [0-9]*' | grep -o '[0-9]*'); do
            grep -h -e '^CapPrm' -e '^CapEff' -e '^NoNewPrivs' /proc/"$pid"/task/*/status
        done
    """
    if subprocess.run(["unshare", "--user", "true"], capture_output=True, check=False).returncode:
        pytest.skip("user namespaces are switched off")
    name, port = f"pytest-{os.getpid()}-{random.randrange(1 << 32):08x}", support.free_port()
    prefix = ("unshare", "--user", "--map-root-user", "--mount", "bash", "-ec", script)
    done = support.run_kecho(name, port, prefix=prefix)
    assert done.returncode == 0, done
    assert done.stdout.split() == ["kecho", "CapPrm:", "0" * 16, "CapEff:", "0" * 16, "NoNewPrivs:", "1"]


def test_up_where_the_kernels_symbols_are_hidden(kecho: Kecho) -> None:
    """`up` names the missing capability, where BCC would fail with "Invalid argument"."""
    few = ["setpriv", "--bounding-set=-all,+bpf,+perfmon,+net_admin", "--inh-caps=-all"]
    shown = subprocess.run([*few, "cat", "/proc/kallsyms"], capture_output=True, text=True, check=True).stdout
    if any(int(line.split()[0], 16) for line in shown.splitlines()):
        pytest.skip("this kernel shows its symbols to everybody (perf_event_paranoid, kptr_restrict)")
    done = kecho("up", "--mode=sockmap", f"--port={support.free_port()}", prefix=few)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
    assert "CAP_SYSLOG" in done.stderr


@pytest.mark.parametrize("mode", MODES)
def test_a_checkout_that_only_root_may_read(kecho: Kecho, mode: str) -> None:
    """The controller loads all Python modules that it needs while it is root."""
    name, port = f"pytest-{os.getpid()}-{random.randrange(1 << 32):08x}", support.free_port()
    script = """
        root=$1
        shift
        mount --bind "$root" /mnt
        mount -t tmpfs -o mode=700 none "${root%/*}"
        mkdir "$root"
        mount --move /mnt "$root"
        kecho=$root/.venv/bin/kecho-ctl
        setpriv --reuid=65534 --clear-groups ls "$root" 2>/dev/null && exit 9
        trap '"$kecho" down "$2" >&2' EXIT
        "$kecho" up --mode="$1" --name="$2" --port="$3" >&2
        "$root/.venv/bin/python" -c '
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 30) as sock:
    sock.sendall(b"kecho")
    assert sock.recv(5) == b"kecho"
    sock.shutdown(socket.SHUT_WR)
    assert sock.recv(5) == b""
' "$3"
        "$kecho" status "$2" >&2
        "$kecho" stats --json --name "$2"
        "$kecho" reset "$2"
    """
    done = subprocess.run(
        ["unshare", "--mount", "--propagation=private", "sh", "-ec", script, "sh", support.ROOT, mode, name, str(port)],
        env=support.clean_env(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=support.TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done
    assert '"echoes": 1' in done.stdout
    assert not (support.RUN / name).exists()


def test_a_keeper_that_was_killed(service: Up, kecho: Kecho) -> None:
    """The service goes on; `down` does what the keeper would have done."""
    one = service(mode="user")
    os.kill(processes(one)["kecho-keeper"], signal.SIGKILL)
    with one.client() as client:
        support.echo(client, b"kecho")
    assert (support.RUN / one.name).exists()
    done = kecho("down", one.name)
    assert (done.returncode, done.stdout) == (0, f"{one.name} is down\n"), done.stderr
    one.belongings.assert_gone()


# ---- giving up privileges ----


def in_child(code: str, *args: object) -> str:
    """Runs code in its own process, which may change its privileges, and returns what it prints."""
    done = subprocess.run(
        [support.ROOT / ".venv/bin/python", "-c", code, *map(str, args)],
        env=support.clean_env(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_kept_is_not_inherited() -> None:
    """The capability that mode module keeps, CAP_SYS_MODULE, is not passed to programs it runs."""
    uid = userids.id_for(0)
    code = f"""if True:
        import subprocess
        from kecho.kernel import privileges
        privileges.drop({{privileges.CAP_SYS_MODULE}}, {uid})
        print(open("/proc/self/status").read(), flush=True)
        subprocess.run(["cat", "/proc/self/status"], check=True)
    """
    own, child = (dict(re.findall(r"^(\w+):[ \t]*(.*)$", text, re.MULTILINE)) for text in in_child(code).split("\n\n"))
    kept = {**dict.fromkeys(SETS, 0), **dict.fromkeys(("CapEff", "CapPrm"), 1 << privileges.CAP_SYS_MODULE)}
    assert {key: int(own[key], 16) for key in SETS} == kept
    assert {key: int(child[key], 16) for key in SETS} == dict.fromkeys(SETS, 0)
    assert (own["Uid"].split(), own["NoNewPrivs"]) == ([str(uid)] * 4, "1")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may read; tmp_path is not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_what_is_dropped_does_not_come_back(open_folder: Path) -> None:
    """Neither a change of user nor a set-user-ID program of root brings privileges back."""
    marked = open_folder / "id"
    shutil.copy("/usr/bin/id", marked)
    marked.chmod(0o4755)
    assert subprocess.run([marked, "-u"], capture_output=True, text=True, check=True, **NOBODY).stdout == "0\n"
    uid = userids.id_for(0)
    code = f"""if True:
        import os, subprocess, sys
        from kecho.kernel import privileges
        privileges.drop((), {uid})
        for change in (os.setuid, os.setgid):
            try: change(0)
            except PermissionError: print("refused")
        sys.stdout.flush()
        subprocess.run([sys.argv[1], "-u"], check=True)
    """
    assert in_child(code, marked).split() == ["refused", "refused", str(uid)]


def test_no_group_is_left() -> None:
    """The caller of `up` may be in groups that give access to files or devices."""
    code = f"""if True:
        import os
        from kecho.kernel import privileges
        os.setgroups([4, 27])
        privileges.drop((), {userids.id_for(0)})
        print(os.getgroups())
    """
    assert in_child(code) == "[]\n"


def test_what_ends_with_its_parent_goes_on_to() -> None:
    """A change of user clears PR_SET_PDEATHSIG in the kernel. `bench --compare` relies on it, so it is set again."""
    code = f"""if True:
        import os
        from kecho.kernel import privileges, process
        process.end_with_parent(os.getppid())
        privileges.drop((), {userids.id_for(0)})
        print(process.ends_by())
    """
    assert in_child(code) == f"{int(signal.SIGTERM)}\n"


def test_several_threads_are_not_half_dropped() -> None:
    code = """if True:
        import threading
        from kecho.model import errors
        from kecho.kernel import privileges
        end = threading.Event()
        threading.Thread(target=end.wait).start()
        before = privileges.capabilities()
        try: privileges.drop((), None)
        except errors.KechoError: print("refused")
        assert privileges.capabilities() == before
        end.set()
    """
    assert in_child(code) == "refused\n"


def test_a_capability_that_is_needed_is_found(tmp_path: Path) -> None:
    """needed() finds it by trying without it, and restores all capabilities."""
    (tmp_path / "file").touch()
    code = """if True:
        import os, sys
        from kecho.kernel import privileges
        file, chown, kill = sys.argv[1], 0, 5
        before = [privileges.capabilities(which) for which in ("Eff", "Prm", "Inh")]
        print(sorted(privileges.needed((kill, chown), lambda: os.chown(file, 1, 1))))
        print(sorted(privileges.needed((kill, chown), lambda: os.stat(file))))
        assert before == [privileges.capabilities(which) for which in ("Eff", "Prm", "Inh")]
    """
    assert in_child(code, tmp_path / "file") == "[0]\n[]\n"


# ---- the control socket under a fuzzer ----

# No requests that change the service for root: the tests run as root.
OPS = st.one_of(
    st.sampled_from(["status", "stats", "", "Down", "down ", "__init__"]),
    st.text(max_size=20).filter(lambda op: op not in ("down", "reset")),
    st.integers(),
    st.floats(),
    st.none(),
    st.lists(st.text(max_size=3), max_size=3),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
REQUESTS = st.builds(lambda op, more: json.dumps({**more, "op": op}).encode(), OPS, st.dictionaries(st.text(), JSON))
LINES = st.one_of(
    st.binary(max_size=300),
    REQUESTS,
    JSON.map(lambda value: json.dumps(value).encode()),
    st.tuples(REQUESTS, st.integers(0, 200)).map(lambda cut: cut[0][: cut[1]]),
    st.tuples(REQUESTS, st.sampled_from(["utf-16", "utf-32", "utf-8-sig"])).map(lambda c: c[0].decode().encode(c[1])),
    st.sampled_from([b"[" * 60_000, b'{"op":' * 9_000, b"x" * 70_000, b"x" * (1 << 20), bytes(65_535), b"9" * 60_000]),
)


def may_end(line: bytes) -> bool:
    """Might the line be a request that ends the service, whatever bytes surround it?"""
    return b"down" in line.lower().replace(b"\0", b"") or b"reset" in line.lower().replace(b"\0", b"")


@dataclass(frozen=True)
class Visit:
    """What a client does: its lines, the size of its chunks, and how it leaves."""

    lines: list[bytes]
    chunk: int
    newline: bool  # at the end of the last line
    leave: str


VISITS = st.builds(
    Visit,
    st.lists(LINES.filter(lambda line: not may_end(line)), min_size=1, max_size=6),
    st.sampled_from([1, 2, 7, 4096, 1 << 20]),
    st.booleans(),
    st.sampled_from(["read", "half-close", "close", "abort"]),
)


def visit(path: str, what: Visit) -> bytes:
    """Makes the visit and returns what the client read."""
    got = bytearray()
    with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        sock.connect(path)
        sock.settimeout(30)
        data = b"\n".join(what.lines) + b"\n" * what.newline
        step = max(what.chunk, len(data) // 50)
        for at in range(0, len(data), step):
            sock.sendall(data[at : at + step])
        if what.leave == "abort":  # with unread answers
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if what.leave == "half-close" or (what.leave == "read" and not what.newline):
            sock.shutdown(socket.SHUT_WR)  # or the service would wait for the rest
        if what.leave in ("read", "half-close"):
            until = data.count(b"\n") if what.leave == "read" else -1
            while got.count(b"\n") != until and (step := sock.recv(65536)):
                got += step
    return bytes(got)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("lasting", ["sockmap"], indirect=True)
def test_the_control_socket_under_a_fuzzer(lasting: support.Service, kecho: Kecho) -> None:
    """Every answer is a line of JSON, echoes go on and are all counted, and nothing stays open.

    KECHO_TEST_EXAMPLES is the number of clients.
    """
    path = str(support.RUN / lasting.name / "control.sock")
    assert kecho("reset", lasting.name).returncode == 0
    before = {name: descriptors(pid).total() for name, pid in processes(lasting).items()}
    echoed, slow = 0, contextlib.ExitStack()
    client = slow.enter_context(lasting.client())

    @settings(
        max_examples=int(os.environ.get("KECHO_TEST_EXAMPLES", "150")),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(VISITS)
    def fuzz(what: Visit) -> None:
        nonlocal echoed
        answers = visit(path, what).splitlines()
        for answer in answers:
            found = json.loads(answer)
            assert isinstance(found, dict) and (isinstance(found.get("error"), str) or found["name"] == lasting.name)
        support.echo(client, b"%06d" % echoed)
        echoed += 1
        if echoed % 10 == 0:  # and a slow client, which begins a line and does not end it
            late = slow.enter_context(socket.socket(socket.AF_UNIX))
            late.connect(path)
            late.sendall(b'{"op": "sta')

    with slow:
        fuzz()
        stats = lasting.stats()
        assert stats["paths"]["egress"]["echoes"] == stats["paths"]["egress"]["latency_ns"]["count"] == echoed
        assert stats["paths"]["egress"]["bytes"] == 6 * echoed
        assert stats["paths"]["skb"]["echoes"] == stats["paths"]["user"]["echoes"] == 0
        assert stats["connections"] == {"active": 1, "total": 1, "rejected": 0, "aborted": 0}
    support.wait_for(
        lambda: {name: descriptors(pid).total() for name, pid in processes(lasting).items()} == before,
        "all its descriptors are closed",
    )


@pytest.mark.parametrize("lasting", ["sockmap"], indirect=True)
def test_requests_in_one_breath(lasting: support.Service) -> None:
    """A line may come in any number of pieces, and a piece may hold any number of lines."""
    path = str(support.RUN / lasting.name / "control.sock")
    one = b'{"op": "status"}\n'
    for chunk in (1, 5, 1 << 20):
        got = visit(path, Visit([one.strip()] * 20, chunk, True, "read"))
        assert [json.loads(line)["name"] for line in got.splitlines()] == [lasting.name] * 20


# ---- whose programs are loaded ----


def programs() -> dict[int, str]:
    """The names of the programs that `bpftool prog` shows, by id."""
    return {found["id"]: found.get("name", "") for found in support.bpftool("prog", "show")}


def test_every_program_has_a_name_of_ours(service: Up) -> None:
    before = programs()
    one = service(mode="sockmap")
    loaded = {number: name for number, name in programs().items() if number in one.belongings.programs}
    assert {"kecho_register", "kecho_egress_echo", "kecho_skb_echo"} <= set(loaded.values()) <= support.PROGRAMS
    assert not loaded.keys() & before.keys()
    one.down()
    support.wait_for(lambda: not loaded.keys() & programs().keys(), "the kernel has freed them")


def test_programs_of_probes_have_a_name() -> None:
    fds = [syscall.map_create(syscall.Map(syscall.MAP_TYPE_SOCKHASH, 4, 4, 1))]
    try:
        fds.append(syscall.prog_load(syscall.PROG_TYPE_SOCK_OPS, syscall.RETURN_ONE))
        fds.append(syscall.prog_load(syscall.PROG_TYPE_SK_MSG, syscall.msg_redirect(fds[0], 0)))
        held = support.fdinfo(os.getpid(), "prog_id")
        assert len(held) == 2 and {programs()[number] for number in held} == {"kecho_probe"}
        (number,) = support.fdinfo(os.getpid(), "map_id")
        assert support.bpftool("map", "show", "id", number)["name"] == "kecho_probe"
    finally:
        for fd in fds:
            os.close(fd)


@pytest.mark.parametrize("args", [["doctor"], ["up", "--mode=sockmap", "--bind=192.0.2.1"]], ids=["doctor", "up"])
def test_nothing_of_probes_is_left(kecho: Kecho, args: list[str]) -> None:
    kecho(*args, *([f"--port={support.free_port()}"] if args[0] == "up" else []))
    for kind in ("prog", "map"):
        support.wait_for(
            lambda kind=kind: not [f for f in support.bpftool(kind, "show") or [] if f.get("name") == "kecho_probe"],
            f"no {kind} of a probe is there",
        )
