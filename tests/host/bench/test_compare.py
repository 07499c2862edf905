# SPDX-License-Identifier: MIT
"""`bench --compare` and sweeps with real services: they come up, are measured in turn, and nothing of them is left."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import os
import pty
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import support

Kecho = Callable[..., "subprocess.CompletedProcess[str]"]
NOBODY: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []}
QUICK = ("--count=200", "--warmup=0.02", "--repeat=2")
LONG = ("--duration=600", "--warmup=0", "--repeat=1")


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """No process of bench or its services is left (all have `tmp_path` in their command line), and no folder."""
    before = set(support.RUN.glob("bench-*"))
    yield
    support.wait_for(lambda: not processes_with(str(tmp_path)), "the end of all processes", 20)
    folders = [entry.name for entry in set(support.RUN.glob("bench-*")) - before]
    assert not [name for name in folders if not Path(f"/proc/{name.split('-')[1]}").exists()]


def processes_with(text: str) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if text in (entry / "cmdline").read_bytes().decode(errors="replace"):
                found.append(int(entry.name))
    return found


def compare(tmp_path: Path, *args: object, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """`bench` with these arguments, and with results in `tmp_path`: r.json and r.csv."""
    return support.run_kecho("bench", *args, f"--csv={tmp_path}/r.csv", f"--json={tmp_path}/r.json", **kwargs)


def load(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def test_compare(tmp_path: Path) -> None:
    """Every variant that any kernel runs, in interleaved rounds. Inside and outside count the same requests."""
    names = ["user", "user:busy", "user:io_uring", "sockmap:egress", "sockmap:skb"]
    done = compare(tmp_path, f"--compare={','.join(names)}", *QUICK)
    assert done.returncode == 0 and done.stderr == "", done
    found = load(tmp_path / "r.json")
    order = [run["target"] for run in found["runs"]]
    assert sorted(order[:5]) == sorted(order[5:]) == sorted(names)
    assert (found["baseline"], found["left_out"]) == ("user", {})
    assert [(target["target"], target["path"]) for target in found["targets"]] == [
        *zip(names, ("user", "user", "user", "egress", "skb"), strict=True),
    ]
    for run in found["runs"]:
        (inside,) = (stats for stats in run["kernel"].values() if stats["echoes"])
        assert run["latency_ns"]["count"] == inside["echoes"] == 200
        assert inside["bytes"] == 200 * 64
        if run["mode"] == "sockmap":
            assert inside["latency_ns"]["count"] == 200
    assert len({run["endpoint"] for run in found["runs"]}) == len(names)
    with (tmp_path / "r.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["target"] for row in rows] == order
    for row, run in zip(rows, found["runs"], strict=True):
        assert int(row["p50_ns"]) == run["latency_ns"]["p50"]
        assert (row["inside_p50_ns"] != "") is (run["mode"] == "sockmap")


def test_what_cannot_run_is_left_out_with_the_reason(kecho: Kecho, tmp_path: Path) -> None:
    if json.loads(kecho("doctor", "--json").stdout)["modes"]["module"]["usable"]:
        pytest.skip("mode module can run here")
    done = compare(tmp_path, "--compare=module,user", *QUICK)
    assert done.returncode == 0
    assert done.stderr.startswith("kecho-ctl: module is left out: ") and done.stderr.count("\n") == 1
    assert "note: module is left out: " in done.stdout
    found = load(tmp_path / "r.json")
    assert list(found["left_out"]) == ["module"]
    assert [target["target"] for target in found["targets"]] == ["user"]
    done = compare(tmp_path, "--compare=module", *QUICK)
    assert done.returncode == 3 and done.stdout == ""
    assert done.stderr.startswith("kecho-ctl: module: ") and done.stderr.count("\n") == 1


def test_a_server_of_anyones_among_them(tmp_path: Path) -> None:
    one = support.up(path="user")
    try:
        where = f"127.0.0.1:{one.port}"
        done = compare(tmp_path, where, one.name, "--compare=sockmap", *QUICK)
        assert done.returncode == 0, done
        found = load(tmp_path / "r.json")
        assert found["baseline"] == one.name
        assert {target["target"] for target in found["targets"]} == {one.name, where, "sockmap"}
    finally:
        one.down()


def test_enough_rounds_give_intervals(tmp_path: Path) -> None:
    done = compare(tmp_path, "--compare=user,user:epoll,sockmap:egress", "--count=300", "--repeat=7")
    assert done.returncode == 0, done
    found = {target["target"]: target for target in load(tmp_path / "r.json")["targets"]}
    assert found["user"]["ratio_p50_interval"] is None
    for name in ("user:epoll", "sockmap:egress"):
        low, high = found[name]["ratio_p50_interval"]
        assert 0 < low <= high
        assert found[name]["rounds"] == 7
        said = "faster" if low > 1 else "slower" if high < 1 else "undecided"
        assert found[name]["verdict"] == said
        assert f"{said}\n" in done.stdout


def test_a_sweep_is_one_table_one_json_one_picture(kecho: Kecho, tmp_path: Path) -> None:
    sweep = ("--connections=1,10,100", "--size=64,1K", f"--plot={tmp_path}/r.png")
    done = compare(tmp_path, "--compare=user,sockmap", *sweep, *QUICK)
    assert done.returncode == 0 and done.stderr == "", done
    found = load(tmp_path / "r.json")
    loads = [(connections, size) for size in (64, 1024) for connections in (1, 10, 100)]
    assert [(t["connections"], t["size_bytes"], t["target"]) for t in found["targets"]] == [
        (*load, name) for load in loads for name in ("user", "sockmap")
    ]
    for run in found["runs"]:
        assert run["latency_ns"]["count"] == 200
        connections, size = run["options"]["connections"], run["options"]["size_bytes"]
        # What was in flight when the warm-up ended may have been counted after it.
        assert 200 * size <= run["kernel"][run["path"]]["bytes"] <= (200 + connections) * size
    lines = done.stdout.splitlines()
    head = next(i for i, line in enumerate(lines) if line.split()[:3] == ["conns", "size", "target"])
    assert len({len(line) for line in lines[head : head + 13]}) == 1
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 1 + len(found["runs"]) == 25
    again = kecho("plot", "r.json", "r.json", "-o", "again.svg", cwd=tmp_path)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


def test_only_root_brings_services_up(kecho: Kecho) -> None:
    done = kecho("bench", "--compare=user", *QUICK, **NOBODY)
    assert done.returncode == 3 and done.stdout == ""
    assert "sudo" in done.stderr and done.stderr.count("\n") == 1


def test_a_folder_that_may_not_be_read(kecho: Kecho, tmp_path: Path) -> None:
    """A folder that only root may read, as pytest makes them, is reported before anything is brought up or measured."""
    done = kecho("bench", "--compare=user", *QUICK, f"--csv={tmp_path}/r.csv", **NOBODY)
    assert done.returncode == 2 and done.stdout == ""
    assert "argument --csv: cannot write to" in done.stderr and done.stderr.count("\n") == 1


def test_a_failure_takes_all_down_and_keeps_the_others(tmp_path: Path) -> None:
    """One target does not exist; the services that were measured are kept."""
    gone = support.free_port()
    done = compare(tmp_path, f"127.0.0.1:{gone}", "--compare=user,sockmap", *QUICK)
    assert done.returncode == 1
    assert f"127.0.0.1:{gone}: Connection refused" in done.stderr and done.stderr.count("\n") == 1
    assert f"note: 127.0.0.1:{gone} failed" in done.stdout
    found = load(tmp_path / "r.json")
    assert sorted(run["target"] for run in found["runs"]) == ["sockmap", "sockmap", "user", "user"]


@dataclasses.dataclass
class Running:
    """A long comparison in the middle of its first run, and what its services have in the kernel."""

    process: subprocess.Popen[str]
    services: list[support.Belongings]

    def end(self, number: int) -> str:
        """Sends a signal to its group, as a terminal would, and gives what it says on stderr until its end."""
        os.killpg(self.process.pid, number)
        _, err = self.process.communicate(timeout=support.TIMEOUT_S)
        return err


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    process = subprocess.Popen(
        [support.KECHO_CTL, "bench", "--compare=user,sockmap", *LONG, f"--json={tmp_path}/r.json"],
        env=support.clean_env(),
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    names = {mode: f"bench-{process.pid}-{mode}" for mode in ("user", "sockmap")}

    def measures() -> bool:
        assert process.poll() is None, process.communicate()
        said = support.run_kecho("stats", "--json", names["user"]).stdout
        return bool(said) and json.loads(said)["paths"]["user"]["echoes"] > 1000

    try:
        support.wait_for(measures, "the first run")
        pids = {
            mode: json.loads((support.RUN / name / "state.json").read_text())["pid"] for mode, name in names.items()
        }
        yield Running(
            process, [support.Belongings(name, pids[mode], mode == "sockmap") for mode, name in names.items()]
        )
    finally:
        process.kill()
        process.communicate()


def test_ctrl_c_keeps_what_was_measured_and_takes_all_down(running: Running, tmp_path: Path) -> None:
    err = running.end(signal.SIGINT)
    assert running.process.returncode == 130
    assert "Traceback" not in err
    found = load(tmp_path / "r.json")
    assert found["interrupted"] and len(found["runs"]) == 1
    assert found["runs"][0]["latency_ns"]["count"] > 0
    assert not any((support.RUN / one.name).exists() for one in running.services)  # gone before bench ended
    for one in running.services:
        one.assert_gone()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_it_the_services_end_with_it(running: Running, number: int) -> None:
    running.end(number)
    assert running.process.returncode == -number
    for one in running.services:
        support.wait_for(lambda one=one: not one.left(), f"the end of {one.name}", 20)


def test_progress_is_for_terminals(tmp_path: Path) -> None:
    """A terminal shows a bar with a rate, which is removed in the end. With stdout in a pipe there is none."""
    command = [support.KECHO_CTL, "bench", "--compare=user", "--duration=4", "--repeat=1", f"--csv={tmp_path}/r.csv"]
    ours, theirs = pty.openpty()
    env = {**support.clean_env(), "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(command, env=env, cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 65536):
                shown += chunk
        except OSError:  # EIO: nobody has the other end any more
            pass
    os.close(ours)
    assert process.returncode == 0
    assert b"1/1 user, 1 connection, 64 B" in shown and b"/s" in shown
    done = support.run_kecho(*command[1:], cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "" and "\x1b" not in done.stdout
