# SPDX-License-Identifier: MIT
"""Loads and unloads fastecho.ko, and reads what it shows."""

import os
import subprocess
import time
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
KO = Path(os.environ.get("KECHO_KO", TOP / "build" / f"kmod-{os.uname().release}" / "fastecho.ko"))
SYSFS = Path("/sys/module/fastecho")
PORT = 12345

# Two seconds on a machine. An emulated one whose host is busy may need three: unloading waits for RCU several times.
UNLOAD_LIMIT_S = float(os.environ.get("KECHO_VM_UNLOAD_LIMIT_S", 6))


class LoadError(Exception):
    """insmod failed; the message is what it said."""


def load(*parameters: str) -> None:
    """Loads the module with parameters like 'inline=0'."""
    done = subprocess.run(["insmod", str(KO), *parameters], capture_output=True, text=True)
    if done.returncode:
        raise LoadError(done.stderr.strip())


def unload() -> float:
    """Unloads the module; returns how long that took, in seconds."""
    start = time.monotonic()
    subprocess.run(["rmmod", "fastecho"], check=True)
    return time.monotonic() - start


def is_loaded() -> bool:
    return SYSFS.exists()


def parameter(name: str) -> str:
    return (SYSFS / "parameters" / name).read_text().strip()


def counter(name: str) -> int:
    """One of active, total, rejected, aborted."""
    return int((SYSFS / "connections" / name).read_text())


def wait_for(condition, what: str, timeout_s: float = 10) -> None:
    """Waits until condition() holds."""
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
