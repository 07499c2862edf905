# SPDX-License-Identifier: MIT
"""The module backend: loads fastecho.ko and counts what its tracepoint tells."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path

from kecho.backends.base import AllOrNothing, OnFailure
from kecho.kernel import features
from kecho.kernel.bpf import Module, PathArray
from kecho.kernel.features import Feature
from kecho.kernel.privileges import CAP_SYS_MODULE
from kecho.kernel.sockets import port_taken
from kecho.model.config import Config, endpoint
from kecho.model.errors import KechoError, Unavailable, UsageError
from kecho.model.snapshot import Connections, PathStats
from kecho.native import programs
from kecho.service import rundir

_LOADED = Path("/sys/module/fastecho")
_BUILD = programs.CHECKOUT / "build"

# What insmod says, in the words of strerror, and what that means.
_REFUSALS = {
    "Invalid module format": ("fastecho.ko is built for another kernel", "make kmod, with this kernel's headers"),
    "Exec format error": ("fastecho.ko is built for another kernel", "make kmod, with this kernel's headers"),
    "Key was rejected by service": ("this kernel wants modules signed", "sign fastecho.ko, or use --mode sockmap"),
    "Required key not available": ("this kernel wants modules signed", "sign fastecho.ko, or use --mode sockmap"),
    "Operation not permitted": (
        "this kernel lets nobody load fastecho: it is locked down, or this is a container",
        "sign fastecho.ko, boot without lockdown, or use --mode sockmap",
    ),
    "Unknown symbol in module": ("fastecho.ko is built for another kernel", "make kmod, with this kernel's headers"),
}


def probe_fastecho() -> str:
    """The module for this very kernel: installed (DKMS), else built in the checkout."""
    return str(find_module())


def find_module() -> Path:
    """fastecho.ko. Raises Unavailable if there is none for this kernel."""
    found = _installed_module() or _BUILD / f"kmod-{features.release()}" / "fastecho.ko"
    if not found.exists():
        raise Unavailable(
            f"there is no fastecho.ko for {features.release()}",
            f"apt-get install linux-headers-{features.release()}, then make kmod, or dkms autoinstall after "
            "make install",
        )
    return found


def _installed_module() -> Path | None:
    """Where modprobe finds it, as DKMS puts it there."""
    try:
        found = _run("modinfo", "-n", "fastecho")
    except OSError:
        return None
    return Path(found.stdout.strip()) if found.returncode == 0 else None


def _paths() -> tuple[str, ...]:
    """The names of the module's paths, in the order of the numbers that its tracepoint tells."""
    names = tuple(_run("modinfo", "-F", "paths", find_module()).stdout.split())
    if not names:
        raise Unavailable(
            "fastecho.ko is of another version of kecho", "make kmod, or make install and dkms autoinstall"
        )
    return names


