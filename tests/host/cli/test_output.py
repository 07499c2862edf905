# SPDX-License-Identifier: MIT
"""Output to full disks, closed descriptors and terminals of every encoding, and for several services."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator

import pytest
import support

Up = Callable[..., support.Service]


def run(script: str, *args: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a script of sh, in which "$0" is kecho-ctl."""
    return subprocess.run(
        ["sh", "-c", script, support.KECHO_CTL, *map(str, args)],
        env={**support.clean_env(), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("command", ["--help", "--version", "doctor", "stats", "stats --json", "status", "up --help"])
def test_a_full_disk(service: Up, command: str) -> None:
    """A write error is a failure, reported once and with the name of the stream."""
    name = service(path="user").name if command.startswith("stat") else ""
    done = run(f'"$0" {command} {name} >/dev/full')
    assert (done.returncode, done.stderr) == (1, "kecho-ctl: standard output: No space left on device\n")


def test_up_whose_answer_cannot_be_written_does_not_stay_up() -> None:
    name = f"pytest-full-{os.getpid()}"
    done = run(f'"$0" up --mode user --name {name} --port {support.free_port()} >/dev/full')
    left = (support.RUN / name).exists()
    if left:
        support.run_kecho("down", name)
    assert (done.returncode, done.stderr) == (1, "kecho-ctl: standard output: No space left on device\n")
    assert not left


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors(closed: str) -> None:
    name = f"pytest-closed-{os.getpid()}"
    try:
        done = run(f'"$0" up --mode user --name {name} --port {support.free_port()} {closed}')
        assert done.returncode == 0, done
        assert support.run_kecho("check", name).returncode == 0
    finally:
        support.run_kecho("down", name)


@pytest.mark.parametrize(
    "environment",
    [{"LC_ALL": "C"}, {"LC_ALL": "", "LANG": "C"}, {"PYTHONIOENCODING": "ascii"}],
    ids=str,
)
@pytest.mark.parametrize("command", ["doctor", "tune", "bench --help", "stats"])
def test_ascii(service: Up, command: str, environment: dict[str, str]) -> None:
    if command == "stats":
        one = service(path="egress")
        with one.client() as client:
            support.echo(client, bytes(9))
        command = f"stats {one.name}"
    done = run(f'"$0" {command}', **environment)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.isascii() and "?" not in done.stdout.replace("[y/n]?", "")


@pytest.mark.parametrize("command", ["doctor", "tune", "bench --help"])
def test_latin1(command: str) -> None:
    done = run(f'"$0" {command} | iconv -f ISO-8859-1 -t UTF-8', PYTHONIOENCODING="iso-8859-1")
    assert done.returncode == 0 and done.stderr == "" and done.stdout


def test_down_of_several_goes_on_after_a_failure(service: Up) -> None:
    one, other = service(path="user"), service(path="user")
    done = support.run_kecho("down", "pytest-none-1", one.name, "pytest-none-2", other.name)
    assert done.returncode == 1
    assert done.stdout == f"{one.name} is down\n{other.name} is down\n"
    first, second = done.stderr.splitlines()
    assert "pytest-none-1" in first and "pytest-none-2" in second


def test_status_of_a_service_that_died(service: Up) -> None:
    one, other = service(path="user"), service(path="user")
    assert support.run_kecho("status", one.name, other.name).returncode == 0
    os.kill(one.pid, signal.SIGKILL)
    support.wait_for(lambda: support.run_kecho("status", one.name).returncode == 1, "status says that it died")
    assert support.run_kecho("status", other.name).returncode == 0
    assert "died" in support.run_kecho("status", one.name).stdout
    assert support.run_kecho("down", one.name).returncode == 0


# ---- check ----


@contextlib.contextmanager
def server(answer: Callable[[bytes], bytes]) -> Iterator[str]:
    """A server for one client, which gets `answer` of all that it sent. Yields HOST:PORT."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            with sock, contextlib.suppress(OSError):
                sock.sendall(answer(b"".join(iter(lambda: sock.recv(65536), b""))))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join(10)


@pytest.mark.parametrize("kind", ["user", "egress", "skb"])
def test_check_of_a_service(service: Up, kind: str) -> None:
    one = service(path=kind)
    done = support.run_kecho("check", one.name)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{one.name} (127.0.0.1:{one.port}) echoes: 4,096 bytes, each as it was sent\n"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda data: data[:-1], "it ended after 4,095 of 4,096 bytes"),
        (lambda data: b"", "it ended after 0 of 4,096 bytes"),
        (lambda data: data + b"x", "more than the 4,096 bytes"),
        (lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:], "byte 100 came back as another"),
    ],
    ids=["short", "nothing", "more", "other"],
)
def test_check_of_a_server_that_does_not_echo(answer: Callable[[bytes], bytes], why: str) -> None:
    with server(answer) as endpoint:
        done = support.run_kecho("check", endpoint)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"kecho-ctl: {endpoint} does not echo: {why}")


def test_check_of_a_silent_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"127.0.0.1:{listener.getsockname()[1]}"
        done = support.run_kecho("check", endpoint, "--timeout", "0.5")
    assert done.returncode == 1 and "no whole echo within 0.5 s" in done.stderr
