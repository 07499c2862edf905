# SPDX-License-Identifier: MIT
"""Random arguments and streams for the native programs, built with sanitizers: one line on errors, never a crash.

KECHO_TEST_EXAMPLES is the number of examples of each.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from native_support import TIMEOUT_S, ScriptedServer, Server, echo, free_port, run, server

FUZZ = settings(
    max_examples=int(os.environ.get("KECHO_TEST_EXAMPLES", "60")),
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

FLAGS = {
    "bench": ["--crr", "--json", "--progress", "--dry-run", "--help"],
    "user-echo-server": ["--die-with-parent", "--help"],
}
WORDS = {
    "bench": "host port connections threads cpus size seed count duration warmup connect-timeout io-timeout"
    " busy-poll burst bursts rate depth hdr raw",
    "user-echo-server": "bind port backlog threads busy-poll engine listener ready-fd stats-fd reset-fd"
    " die-with-parent uid",
}
OPTIONS = {program: words.split() for program, words in WORDS.items()}
# --hdr and --raw must not write outside the test's folder.
TEXT = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), max_size=40)
NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70).map(str),
    st.integers(0, 40).map(str),
    st.floats().map(str),
    st.sampled_from(["", "0x10", "1e9", "1e400", "-0", "+1", "007", "1K", "1M", "1G", str(2**64), "9" * 500]),
)
CPUS = st.lists(st.sampled_from(["0", "0-1", "1-0", "-", "-1", "4095", "99999999999", "", "0-4294967295"])).map(
    ",".join
)
ADDRESSES = st.sampled_from(
    ["127.0.0.1", "::1", "::", "1", "127.1", "::ffff:127.0.0.1", "fe80::1%lo", "[::1]", "a" * 300]
)
ENGINES = st.sampled_from(["epoll", "io_uring", "sockmap", "epol"])
VALUES = st.one_of(NUMBERS, TEXT, CPUS, ADDRESSES, ENGINES)


def arguments(program: str) -> st.SearchStrategy[list[str]]:
    option = st.tuples(st.sampled_from(OPTIONS[program]), VALUES, st.booleans()).map(
        lambda found: [f"--{found[0]}={found[1]}"] if found[2] else [f"--{found[0]}", found[1]]
    )
    # Unknown options too, without line breaks, which getopt_long() prints as they are.
    name = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="/"), max_size=12)
    other = st.one_of(st.sampled_from(FLAGS[program]), name, name.map("--{}".format)).map(lambda word: [word])
    return st.lists(st.one_of(option, option, other), max_size=6).map(
        lambda groups: [w for group in groups for w in group]
    )


def assert_one_line(done: subprocess.CompletedProcess[str], program: str) -> None:
    assert done.returncode in (0, 1, 2, 3), done
    if done.returncode == 0:  # by --help, or by --dry-run, which prints nothing
        dry = any(word.startswith("--dr") for word in done.args)
        assert (dry or done.stdout.startswith("Usage: ")) and done.stderr == ""
        return
    line, *more = done.stderr.split("\n")
    assert more == [""] and line.split(": ")[0].endswith(program), done
    assert not [sign for sign in line if sign < " "], done


@pytest.mark.timeout(300)
def test_arguments_of_bench(tmp_path: Path) -> None:
    """Valid arguments lead to a port on which nothing listens."""

    @FUZZ
    @example(["--cpus", "0,\n0"])
    @example(["--size=\x1b[2J"])
    @given(arguments("bench"))
    def fuzz(words: list[str]) -> None:
        last = ["--host", "127.0.0.1", "--port", str(port)]
        done = run("bench", *words, *last, cwd=tmp_path, errors="replace")
        assert done.returncode != 0 or any(word.startswith(("--h", "--dr")) for word in words)
        assert_one_line(done, "bench")

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        fuzz()


@pytest.mark.timeout(300)
def test_arguments_of_user_echo_server(tmp_path: Path) -> None:
    """Valid arguments name an address that is not this machine's."""

    @FUZZ
    @example(["--engine", "\x1b[2J\n"])
    @example(["--bind=127.0.0.1"] * 70)
    @given(arguments("user-echo-server"))
    def fuzz(words: list[str]) -> None:
        done = run(
            "user-echo-server", *words, "--port", free_port(), "--bind", "192.0.2.1", cwd=tmp_path, errors="replace"
        )
        assert_one_line(done, "user-echo-server")

    fuzz()