class ModuleBackend(AllOrNothing):
    """The one fastecho of this kernel."""

    def __init__(self) -> None:
        super().__init__()
        self._array: PathArray | None = None
        self._inline = True
        self._listening = 0  # addresses
        self._is_loaded = False  # by this process
        self._note = ""

    @staticmethod
    def features() -> tuple[Feature, ...]:
        return (
            Feature("privilege", features.probe_privilege),
            Feature("loadable modules", features.probe_modules),
            Feature("fastecho", probe_fastecho),
            Feature("bcc", features.probe_bcc),
            Feature("headers", features.probe_headers),
        )

    async def _start(self, config: Config, on_failure: OnFailure) -> None:
        if not config.latency:
            raise UsageError("--no-latency: mode module has no counters without its tracepoint; insmod it by hand")
        if _LOADED.exists():
            self._replace(config.name)
        self._inline = config.inline
        self._undo.callback(self._unload)  # last: the programs hold on to the module
        paths = _paths()
        # Compiling takes long; the module must not serve uncounted meanwhile.
        programs = Module("fastecho.c", {"KECHO_PATHS": len(paths)})
        self._undo.callback(programs.close)
        self._load(config)
        self._is_loaded = True
        self._listening = _count("listening")
        programs.attach_raw_tracepoint("fastecho_echo", "kecho_count")
        self._array = PathArray(programs.map_fd("paths"), paths)

    def _replace(self, name: str) -> None:
        """Takes out the module that a dead controller left; anybody else's stays."""
        alive, dead = _controllers(name)
        if alive:
            raise KechoError(
                f"{alive[0]} is up, and there is but one fastecho in a kernel; kecho-ctl down {alive[0]} first"
            )
        if not dead:
            raise KechoError("fastecho is loaded already, not by kecho-ctl; rmmod fastecho first")
        unload()
        self._note = "; replaced the fastecho that a killed controller had left"

    def _load(self, config: Config) -> None:
        parameters = (
            f"port={config.port}",
            f"backlog={config.backlog}",
            f"bench={config.bench}",
            f"inline={int(config.inline)}",
            f"bind={','.join(config.binds)}",
        )
        if _installed_module():
            done = _run("modprobe", "fastecho", *parameters)
        else:
            done = _run("insmod", find_module(), *parameters)
        if done.returncode == 0:
            return
        said = _said(done)
        if said in _REFUSALS:
            raise Unavailable(*_REFUSALS[said])
        where = ", ".join(endpoint(address, config.port) for address in config.binds)
        if said == "Address already in use":
            raise port_taken(config)
        if said == "Cannot assign requested address":
            raise KechoError(f"cannot listen on {where}: not an address of this machine")
        raise KechoError(f"fastecho does not load: {said} (dmesg says more)")

    def _unload(self) -> None:
        if self._is_loaded:
            unload()
        self._is_loaded = False

    def stop(self) -> None:
        super().stop()
        self._array = None

    def keeps(self) -> Collection[int]:
        return {CAP_SYS_MODULE, *(self._array.needs() if self._array else ())}  # for rmmod

    def paths(self) -> dict[str, PathStats]:
        return self._array.read() if self._array else {}

    def connections(self) -> Connections:
        return Connections(**{name: _count(name) for name in ("active", "total", "rejected", "aborted")})

    def trouble(self) -> str:
        listening = _count("listening")
        if listening >= self._listening:
            return ""
        return (
            f"listens on {listening} of its {self._listening} addresses any more: somebody has ended the socket, "
            "as ss -K does, or removed the module; dmesg says which"
        )

    @staticmethod
    def clear_away(name: str) -> None:
        """The module, unless another service has taken its place."""
        alive, _ = _controllers(name)
        if not alive:
            unload()

    def describe(self) -> str:
        return ("softirq, then workqueue" if self._inline else "workqueue") + self._note


def _count(name: str) -> int:
    """One of the module's counters; 0 where it is not loaded."""
    try:
        return int((_LOADED / "connections" / name).read_text())
    except OSError:
        return 0


def _controllers(own: str) -> tuple[list[str], list[str]]:
    """The services of mode module whose controller lives, and those that died; `own` is this process's name."""
    alive: list[str] = []
    dead: list[str] = []
    for name in rundir.names():
        state = rundir.read_state(name) or {}
        if state.get("mode") == "module":
            (alive if name != own and rundir.is_running(state.get("pid", 0)) else dead).append(name)
    return alive, dead


def unload() -> None:
    """Takes the module out, if it is in. Raises KechoError if the kernel does not let it go."""
    if not _LOADED.exists():
        return
    done = _run("rmmod", "fastecho")
    if done.returncode != 0:
        raise KechoError(f"fastecho does not unload: {_said(done)}")


def _said(done: subprocess.CompletedProcess[str]) -> str:
    """The reason at the end of what insmod, modprobe or rmmod printed."""
    return done.stderr.strip().rpartition(": ")[2]


def _run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin") or program
    return subprocess.run([path, *map(str, arguments)], capture_output=True, text=True, check=False)
