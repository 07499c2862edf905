# SPDX-License-Identifier: MIT
"""The module backend: loads fastecho.ko and counts what its tracepoint tells."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Collection
from pathlib import Path

from kecho import kernel, rundir
from kecho.backends import OnFailure
from kecho.bpf import Module, PathArray
from kecho.config import Config, endpoint
from kecho.diag import port_taken
from kecho.errors import KechoError, Unavailable, UsageError
from kecho.kernel import Feature
from kecho.privileges import CAP_SYS_MODULE
from kecho.snapshot import Connections, PathStats

PATHS = ("softirq", "workqueue")  # enum fastecho_path of kmod/echo.h
_LOADED = Path("/sys/module/fastecho")

# What insmod says, in the words of strerror, and what that means.
_REFUSALS = {
    "Invalid module format": ("fastecho.ko is built for another kernel", "make kmod, with this kernel's headers"),
    "Exec format error": ("fastecho.ko is built for another kernel", "make kmod, with this kernel's headers"),
    "Key was rejected by service": ("this kernel wants modules signed", "sign fastecho.ko, or use --mode sockmap"),
    "Required key not available": ("this kernel wants modules signed", "sign fastecho.ko, or use --mode sockmap"),
    "Operation not permitted": ("this kernel is locked down and loads no module", "use --mode sockmap"),
    "Unknown symbol in module": ("fastecho.ko is built for another kernel", "make kmod, with this kernel's headers"),
}


def probe_fastecho() -> str:
    """The module for this very kernel: installed (DKMS), else built in the checkout."""
    return str(find_module())


def find_module() -> Path:
    """fastecho.ko. Raises Unavailable if there is none for this kernel."""
    modinfo = shutil.which("modinfo") or "/sbin/modinfo"
    try:
        found = subprocess.run([modinfo, "-n", "fastecho"], capture_output=True, text=True, check=False)
        if found.returncode == 0:
            return Path(found.stdout.strip())
    except OSError:
        pass
    built = Path(__file__).parent.parent.parent / "build" / f"kmod-{kernel.release()}" / "fastecho.ko"
    if built.exists():
        return built
    raise Unavailable(
        f"there is no fastecho.ko for {kernel.release()}",
        f"apt-get install linux-headers-{kernel.release()}, then make kmod",
    )


class ModuleBackend:
    """The one fastecho of this kernel."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []
        self._array: PathArray | None = None
        self._inline = True
        self._note = ""

    @staticmethod
    def features() -> tuple[Feature, ...]:
        return (
            Feature("privilege", kernel.probe_privilege),
            Feature("loadable modules", kernel.probe_modules),
            Feature("fastecho", probe_fastecho),
            Feature("bcc", kernel.probe_bcc),
            Feature("headers", kernel.probe_headers),
        )

    async def start(self, config: Config, on_failure: OnFailure) -> None:
        try:
            self._start(config)
        except BaseException:
            self.stop()
            raise

    def _start(self, config: Config) -> None:
        if _LOADED.exists():
            if not left_behind():
                raise KechoError("fastecho is loaded already, not by kecho-ctl; rmmod fastecho first")
            unload()
            self._note = "; replaced the fastecho that a killed controller had left"
        if not config.latency:
            raise UsageError("--no-latency: mode module has no counters without its tracepoint; insmod it by hand")
        self._inline = config.inline
        self._load(config)
        self._undo.append(unload)
        programs = Module("fastecho.c", {})
        self._undo.append(programs.close)
        programs.attach_raw_tracepoint("fastecho_echo", "count_echo")
        self._array = PathArray(programs.map_fd("paths"), PATHS)

    def _load(self, config: Config) -> None:
        path = find_module()
        parameters = (
            f"port={config.port}",
            f"backlog={config.backlog}",
            f"bench={config.bench}",
            f"inline={int(config.inline)}",
            f"bind={','.join(config.binds)}",
        )
        done = _run("modprobe" if str(path).startswith("/lib/modules/") else "insmod", path, *parameters)
        if done.returncode == 0:
            return
        said = done.stderr.strip().rpartition(": ")[2]
        if said in _REFUSALS:
            raise Unavailable(*_REFUSALS[said])
        where = ", ".join(endpoint(address, config.port) for address in config.binds)
        if said == "Address already in use":
            raise port_taken(config)
        if said == "Cannot assign requested address":
            raise KechoError(f"cannot listen on {where}: not an address of this machine")
        raise KechoError(f"fastecho does not load: {said} (dmesg says more)")

    def stop(self) -> None:
        """The programs first: they hold on to the module."""
        while self._undo:
            self._undo.pop()()
        self._array = None

    def keeps(self) -> Collection[int]:
        return {CAP_SYS_MODULE, *(self._array.needs() if self._array else ())}  # for rmmod

    def paths(self) -> dict[str, PathStats]:
        return self._array.read() if self._array else {}

    def connections(self) -> Connections:
        counts = {}
        for name in ("active", "total", "rejected", "aborted"):
            try:
                counts[name] = int((_LOADED / "connections" / name).read_text())
            except OSError:
                counts[name] = 0
        return Connections(**counts)

    def describe(self) -> str:
        return ("softirq, then workqueue" if self._inline else "workqueue") + self._note


def left_behind() -> bool:
    """Is the loaded module one that a controller which died had loaded?"""
    states = [rundir.read_state(name) or {} for name in rundir.names()]
    return any(state.get("mode") == "module" and not _runs(state.get("pid")) for state in states)


def _runs(pid: object) -> bool:
    return Path(f"/proc/{pid}").exists()


def unload() -> None:
    """Takes the module out, if it is in. Raises KechoError if the kernel does not let it go."""
    if not _LOADED.exists():
        return
    done = _run("rmmod", "fastecho")
    if done.returncode != 0:
        raise KechoError(f"fastecho does not unload: {done.stderr.strip().rpartition(': ')[2]}")


def _run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin") or program
    if program == "modprobe":
        arguments = ("fastecho", *arguments[1:])
    return subprocess.run([path, *map(str, arguments)], capture_output=True, text=True, check=False)
