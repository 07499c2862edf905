# SPDX-License-Identifier: MIT
"""The machine that a benchmark ran on: what may affect its figures."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from kecho.model.errors import Unavailable
from kecho.model.units import plural
from kecho.native import programs

# Sysctls that bound or delay TCP on one machine: accept queues, ports, buffers, busy polling, pacing, merging.
SYSCTLS = (
    "net.core.somaxconn",
    "net.core.netdev_max_backlog",
    "net.core.netdev_budget",
    "net.core.busy_poll",
    "net.core.busy_read",
    "net.core.rmem_max",
    "net.core.wmem_max",
    "net.core.default_qdisc",
    "net.core.bpf_jit_enable",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_tw_reuse",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
    "net.ipv4.tcp_mem",
    "net.ipv4.tcp_congestion_control",
    "net.ipv4.tcp_autocorking",
    "net.ipv4.tcp_limit_output_bytes",
    "net.ipv4.tcp_timestamps",
    "kernel.sched_autogroup_enabled",
)

_PROC_SYS = Path("/proc/sys")
_CPU = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Host:
    """The machine. `cpus` are those that this process may use. What is not known is empty or left out."""

    hostname: str
    kernel: str
    cpu: str
    cpus: int
    governor: str = ""  # of frequency scaling; several of them joined by a comma
    mitigations: Mapping[str, str] = field(default_factory=dict)  # by vulnerability, in the kernel's words
    sysctls: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)  # python, bcc, compiler (of build/bench)

    @classmethod
    def this(cls) -> Host:
        """This machine."""
        return cls(
            platform.node(),
            platform.release(),
            _cpu_model(),
            len(os.sched_getaffinity(0)),
            _governor(),
            {file.name: _read(file) for file in sorted(_CPU.glob("vulnerabilities/*"))},
            {name: value for name in SYSCTLS if (value := _read(_PROC_SYS / name.replace(".", "/")))},
            {name: version for name, version in _versions() if version},
        )

    def summary(self) -> tuple[str, ...]:
        """Kernel and CPUs, to stand beside every figure."""
        governor = (f"governor {self.governor}",) if self.governor else ()
        return (f"kernel {self.kernel}", self.cpu, plural(self.cpus, "CPU"), *governor)


def _read(file: Path) -> str:
    """The words of a file, separated by one space; empty if it cannot be read."""
    try:
        return " ".join(file.read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return ""


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return " ".join(next(models, platform.machine()).split())


def _governor() -> str:
    files = (_CPU / f"cpu{cpu}/cpufreq/scaling_governor" for cpu in sorted(os.sched_getaffinity(0)))
    return ",".join(dict.fromkeys(governor for file in files if (governor := _read(file))))


def _versions() -> Iterable[tuple[str, str]]:
    yield "python", platform.python_version()
    with contextlib.suppress(metadata.PackageNotFoundError):
        yield "bcc", metadata.version("bcc")  # without the slow import
    with contextlib.suppress(Unavailable, OSError):
        yield "compiler", compiler(programs.find("bench"))


def compiler(program: Path) -> str:
    """The compiler of an ELF program, from its section .comment; empty if it has none."""
    found = re.search(rb"(GCC: \([^)\0]*\) [^\0]+|[^\0]*clang version [^\0]+)\0", program.read_bytes())
    return found[1].decode("utf-8", "replace").strip() if found else ""
