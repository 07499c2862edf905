# SPDX-License-Identifier: MIT
"""The module backend: loads fastecho.ko and counts the echoes that its tracepoint reports."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path

from kecho.backends.base import AllOrNothing, Context, NotStopped
from kecho.kernel import features, modules
from kecho.kernel.bpf import Module, PathArray
from kecho.kernel.features import Feature
from kecho.kernel.privileges import CAP_SYS_MODULE
from kecho.model.config import Config
from kecho.model.errors import KechoError, Unavailable, UsageError, one_line
from kecho.model.snapshot import Connections, PathStats
from kecho.native import programs

_LOADED = Path("/sys/module/fastecho")
_BUILD = programs.CHECKOUT / "build"

_OTHER_KERNEL = ("fastecho.ko is built for another kernel", "make kmod, with this kernel's headers")
_UNSIGNED = ("this kernel wants modules signed", "sign fastecho.ko, or use --mode sockmap")
# What is wrong, and what mends it, by the errno of finit_module(2).
_REFUSALS = {
    errno.ENOEXEC: _OTHER_KERNEL,
    errno.ENOENT: _OTHER_KERNEL,  # this kernel lacks a symbol
    errno.EKEYREJECTED: _UNSIGNED,
    errno.ENOKEY: _UNSIGNED,
    errno.EOPNOTSUPP: ("this kernel cannot unpack compressed modules", "unpack fastecho.ko"),
    errno.EPERM: (
        "this kernel lets nobody load fastecho: it is locked down, or this is a container",
        "sign fastecho.ko, boot without lockdown, or use --mode sockmap",
    ),
}


def probe_fastecho() -> str:
    """The module for the running kernel: installed by DKMS, or built in the checkout."""
    return str(find_module())


def find_module() -> Path:
    """The file fastecho.ko. Raises Unavailable if there is none for the running kernel."""
    found = _installed_module() or _BUILD / f"kmod-{features.release()}" / "fastecho.ko"
    if not found.exists():
        build = "make kmod, or dkms autoinstall after make install"
        has_headers = Path("/lib/modules", features.release(), "build/Makefile").exists()
        raise Unavailable(
            f"there is no fastecho.ko for {features.release()}",
            build if has_headers else features.apt_remedy(f"linux-headers-{features.release()}", f"then {build}"),
        )
    return found


def _installed_module() -> Path | None:
    """The module that modprobe finds; DKMS installs it."""
    try:
        found = _modinfo("-n", "fastecho")
    except OSError:
        return None
    return Path(found.stdout.strip()) if found.returncode == 0 else None


def _paths() -> tuple[str, ...]:
    """The names of the module's paths; the tracepoint has their indices."""
    names = tuple(_modinfo("-F", "paths", str(find_module())).stdout.split())
    if not names:
        raise Unavailable(
            "fastecho.ko is of another version of kecho", "make kmod, or make install and dkms autoinstall"
        )
    return names


def _modinfo(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("modinfo") or "/usr/sbin/modinfo"
    return subprocess.run([program, *arguments], capture_output=True, text=True, errors="replace", check=False)


class ModuleBackend(AllOrNothing):
    """The one fastecho of this kernel."""

    def __init__(self) -> None:
        super().__init__()
        self._array: PathArray | None = None
        self._inline = True
        self._listening = 0  # how many addresses it listens on after the start
        self._is_loaded = False  # true if this process has loaded it
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

    async def _start(self, config: Config, context: Context) -> None:
        if not config.latency:
            raise UsageError("--no-latency: mode module has no counters without its tracepoint; insmod it by hand")
        if is_loaded():
            self._replace(context)
        self._inline = config.inline
        self._undo.callback(self._unload)  # undone last: the programs hold a reference to the module
        paths = _paths()
        # Compiling is slow, so it comes first: the module must not serve without being counted.
        programs = Module("fastecho.c", {"KECHO_PATHS": len(paths)})
        self._undo.callback(programs.close)
        self._load(config)
        self._is_loaded = True
        self._listening = _count("listening")
        programs.attach_raw_tracepoint("fastecho_echo", "kecho_count")
        self._array = PathArray(programs.map_fd("paths"), paths)

    def _replace(self, context: Context) -> None:
        """Unloads a stale module that a dead controller left. Raises KechoError if it has another owner."""
        if context.alive:
            other = context.alive[0]
            raise KechoError(f"{other} is up, and there is but one fastecho in a kernel; kecho-ctl down {other} first")
        if not context.dead:
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
        try:
            modules.load(find_module(), " ".join(parameters))
        except OSError as e:
            if e.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                raise  # the controller words these errors
            if e.errno in _REFUSALS:
                raise Unavailable(*_REFUSALS[e.errno]) from e
            raise KechoError(f"fastecho does not load: {e.strerror} (dmesg says more)") from e

    def _unload(self) -> None:
        if self._is_loaded:
            unload()
        self._is_loaded = False

    def stop(self) -> None:
        super().stop()
        self._array = None

    def keeps(self) -> Collection[int]:
        return {CAP_SYS_MODULE, *(self._array.needs() if self._array else ())}  # to unload the module

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
    def clear_away(name: str, alive: Collection[str]) -> None:
        """Unloads the module, unless another service has loaded one since."""
        if not alive:
            unload()

    def describe(self) -> str:
        return ("softirq, then workqueue" if self._inline else "workqueue") + self._note


def _count(name: str) -> int:
    """One of the module's counters; 0 if it is not loaded."""
    try:
        return int((_LOADED / "connections" / name).read_text())
    except OSError:
        return 0


def is_loaded() -> bool:
    """Is fastecho loaded?"""
    return _LOADED.exists()


def unload() -> None:
    """Unloads the module if it is loaded. Raises NotStopped if the kernel refuses."""
    if not is_loaded():
        return
    try:
        modules.unload("fastecho")
    except OSError as e:
        raise NotStopped(f"fastecho does not unload: {one_line(e)}") from e