# ---- streams ----


@pytest.fixture(scope="module", params=["epoll", "io_uring", "sockmap"])
def target(request: pytest.FixtureRequest) -> Iterator[Server]:
    if request.param == "io_uring":
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            done = run("user-echo-server", "--engine=io_uring", "--port", taken.getsockname()[1], "--bind=192.0.2.1")
        if done.returncode == 3:
            pytest.skip(done.stderr.strip())
    with server("--threads", 2, "--engine", request.param) as running:
        yield running


STEPS = st.lists(
    st.tuples(st.sampled_from(["send", "send", "read"]), st.sampled_from([1, 2, 63, 4096, 65_537, 300_000])),
    max_size=12,
)


@pytest.mark.timeout(300)
def test_streams_of_user_echo_server(target: Server) -> None:
    """Sends and reads in any order, then ends or resets in mid-stream. What comes back is always right."""

    @FUZZ
    @given(STEPS, st.sampled_from(["end", "reset", "close"]), st.integers(0, 2**32))
    def fuzz(steps: list[tuple[str, int]], leave: str, seed: int) -> None:
        source = random.Random(seed)
        sent, got = bytearray(), bytearray()
        with target.connect() as sock:
            for step, size in steps:
                if step == "read":
                    want = min(size, len(sent) - len(got))
                    while want > 0:
                        chunk = sock.recv(want)
                        assert chunk
                        got += chunk
                        want -= len(chunk)
                elif len(sent) - len(got) < 600_000:  # or both ends would rightly wait for each other
                    data = source.randbytes(size)
                    sock.setblocking(False)
                    with contextlib.suppress(BlockingIOError):
                        sent += data[: sock.send(data)]
                    sock.settimeout(TIMEOUT_S)
            if leave == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if leave == "end":
                sock.shutdown(socket.SHUT_WR)
                while chunk := sock.recv(65_536):
                    got += chunk
                assert len(got) == len(sent)
        assert sent.startswith(got)

    fuzz()
    target.wait_stats(active=0)


@pytest.mark.timeout(300)
def test_streams_of_bench() -> None:
    """bench says what is wrong with whatever a server sends."""
    answer = b""

    def serve(sock: socket.socket) -> None:
        sock.recv(1 << 16)
        sock.sendall(answer)

    @FUZZ
    @given(
        st.one_of(st.binary(max_size=200), st.sampled_from([bytes(64), bytes(1 << 20), b"x" * 70_000])),
        st.sampled_from([1, 7, 64, 1500, 100_000]),
        st.sampled_from(
            [[], ["--connections=3"], ["--crr"], ["--depth=4"], ["--burst=3", "--bursts=1"], ["--rate=100"]]
        ),
    )
    def fuzz(data: bytes, size: int, shape: list[str]) -> None:
        nonlocal answer
        answer = data
        limit = [] if "--burst=3" in shape else ["--count=9"]
        done = run("bench", "--port", misbehaving.port, "--size", size, *limit, *shape)
        assert done.returncode == 1
        assert_one_line(done, "bench")

    with ScriptedServer(serve) as misbehaving:
        fuzz()


def test_the_fuzzed_server_is_no_fiction() -> None:
    """With a server that echoes the same bench succeeds, so the failures above come from the answers."""
    with ScriptedServer(echo) as well_behaved:
        assert run("bench", "--port", well_behaved.port, "--count=9").returncode == 0
