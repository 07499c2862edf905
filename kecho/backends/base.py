# SPDX-License-Identifier: MIT
"""The interface of all backends, and the table of modes."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from kecho.model.errors import KechoError, Unavailable, UsageError

if TYPE_CHECKING:  # the command line imports this module and has to start quickly
    from kecho.kernel.features import Feature
    from kecho.model.config import Config
    from kecho.model.snapshot import Connections, PathStats

T = TypeVar("T")


@dataclass(frozen=True)
class _Mode:
    """`backend` is the class; `options` are those fields of Config that not every mode has.

    `why_no_sockets` is the reason if its connections have no sockets that `status` could list.
    """

    backend: str
    options: tuple[str, ...]
    why_no_sockets: str = ""


_MODES = {
    "mirror": _Mode("kecho.backends.mirror.MirrorBackend", ("latency", "keep_secret"), "a mirror has no sockets"),
    "module": _Mode("kecho.backends.module.ModuleBackend", ("bench", "inline")),
    "sockmap": _Mode("kecho.backends.sockmap.SockmapBackend", ("path", "limit_bytes", "latency", "cpus")),
    "user": _Mode("kecho.backends.user.UserBackend", ("engine", "busy_poll_us", "cpus")),
}
MODES = tuple(_MODES)
AUTO = ("module", "sockmap", "user")  # in the order in which `auto` prefers them


class NotStopped(KechoError):
    """A part of the data path could not be removed. The service's folder stays, since the next `down` needs it."""


@dataclass(frozen=True)
class Context:
    """What the controller tells its backend.

    `uid` is the user that the controller becomes after the start, None if it does not change. `alive` and `dead` are
    the services of the same mode whose controllers live or have died. The backend calls `on_failure` with a reason if
    its data path ends by itself after the start.
    """

    uid: int | None
    alive: tuple[str, ...]
    dead: tuple[str, ...]
    on_failure: Callable[[str], None]


class Backend(Protocol):
    """Starts and stops a data path and reads its counters and histograms. It does no measuring."""

    @staticmethod
    def features() -> tuple[Feature, ...]:
        """The features that the mode needs, and those that it can use."""

    async def start(self, config: Config, context: Context) -> None:
        """Starts all of the data path or nothing. Raises KechoError or OSError; NotStopped if something is left."""

    def stop(self) -> None:
        """Stops the data path. Idempotent, and safe after a failed start. Raises NotStopped."""

    def keeps(self) -> Collection[int]:
        """The capabilities that it needs to go on and to stop. Called after the start."""

    def paths(self) -> dict[str, PathStats]:
        """What each path did since the start."""

    def connections(self) -> Connections:
        """Connections since the start."""

    def trouble(self) -> str:
        """Why a service that is up does not serve as it should; empty if it does."""

    def describe(self) -> str:
        """The paths in use, for the line that `up` prints."""

    @staticmethod
    def clear_away(name: str, alive: Collection[str]) -> None:
        """Removes what the killed controller of that name left in the kernel. Raises KechoError.

        `alive` are the other services of the same mode whose controllers live.
        """


class AllOrNothing(ABC):
    """Start and stop by a stack: stopping, or failing to start, undoes in reverse what `_start` put on the stack."""

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


def why_no_sockets(mode: str) -> str:
    """Why `status` cannot list the connections of that mode; empty if it can, or if the mode is not known."""
    return _MODES[mode].why_no_sockets if mode in _MODES else ""


def modes_with(option: str) -> tuple[str, ...]:
    """The modes that have the option which sets this field of Config."""
    return tuple(name for name, mode in _MODES.items() if option in mode.options)


def check(features: Iterable[Feature]) -> None:
    """Raises Unavailable for the first required feature that this machine lacks."""
    for feature in features:
        if feature.required:
            feature.probe()


def first_able(modes: Sequence[str], bring_up: Callable[[str, str], T]) -> T:
    """Calls `bring_up` for the first of `modes` that this machine can run, and returns its result.

    `bring_up` gets the mode and the reasons why the modes before it cannot run. It may find such a reason itself and
    raise Unavailable. Raises UsageError if `modes` is empty, Unavailable if none of them can run.
    """
    if not modes:
        raise UsageError("no mode has all of these options")
    reasons: list[str] = []
    remedies: set[str] = set()
    for mode in modes:
        try:
            check(backend(mode).features())
            return bring_up(mode, "; ".join(reasons) or "the fastest there is")
        except Unavailable as e:
            reasons.append(f"no {mode}: {e.reason}")
            remedies.add(e.remedy)
    raise Unavailable("; ".join(reasons), remedies.pop() if len(remedies) == 1 else "")
