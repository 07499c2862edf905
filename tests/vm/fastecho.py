# SPDX-License-Identifier: MIT
"""Loads and unloads fastecho.ko, and reads what it shows."""

import ctypes
import os
import subprocess
import time
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
KO = Path(os.environ.get("KECHO_KO", TOP / "build" / f"kmod-{os.uname().release}" / "fastecho.ko"))
SYSFS = Path("/sys/module/fastecho")
PORT = 12345

# How long unloading may take. In the machine whose clock counts instructions (scripts/vm --icount) that is a bound,
# whatever the host is busy with. In the other one the clock goes on while the guest waits for its processor: there
# unloading only has to end.
UNLOAD_LIMIT_S = 2 if os.environ.get("KECHO_VM_ICOUNT") else 60

_libc = ctypes.CDLL(None, use_errno=True)


class LoadError(Exception):
    """insmod failed; the message is what it said."""


def load(*parameters: str) -> None:
    """Loads the module with parameters like 'inline=0'."""
    done = subprocess.run(["insmod", str(KO), *parameters], capture_output=True, text=True)
    if done.returncode:
        raise LoadError(done.stderr.strip())


def unload() -> None:
    """Unloads the module, within the limit; by the system call, because starting a program takes long in there."""
    start = time.monotonic()
    if _libc.delete_module(b"fastecho", os.O_NONBLOCK):
        raise OSError(ctypes.get_errno(), "rmmod fastecho")
    took_s = time.monotonic() - start
    assert took_s < UNLOAD_LIMIT_S, f"unloading took {took_s:.2f} s"


def is_loaded() -> bool:
    return SYSFS.exists()


def parameter(name: str) -> str:
    return (SYSFS / "parameters" / name).read_text().strip()


def counter(name: str) -> int:
    """One of active, total, rejected, aborted."""
    return int((SYSFS / "connections" / name).read_text())


def wait_for(condition, what: str, timeout_s: float = 60) -> None:
    """Waits until condition() holds; fails after a time that only a broken module takes."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.01)


def wait_idle() -> None:
    """Waits until the service has no connections."""
    wait_for(lambda: counter("active") == 0, "connections to end")


def slab(name: str) -> tuple[int, int]:
    """How many objects of a slab cache are in use, and the size of one in bytes. Caches must not be merged."""
    for line in Path("/proc/slabinfo").read_text().splitlines():
        fields = line.split()
        if fields[0] == name:
            return int(fields[1]), int(fields[3])
    raise LookupError(f"no slab cache {name}")
