# SPDX-License-Identifier: MIT
"""The ways to run an echo service, one a module, behind one interface."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from kecho.model.errors import KechoError, Unavailable, UsageError

if TYPE_CHECKING:  # the command line reads MODES, and starts quickly
    from kecho.kernel.features import Feature
    from kecho.model.config import Config
    from kecho.model.snapshot import Connections, PathStats

T = TypeVar("T")


@dataclass(frozen=True)
class _Mode:
    """`backend` is the class; `options` are those fields of Config that not every mode has."""

    backend: str
    options: tuple[str, ...]


_MODES = {
    "mirror": _Mode("kecho.backends.mirror.MirrorBackend", ("latency", "keep_secret")),
    "module": _Mode("kecho.backends.module.ModuleBackend", ("bench", "inline")),
    "sockmap": _Mode("kecho.backends.sockmap.SockmapBackend", ("path", "limit_bytes", "latency")),
    "user": _Mode("kecho.backends.user.UserBackend", ("engine",)),
}
MODES = tuple(_MODES)
AUTO = ("module", "sockmap", "user")  # in the order in which `auto` prefers them


class NotStopped(KechoError):
    """A part of the data path is still there; the next `down` needs what the service's folder says of it."""


@dataclass(frozen=True)
class Context:
    """What a backend is told by the controller that runs it.

    `uid` is the user that the controller becomes once the backend has started, None if it stays what it is. `alive` and
    `dead` are the names of the services of the same mode, by whether their controllers are. `on_failure` is to be
    called, with the reason, if the data path ends by itself after the start.
    """

    uid: int | None
    alive: tuple[str, ...]
    dead: tuple[str, ...]
    on_failure: Callable[[str], None]


class Backend(Protocol):
    """Starts and stops a data path and says which counters and histograms are its own. Does no measuring."""

    why_no_sockets: str

    @staticmethod
    def features() -> tuple[Feature, ...]:
        """What the mode needs of this machine."""

    async def start(self, config: Config, context: Context) -> None:
        """All or nothing. Raises KechoError or OSError; NotStopped if a failed start leaves something."""

    def stop(self) -> None:
        """Idempotent, and safe after a failed start. Raises NotStopped."""

    def keeps(self) -> Collection[int]:
        """The capabilities without which it could not go on, or not stop; it has started when this is called."""

    def paths(self) -> dict[str, PathStats]:
        """What each path did since the start."""

    def connections(self) -> Connections:
        """Connections since the start."""

    def trouble(self) -> str:
        """What keeps a service that is up from serving as it should; empty if nothing does."""

    def describe(self) -> str:
        """The paths in use, for the line that `up` prints."""

    @staticmethod
    def clear_away(name: str, alive: Collection[str]) -> None:
        """Takes away what a controller of that name, which was killed, left in the kernel. Raises KechoError.

        `alive` are the other services of the same mode.
        """


class AllOrNothing(ABC):
    """Start and stop of a backend: what `_start` has put on the stack is undone in reverse, should it fail too."""

    why_no_sockets = ""  # where `status` can list no socket of a connection

    def __init__(self) -> None:
        self._undo = contextlib.ExitStack()

    async def start(self, config: Config, context: Context) -> None:
        try:
            await self._start(config, context)
        except BaseException:
            self.stop()
            raise

    @abstractmethod
    async def _start(self, config: Config, context: Context) -> None: ...

    def stop(self) -> None:
        self._undo.close()

    @staticmethod
    def clear_away(name: str, alive: Collection[str]) -> None:
        """Nothing outlives the controller."""
        return

    def trouble(self) -> str:
        return ""


def backend(mode: str) -> type[Backend]:
    """The backend of a mode. Raises UsageError if there is none of that name."""
    if mode not in _MODES:
        raise UsageError(f"--mode {mode}: must be one of auto, {', '.join(MODES)}")
    module, _, name = _MODES[mode].backend.rpartition(".")
    return cast(type[Backend], getattr(import_module(module), name))


def modes_with(option: str) -> tuple[str, ...]:
    """The modes that have an option, given as a field of Config."""
    return tuple(name for name, mode in _MODES.items() if option in mode.options)


def check(features: Iterable[Feature]) -> None:
    """Raises Unavailable for the first required feature that this machine lacks."""
    for feature in features:
        if feature.required:
            feature.probe()


def first_able(modes: Sequence[str], bring_up: Callable[[str, str], T]) -> T:
    """What `bring_up` returns for the first of `modes` that this machine can run.

    It gets the mode, and what keeps the machine from the ones before, which a probe may find or only coming up.
    Raises UsageError if `modes` is empty, Unavailable if it can run none of them.
    """
    if not modes:
        raise UsageError("no mode has all of these options")
    reasons: list[str] = []
    for mode in modes:
        try:
            check(backend(mode).features())
            return bring_up(mode, "; ".join(reasons) or "the fastest there is")
        except Unavailable as e:
            reasons.append(f"no {mode}: {e.reason}")
    raise Unavailable("; ".join(reasons))
