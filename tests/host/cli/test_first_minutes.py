# SPDX-License-Identifier: MIT
"""README's three lines, pasted; and every page in a terminal of 80 columns and 24 lines."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Callable
from pathlib import Path

import pytest
import support

Up = Callable[..., support.Service]


def test_readmes_three_lines_work_as_written() -> None:
    """In the checkout; with namespaces of its own, so that name and port are free, and without sudo, as root."""
    text = (support.ROOT / "README.md").read_text()
    (lines,) = re.findall(r"^And by hand.*\n\n((?: {4}.*\n)+)", text, re.MULTILINE)
    commands = [line.strip().removeprefix("sudo ") for line in lines.splitlines()]
    assert [command.split()[:2] for command in commands] == [
        [".venv/bin/kecho-ctl", word] for word in ("up", "bench", "down")
    ]
    script = "\n".join(["mount -t tmpfs none /run", "ip link set lo up", *commands])
    done = subprocess.run(
        ["unshare", "--mount", "--propagation=private", "--net", "sh", "-ec", script],
        cwd=support.ROOT,
        env=support.clean_env(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    assert "kecho is up: mode sockmap" in done.stdout and done.stdout.endswith("kecho is down\n")
    assert re.search(r"^kecho +sockmap? ", done.stdout, re.MULTILINE)


def in_terminal(*args: str, cwd: Path, code: int = 0) -> list[str]:
    """The lines that kecho-ctl leaves in a terminal of 80 × 24, with that exit code."""
    pid, fd = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        os.chdir(cwd)
        os.execve(support.KECHO_CTL, ["kecho-ctl", *args], support.clean_env())
    said = b""
    try:
        while part := os.read(fd, 65536):
            said += part
    except OSError:  # the end, on Linux
        pass
    finally:
        os.close(fd)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == code, said
    # A line of progress is written over, and wiped away.
    return [line.rpartition("\r")[2].replace("\x1b[K", "") for line in said.decode().replace("\r\n", "\n").split("\n")]


PAGES = ("--help", "up --help", "bench --help", "stats --help", "doctor", "tune", "status")


@pytest.mark.parametrize("page", PAGES)
def test_nothing_is_wider_than_the_terminal(service: Up, tmp_path: Path, page: str) -> None:
    service(path="egress")
    wide = [line for line in in_terminal(*page.split(), cwd=tmp_path) if len(line) > 80]
    assert [line for line in wide if " " in line.strip().removeprefix("→ ")[:80]] == [], "one long word is left whole"


def test_the_line_of_up_fits(tmp_path: Path) -> None:
    name = f"pytest-fits-{os.getpid()}"
    try:
        lines = in_terminal("up", "--mode=sockmap", f"--name={name}", f"--port={support.free_port()}", cwd=tmp_path)
    finally:
        support.run_kecho("down", name)
    assert len(lines) > 2 and max(map(len, lines)) <= 80, lines
    assert " ".join(map(str.strip, lines)).startswith(f"{name} is up: mode sockmap, ")


def test_an_error_fits(tmp_path: Path) -> None:
    """It is one line elsewhere."""
    command = ("stats", "--plot=/nonexistent/folder/of/pictures/latency.png")
    lines = in_terminal(*command, cwd=tmp_path, code=2)
    assert len(lines) > 2 and max(map(len, lines)) <= 80, lines
    assert " ".join(map(str.strip, lines)) + "\n" == f"{support.run_kecho(*command).stderr.strip()} \n"


def test_bench_and_status_of_a_service_fit(service: Up, tmp_path: Path) -> None:
    one, other = service(path="egress"), service(path="user")
    short = ("--count=200", "--warmup=0", "--repeat=6")
    for words in (["bench", one.name, other.name, *short], ["status", one.name, other.name], ["stats", one.name]):
        lines = in_terminal(*words, cwd=tmp_path)
        assert max(map(len, lines)) <= 80, lines
    wide = in_terminal("bench", "--wide", one.name, other.name, *short, cwd=tmp_path)
    assert any("p99.9" in line and "MB/s" in line for line in wide)
