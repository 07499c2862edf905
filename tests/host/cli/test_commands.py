# SPDX-License-Identifier: MIT
"""What the commands print and write: stats, bench, doctor, help, completion."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import support

from kecho.backends.base import MODES
from kecho.model.errors import AS_ROOT
from kecho.service.client import Client

Kecho = Callable[..., "subprocess.CompletedProcess[str]"]
Up = Callable[..., support.Service]
QUICK = ("--count=500", "--warmup=0", "--repeat=2")


def echoes(one: support.Service, count: int, size: int = 9) -> None:
    with one.client() as client:
        for _ in range(count):
            support.echo(client, bytes(size))


def assert_narrow(text: str, columns: int = 80) -> None:
    assert text
    for line in text.splitlines():
        assert len(line) <= columns, line


def assert_picture(path: Path) -> None:
    """A PNG that decodes, and is not one colour."""
    import matplotlib.image

    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = matplotlib.image.imread(path)
    assert min(pixels.shape[:2]) > 200
    assert pixels.min() < pixels.max()


# ---- stats ----


def test_stats_text(service: Up, kecho: Kecho, path: str) -> None:
    one = service(path=path)
    assert "no echo yet" in kecho("stats", "--name", one.name).stdout
    echoes(one, 1009)
    done = kecho("stats", one.name)
    assert done.returncode == 0 and done.stderr == ""
    assert_narrow(done.stdout)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith(f"path {path}:"))
    assert "1,009 echoes" in line and "9,081 bytes" in line and "0 fallbacks" in line
    if path == "user":
        assert "latency not observed" in done.stdout
        return
    assert "p50" in done.stdout and "p99.9" in done.stdout
    rows = re.findall(r"^ +[\d.]+ \S+ – +[\d.]+ \S+ +([\d,]+)  ", done.stdout, re.MULTILINE)
    assert sum(int(row.replace(",", "")) for row in rows) == 1009
    assert "cpu 0" not in done.stdout
    per_cpu = kecho("stats", "--name", one.name, "--per-cpu").stdout
    assert_narrow(per_cpu)
    counts = re.findall(r"^ +cpu \d+ +([\d,]+) ", per_cpu, re.MULTILINE)
    assert sum(int(count.replace(",", "")) for count in counts) == 1009


def test_stats_of_an_interval(service: Up, path: str) -> None:
    """The lines add up to the traffic between the first snapshot, before the first line, and the last."""
    one = service(path=path)
    echoes(one, 50)  # before: not theirs
    command = [support.KECHO_CTL, "stats", "0.4", "4", "--json", "--name", one.name]
    with subprocess.Popen(command, env=support.clean_env(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [json.loads(process.stdout.readline())]
        echoes(one, 211)
        lines += [json.loads(line) for line in process.stdout]
    assert process.returncode == 0
    assert len(lines) == 4
    assert lines[0]["paths"][path]["echoes"] == 0
    assert sum(line["paths"][path]["echoes"] for line in lines) == 211
    assert sum(line["paths"][path]["bytes"] for line in lines) == 211 * 9
    if path != "user":
        assert sum(line["paths"][path]["latency_ns"]["count"] for line in lines) == 211
    assert sum(line["connections"]["total"] for line in lines) == 1
    assert all(0 < line["uptime_s"] < 60 for line in lines)


def test_stats_as_lines(service: Up, kecho: Kecho, path: str) -> None:
    """A line an interval for a path that echoed, and one without figures where none did."""
    one = service(path=path)
    idle = kecho("stats", one.name, ".1", "2")
    assert idle.returncode == 0 and idle.stderr == ""
    header, *lines = idle.stdout.splitlines()
    assert header.split() == ["time", "path", "active", "echo/s", "MB/s", "p50", "p99", "max"]
    assert len(lines) == 2 and all(line.split()[1:] == ["-", "0", "0", "0", "-", "-", "-"] for line in lines)
    command = [support.KECHO_CTL, "stats", one.name, "0.5", "3"]
    with subprocess.Popen(command, env=support.clean_env(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.readline()
        echoes(one, 211)
        busy = [line.split() for line in process.stdout if f" {path} " in line]
    assert process.returncode == 0
    assert busy and all(float(line[3].replace(",", "")) > 0 for line in busy)
    if path != "user":
        assert re.search(r"\d (ns|µs|ms)", " ".join(busy[0][5:]))


def test_stats_of_an_interval_as_histograms(service: Up, kecho: Kecho) -> None:
    one = service(path="egress")
    done = kecho("stats", "0.1", "3", "--histogram", "--name", one.name)
    assert done.returncode == 0 and done.stderr == ""
    assert_narrow(done.stdout)
    assert len(re.findall(rf"^{one.name} ", done.stdout, re.MULTILINE)) == 3
    assert done.stdout.count("in 0.") == 3


def test_stats_draws_what_it_showed_when_ctrl_c_ends_it(service: Up, tmp_path: Path) -> None:
    one = service(path="egress")
    picture = tmp_path / "x.png"
    command = [support.KECHO_CTL, "stats", one.name, "0.2", "--plot", picture]
    with subprocess.Popen(command, env=support.clean_env(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        while " egress " not in process.stdout.readline():
            echoes(one, 50)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert_picture(picture)


@pytest.mark.parametrize("path", ["egress", "user"])
def test_a_reset_within_an_interval(service: Up, path: str) -> None:
    """The interval counts from the reset, even if more came after it than before."""
    one = service(path=path)
    echoes(one, 100)
    command = [support.KECHO_CTL, "stats", "0.5", "3", "--json", "--name", one.name]
    with subprocess.Popen(command, env=support.clean_env(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [json.loads(process.stdout.readline())]
        Client(one.name).reset()
        echoes(one, 211)
        lines += [json.loads(line) for line in process.stdout]
    assert process.returncode == 0 and len(lines) == 3
    assert lines[0]["paths"][path]["echoes"] == 0
    assert sum(line["paths"][path]["echoes"] for line in lines) == 211
    assert sum(line["connections"]["total"] for line in lines) == 1


def test_stats_plot(service: Up, kecho: Kecho, tmp_path: Path) -> None:
    one = service(path="egress")
    echoes(one, 100)
    done = kecho("stats", "--name", one.name, "--plot", tmp_path / "x.png")
    assert done.returncode == 0, done.stderr
    assert "100 echoes" in done.stdout
    assert_picture(tmp_path / "x.png")


# ---- bench ----


@pytest.mark.parametrize("mode", ["sockmap", "user"])
def test_bench_json_is_one_object_and_nothing_else(service: Up, kecho: Kecho, tmp_path: Path, mode: str) -> None:
    one = service(mode=mode)
    done = kecho("bench", one.name, f"127.0.0.1:{one.port}", *QUICK, "--json", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.count("\n") == 1 and "\x1b" not in done.stdout
    found: dict[str, Any] = json.loads(done.stdout)
    assert (found["schema"], found["kind"], found["interrupted"]) == (1, "bench", False)
    assert [target["target"] for target in found["targets"]] == [one.name, f"127.0.0.1:{one.port}"]
    assert [run["latency_ns"]["count"] for run in found["runs"]] == [500] * 4
    ours = [run for run in found["runs"] if run["target"] == one.name]
    for run in ours:
        assert run["path"] == ("egress" if mode == "sockmap" else "user")
        assert run["kernel"][run["path"]]["echoes"] == 500
    assert sum(path["echoes"] for path in one.stats()["paths"].values()) == 2000
    assert list(tmp_path.iterdir()) == []  # results/last.json only where results are kept


@pytest.mark.parametrize("mode", ["user", "sockmap"])
def test_a_service_on_a_cpu(service: Up, kecho: Kecho, mode: str) -> None:
    """It and its children run there, and a result says so."""
    one = service(mode=mode, cpus=0)
    (found,) = json.loads(kecho("status", one.name, "--json").stdout)["services"]
    assert found["cpus"] == "0"
    children = Path(f"/proc/{found['pid']}/task/{found['pid']}/children").read_text().split()
    assert children or mode != "user"
    for pid in (found["pid"], *children):
        assert "Cpus_allowed_list:\t0\n" in Path(f"/proc/{pid}/status").read_text()
    (run, *_) = json.loads(kecho("bench", one.name, *QUICK, "--cpus=0", "--json").stdout)["runs"]
    assert (run["options"]["server_cpus"], run["options"]["shared"]) == ("0", "CPU")
    assert "services on CPU 0, as the client" in " ".join(kecho("bench", one.name, *QUICK, "--cpus=0").stdout.split())


def test_the_services_of_compare_on_a_cpu(kecho: Kecho) -> None:
    done = kecho(
        "bench", "--compare=user,mirror", "--count=50", "--warmup=0", "--repeat=1", "--server-cpus=0", "--json"
    )
    placed = {run["target"]: run["options"].get("server_cpus") for run in json.loads(done.stdout)["runs"]}
    assert placed == {"user": "0", "mirror": None}
    assert kecho("bench", "--server-cpus=0").returncode == 2
    done = kecho("up", "--mode=user", "--cpus=9999")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "--cpus 9999" in done.stderr


def test_bench_text_and_results(service: Up, kecho: Kecho, tmp_path: Path) -> None:
    one = service(mode="sockmap")
    (tmp_path / "results").mkdir()
    done = kecho("bench", one.name, *QUICK, "--plot", "x.png", "--json=x.json", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    assert "\x1b" not in done.stdout and "\r" not in done.stdout
    assert one.name in done.stdout and "p99.9" in done.stdout and "1,000" in done.stdout
    saved = json.loads((tmp_path / "x.json").read_text())
    assert saved == json.loads((tmp_path / "results/last.json").read_text())
    assert saved["targets"][0]["latency_ns"]["count"] == 1000
    assert_picture(tmp_path / "x.png")
    again = kecho("plot", "x.json", "-o", "again.png", cwd=tmp_path)
    assert again.returncode == 0 and again.stdout == "" and again.stderr == ""
    assert_picture(tmp_path / "again.png")


# ---- doctor ----


def test_doctor(kecho: Kecho) -> None:
    done = kecho("doctor", "--json")
    assert done.returncode == 0 and done.stderr == ""
    found = json.loads(done.stdout)
    assert found["schema"] == 1 and list(found["modes"]) == list(MODES)
    assert found["modes"]["sockmap"]["usable"] and found["modes"]["user"]["usable"]
    assert found["auto"] == ("module" if found["modes"]["module"]["usable"] else "sockmap")
    for mode in found["modes"].values():
        assert mode["usable"] == all(feature["ok"] for feature in mode["features"] if feature["required"])
        for feature in mode["features"]:
            assert feature["detail"] and (feature["ok"] or feature["remedy"])
    if not Path("/proc/modules").exists():
        (modules,) = (f for f in found["modes"]["module"]["features"] if f["name"] == "loadable modules")
        assert not modules["ok"] and "cannot load modules" in modules["detail"]
    text = kecho("doctor").stdout
    assert f"--mode auto takes: {found['auto']}" in text
    assert "sockmap: can run" in text
    assert ("module: can run" if found["modes"]["module"]["usable"] else "module: cannot run") in text


def test_doctor_answers_for_who_asks(kecho: Kecho) -> None:
    """A user who may not bring a service up is told so of every mode, and `up` says no other thing."""
    nobody: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []}
    found = json.loads(kecho("doctor", "--json", **nobody).stdout)
    assert found["auto"] is None and not any(mode["usable"] for mode in found["modes"].values())
    (privilege,) = (one for one in found["modes"]["user"]["features"] if one["name"] == "privilege")
    assert f"{privilege['detail']}: {privilege['remedy']}" in kecho("up", "--mode=user", **nobody).stderr
    roots = json.loads(kecho("doctor", "--json").stdout)
    for mode, others in found["modes"].items():
        for theirs, ours in zip(others["features"], roots["modes"][mode]["features"], strict=True):
            assert theirs["ok"] or not ours["ok"] or theirs["remedy"].startswith(AS_ROOT), theirs


def test_doctor_advises_no_package_that_there_is_not(kecho: Kecho) -> None:
    found = json.loads(kecho("doctor", "--json").stdout)
    remedies = [one.get("remedy", "") for mode in found["modes"].values() for one in mode["features"]]
    for package in re.findall(r"apt-get install ([\w.+-]+)", " ".join(remedies)):
        assert subprocess.run(["apt-cache", "show", package], capture_output=True, check=False).returncode == 0


# ---- help ----


COMMANDS = ("up", "down", "status", "stats", "reset", "check", "logs", "bench", "plot", "tune", "doctor")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(kecho: Kecho, command: str) -> None:
    done = kecho(*command.split(), "--help", env={**support.clean_env(), "COLUMNS": "100"})
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith(f"usage: kecho-ctl {command}".rstrip())
    if command in ("", "up", "stats", "check", "bench", "plot", "tune"):
        assert "examples:\n" in done.stdout
        assert re.search(rf"^ +(sudo )?kecho-ctl {command}", done.stdout.partition("examples:")[2], re.MULTILINE)


def test_completion_for_bash(kecho: Kecho) -> None:
    done = kecho("--print-completion", "bash")
    assert done.returncode == 0 and done.stderr == ""
    for word in ("kecho-ctl", "--foreground", "--per-cpu", "doctor"):
        assert word in done.stdout
    checked = subprocess.run(["bash", "-n"], input=done.stdout, capture_output=True, text=True, check=False, timeout=60)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_version(kecho: Kecho) -> None:
    done = kecho("--version")
    assert done.returncode == 0 and done.stderr == ""
    assert re.fullmatch(r"kecho \d+\.\d+\.\d+\n", done.stdout)
