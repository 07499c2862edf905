# SPDX-License-Identifier: MIT
"""Client programs in many languages: each gets back what it sent, to the byte, on every path.

A program does not run on a path that does not promise it (docs/known-limits.md). `make check-clients` writes the table
of docs/testing.md from the results.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import support

from kecho.kernel import features

HERE = Path(__file__).resolve().parent / "programs"
BUILT = support.ROOT / "build/clients"
PROXIES = features.cache() / "proxies/usr"
SIZE_BYTES = support.few(1_000_003)
MIRRORED_BYTES = support.few(100_003)  # a stream in one direction at a time waits for delayed acknowledgements
LINES = support.few(2000)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@dataclass(frozen=True)
class Program:
    """A client. Its command uses `{input}` and `{output}`, or is a proxy with a configuration in programs/."""

    name: str
    command: str
    version: str = ""
    but: str = "ingress"  # the paths that do not promise to serve it
    proxy: str = ""
    counts: bool = False  # it uses FIONREAD
    needs: str = "."  # a file in build/clients

    def executable(self) -> str | None:
        """The path of the program, or of the interpreter that runs it."""
        if not (BUILT / self.needs).exists():
            return None
        first = self.command.split()[0].format(built=BUILT)
        return shutil.which(first, path=f"{os.environ['PATH']}:/usr/sbin:{PROXIES / 'sbin'}")


NODE, GO, JAVA = "node {here}/sockets.js", "{built}/copy", "java -cp {built} -Xshare:auto Sockets"
PYTHON, RUBY, PERL = "/usr/bin/python3 {here}/streams.py", "ruby {here}/sockets.rb", "perl {here}/sockets.pl"
FILES = "{host} {port} {input} {output}"

PROGRAMS = (
    *(Program(f"Node, {how}", f"{NODE} {how} {FILES}", "node --version") for how in ("pipe", "pause", "end")),
    *(
        Program(f"Go, io.Copy to a {to}", f"{GO} {to} {{host}}:{{port}} {{input}} {{output}}", "go version")
        for to in ("file", "pipe", "connection")
    ),
    Program("Java, available", f"{JAVA} available {FILES}", "java --version", needs="Sockets.class", counts=True),
    Program("Java, NIO", f"{JAVA} nio {FILES}", "java --version", needs="Sockets.class"),
    Program("Java, transferTo", f"{JAVA} transfer {FILES}", "java --version", needs="Sockets.class"),
    Program("Python, asyncio", f"{PYTHON} asyncio {FILES}", "/usr/bin/python3 --version"),
    Program("Python, makefile", f"{PYTHON} makefile {FILES}", "/usr/bin/python3 --version", but="egress ingress"),
    Program("Python, signals", f"{PYTHON} signals {FILES}", "/usr/bin/python3 --version", but="egress ingress"),
    Program("Ruby, copy_stream", f"{RUBY} copy_stream {FILES}", "ruby --version"),
    Program("Ruby, nonblock", f"{RUBY} nonblock {FILES}", "ruby --version", but=""),
    Program("Perl, fork", f"{PERL} fork {FILES}", "perl -e 'print $^V'", but="egress ingress"),
    Program("Perl, lines", f"{PERL} lines {FILES}", "perl -e 'print $^V'", but=""),
    Program("C, edge-triggered epoll", f"{{built}}/epoll {FILES}"),
    Program("C, io_uring, multishot", f"{{built}}/uring send {FILES}"),
    Program("C, io_uring, SEND_ZC", f"{{built}}/uring send_zc {FILES}", but="egress ingress"),
    Program("socat", "socat -t60 TCP:{host}:{port} OPEN:{input},rdonly!!CREATE:{output}", "socat -V", but=""),
    Program("nc", "nc -N {host} {port}", "", but=""),
    Program("telnet", "telnet {host} {port}", "telnet --version", but=""),
    Program("nginx stream", "nginx -p {folder} -c {config}", "nginx -v", proxy="nginx.conf"),
    Program("HAProxy", "haproxy -db -f {config}", "haproxy -v", proxy="haproxy.cfg"),
    Program("HAProxy, splice", "haproxy -db -f {config}", "haproxy -v", proxy="haproxy-splice.cfg"),
)

# In the virtual machine only one path of the module is tested, with the programs that are installed: there a skip is a
# failure. make check leaves mode mirror to make check-clients: it takes longest, because clients delay their ACKs.
PATHS = (
    [path for path in support.PATHS if path not in support.KERNEL_PATHS][:1]
    if support.OWN_MACHINE
    else [path for path in support.PATHS if path != "mirror" or "KECHO_TEST_PATHS" in os.environ]
)
PAIRS = [
    pytest.param(path, program, id=f"{program.name}-{path}")
    for path in PATHS
    for program in PROGRAMS
    if path not in program.but.split() and (program.executable() or not support.OWN_MACHINE)
]


@pytest.fixture(scope="module")
def kept(request: pytest.FixtureRequest) -> Iterator[support.Kept]:
    with contextlib.closing(support.Kept(request.param)) as found:
        yield found


def run(program: Program, words: dict[str, object], **options: object) -> None:
    """Runs the program to its end, with a time limit."""
    done = subprocess.run(
        command_of(program, words), timeout=support.TIMEOUT_S, stderr=subprocess.PIPE, text=True, **options
    )
    assert done.returncode == 0, done.stderr


def command_of(program: Program, words: dict[str, object]) -> list[str]:
    executable = program.executable()
    assert executable
    return [executable, *(word.format(here=HERE, built=BUILT, **words) for word in program.command.split()[1:])]


def copies(program: Program, server: support.Server, folder: Path, size: int) -> None:
    """Runs a client that sends a file and writes the echo to another."""
    source, target = folder / "input", folder / "output"
    sent = support.payload(size)
    source.write_bytes(sent)
    words: dict[str, object] = {"host": server.address(), "port": server.port, "input": source, "output": target}
    if "{input}" in program.command:
        run(program, words)
    else:  # it uses standard input and output
        with source.open("rb") as stdin, target.open("wb") as stdout:
            run(program, words, stdin=stdin, stdout=stdout)
    support.assert_same(target.read_bytes(), sent)


def converses(program: Program, server: support.Server, folder: Path, _size: int) -> None:
    """Runs an interactive client: the lines typed come out again, behind its own greeting."""
    command = command_of(program, {"host": server.address(), "port": server.port})
    lines = [f"line {number} {'*' * (number % 60)}" for number in range(LINES)]
    output = folder / "output"
    with output.open("wb") as file, subprocess.Popen(command, stdin=subprocess.PIPE, stdout=file, text=True) as telnet:
        assert telnet.stdin
        telnet.stdin.write("\n".join(lines) + "\n")
        telnet.stdin.flush()
        try:
            support.wait_for(lambda: lines[-1] + "\n" in output.read_text().replace("\r", ""), "the last line")
        finally:
            telnet.stdin.close()
    assert output.read_text().replace("\r", "").splitlines()[-LINES:] == lines


def proxies(program: Program, server: support.Server, folder: Path, size: int) -> None:
    """Runs a proxy: streams through it come back whole, and so does their end."""
    port, config = support.free_port(), folder / program.proxy
    modules = next(path for path in (PROXIES / "lib/nginx/modules", Path("/usr/lib/nginx/modules")) if path.exists())
    text = (HERE / program.proxy).read_text()
    words = {"port": port, "server": f"{server.address()}:{server.port}", "folder": folder, "modules": modules}
    for key, value in words.items():
        text = text.replace(f"@{key}@", str(value))
    config.write_text(text)
    command = command_of(program, {"config": config, "folder": folder})
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as proxy:
        try:
            support.wait_for(lambda: proxy.poll() is not None or listens(port), f"{program.name} to listen")
            support.Server(port, ["127.0.0.1"]).stream(4, size // 4)
        finally:
            proxy.terminate()


def listens(port: int) -> bool:
    """Does a socket listen on the port? Read from the kernel's list: a connection would go on to the server."""
    listening = f":{port:04X} 00000000:0000 0A"
    return listening in Path("/proc/net/tcp").read_text()


@pytest.mark.parametrize("kept, program", PAIRS, indirect=["kept"])
def test_program(kept: support.Kept, program: Program, tmp_path: Path) -> None:
    if not program.executable():
        pytest.skip("left out: scripts/setup clients has it")
    if program.counts and kept.path == "egress" and "FIONREAD" in features.probe_egress():
        pytest.skip("not promised: FIONREAD counts nothing on this kernel")
    how: Callable[[Program, support.Server, Path, int], None] = copies
    if program.proxy:
        how = proxies
    elif program.name == "telnet":
        how = converses
    how(program, kept.idle(), tmp_path, MIRRORED_BYTES if kept.path == "mirror" else SIZE_BYTES)
