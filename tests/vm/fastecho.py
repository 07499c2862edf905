# SPDX-License-Identifier: MIT
"""Loads and unloads fastecho.ko, reads its counters, and measures the round trip to whatever serves its port."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import support
from support import wait_for

from kecho.kernel import modules

TOP = support.ROOT
KO = Path(os.environ.get("KECHO_KO", TOP / "build" / f"kmod-{os.uname().release}" / "fastecho.ko"))
SYSFS = Path("/sys/module/fastecho")
PORT = 12345

# How long unloading may take. Under scripts/vm --icount the clock counts instructions, so this is a bound however
# busy the host is. Without it the clock goes on while the guest waits for a CPU of the host: there unloading only has
# to end.
UNLOAD_LIMIT_S = 2 if os.environ.get("KECHO_VM_ICOUNT") else 60


class LoadError(Exception):
    """insmod failed. The message is that of insmod."""


def load(*parameters: str) -> None:
    """Loads the module with parameters such as 'inline=0'."""
    done = subprocess.run(["insmod", str(KO), *parameters], capture_output=True, text=True)
    if done.returncode:
        raise LoadError(done.stderr.strip())


def unload() -> None:
    """Unloads the module within the limit. It uses the system call: starting a program is slow in the guest."""
    start = time.monotonic()
    modules.unload("fastecho")
    took_s = time.monotonic() - start
    assert took_s < UNLOAD_LIMIT_S, f"unloading took {took_s:.2f} s"


def is_loaded() -> bool:
    return SYSFS.exists()


def parameter(name: str) -> str:
    return (SYSFS / "parameters" / name).read_text().strip()


def counter(name: str) -> int:
    """The value of a counter: active, total, rejected or aborted."""
    return int((SYSFS / "connections" / name).read_text())


class Server(support.Server):
    """The module as a server, loaded with these parameters."""

    def __init__(self, *parameters: str) -> None:
        load(*parameters)
        super().__init__(PORT)

    def connections(self) -> dict[str, int]:
        return {name: counter(name) for name in ("active", "total", "rejected", "aborted")}


def pingpong(size: int, count: int, address: str = "127.0.0.1", port: int = PORT) -> int:
    """The median round trip of `count` messages, in nanoseconds, measured by tests/vm/pingpong.c."""
    command = [TOP / "build/pingpong", address, port, size, count]
    return int(subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout)


def stuck_clients(count: int) -> list[socket.socket]:
    """Clients that have filled both buffers and do not read, so that the FIN behind that data is not acknowledged."""
    socks = [socket.create_connection(("127.0.0.1", PORT)) for _ in range(count)]
    for sock in socks:
        sock.setblocking(False)
        try:
            while True:
                sock.send(bytes(1 << 16))
        except BlockingIOError:
            pass
    return socks


def wait_idle() -> None:
    """Waits until the service has no connections."""
    wait_for(lambda: counter("active") == 0, "connections to end")


@contextmanager
def workers_starve() -> Iterator[None]:
    """Keeps kworkers from running while the block runs and does not sleep: it has their CPU to itself."""
    allowed = Path("/sys/devices/virtual/workqueue/cpumask")
    mask, cpus = allowed.read_text(), os.sched_getaffinity(0)
    allowed.write_text("1")
    os.sched_setaffinity(0, {0})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setaffinity(0, cpus)
        allowed.write_text(mask)


def slab(name: str) -> tuple[int, int]:
    """The objects in use of a slab cache, and the size of one in bytes. Caches must not be merged (slab_nomerge)."""
    for line in Path("/proc/slabinfo").read_text().splitlines():
        fields = line.split()
        if fields[0] == name:
            return int(fields[1]), int(fields[3])
    raise LookupError(f"no slab cache {name}")
