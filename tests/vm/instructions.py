# SPDX-License-Identifier: MIT
"""Counts the instructions of a round trip, for each backend and path. `make bench-instructions` runs it in the guest.

Arguments choose rows by the beginning of their names.

Under --icount the guest's clock advances one nanosecond an instruction, so a median time is a count. The client is
tests/vm/pingpong.c on the machine's only CPU, with one IPv4 connection. The count includes its two system calls and
one reading of the clock. `accepted` reads the last accepted table, which is in docs/performance.md.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import fastecho
from support import run_kecho

TOP = fastecho.TOP
SIZES_BYTES = (64, 1024, 16384)
ROUND_TRIPS = 2001
PERFORMANCE = TOP / "docs/performance.md"

Server = Callable[[], AbstractContextManager[None]]


def _controlled(*options: str) -> Server:
    """A server that `kecho-ctl up` starts with these options."""

    @contextmanager
    def serve() -> Iterator[None]:
        # No timeout: the clock of --icount runs on by minutes while the guest waits for its host.
        run_kecho("up", f"--port={fastecho.PORT}", *options, timeout=None).check_returncode()
        try:
            yield
        finally:
            run_kecho("down", timeout=None).check_returncode()

    return serve


def _user(engine: str) -> Server:
    @contextmanager
    def serve() -> Iterator[None]:
        command = [TOP / "build/user-echo-server", f"--port={fastecho.PORT}", f"--engine={engine}"]
        with subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout
            server.stdout.readline()  # it listens
            try:
                yield
            finally:
                server.terminate()

    return serve


def _bare_module(*parameters: str) -> Server:
    """The module, with nothing attached to its tracepoint."""

    @contextmanager
    def serve() -> Iterator[None]:
        fastecho.load(*parameters)
        try:
            yield
        finally:
            fastecho.unload()

    return serve


# Histogram and backpressure are on unless the name says otherwise.
SERVERS: Mapping[str, Server] = {
    "user, epoll": _user("epoll"),
    "user, io_uring": _user("io_uring"),
    "sockmap, egress": _controlled("--mode=sockmap"),
    "sockmap, egress, --no-latency": _controlled("--mode=sockmap", "--no-latency"),
    "sockmap, ingress": _controlled("--mode=sockmap", "--path=ingress"),
    "sockmap, ingress, --no-latency": _controlled("--mode=sockmap", "--path=ingress", "--no-latency"),
    "sockmap, skb": _controlled("--mode=sockmap", "--path=skb"),
    "mirror": _controlled("--mode=mirror"),
    "module, inline": _controlled("--mode=module"),
    "module, inline, bare": _bare_module(),
    "module, workqueue, bench=1, bare": _bare_module("inline=0", "bench=1"),
    "module, workqueue, bench=0, bare": _bare_module("inline=0"),
}


def round_trip(size_bytes: int) -> int:
    """The median of ROUND_TRIPS round trips to whatever serves fastecho.PORT."""
    return fastecho.pingpong(size_bytes, ROUND_TRIPS)


def floors(size_bytes: int) -> dict[str, int]:
    """What the kernel alone takes, measured by tests/vm/floors.c."""
    command = [str(TOP / "build/floors"), str(size_bytes), str(ROUND_TRIPS)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {name: int(count) for name, count in (line.split("\t") for line in done.stdout.splitlines())}


def kernel() -> str:
    """The major and minor version of the running kernel, such as ``6.1``. Instruction counts depend on it."""
    return ".".join(os.uname().release.split(".")[:2])


def accepted(version: str) -> dict[str, dict[int, int]]:
    """The table of docs/performance.md for a kernel, by row and size in bytes. Empty if it has none."""
    _, _, section = PERFORMANCE.read_text().partition(f"\n## Linux {version}\n")
    line = re.compile(r"^\| ([^|]+?) +\|" + r" +([\d,]+) \|" * len(SIZES_BYTES), re.MULTILINE)
    rows = line.findall(section.partition("\n## ")[0])
    return {
        name: {size: int(n.replace(",", "")) for size, n in zip(SIZES_BYTES, counts, strict=True)}
        for name, *counts in rows
    }


def row(name: str, counts: Mapping[int, int]) -> str:
    """A line of the table. `counts` are by size in bytes."""
    return f"| {name:34} |" + "|".join(f" {counts[size]:>8,} " for size in SIZES_BYTES) + "|"


def main(chosen: tuple[str, ...]) -> int:
    print(f"## Linux {kernel()}\n\n`{os.uname().release}`\n")
    print(heading := f"| {'':34} |" + "|".join(f" {label:>8} " for label in ("64 B", "1 KB", "16 KB")) + "|")
    print(re.sub(r"[^|]", "-", heading))
    by_size = {size: floors(size) for size in SIZES_BYTES}
    for name in by_size[64]:
        print(row(name, {size: by_size[size][name] for size in SIZES_BYTES}), flush=True)
    failed = False
    for name, serve in SERVERS.items():
        if not name.startswith(chosen):
            continue
        try:
            with serve():
                print(row(name, {size: round_trip(size) for size in SIZES_BYTES}), flush=True)
        except (subprocess.CalledProcessError, fastecho.LoadError) as e:
            print(f"{name}: {e}", file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main(tuple(sys.argv[1:]) or ("",)))
    sys.exit(130)
