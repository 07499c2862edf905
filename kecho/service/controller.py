# SPDX-License-Identifier: MIT
"""Runs a service with its backend, control socket and folder, from `up` to `down`, in the foreground or background."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, NoReturn

from kecho.backends.base import Backend, Context, NotStopped, check
from kecho.kernel import cpus, features, privileges, process, procfs
from kecho.kernel.sockets import listen_counters, port_taken
from kecho.model.config import Config, endpoint
from kecho.model.errors import KechoError, Unavailable, UsageError, one_line
from kecho.model.snapshot import SCHEMA, Snapshot
from kecho.service import rundir
from kecho.service.control_server import ControlServer
from kecho.service.keeper import Keeper
from kecho.service.rundir import RunDir

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_ERRORS: tuple[type[KechoError], ...] = (UsageError, Unavailable, KechoError)


class Service:
    """One service in this process. `run` brings it up, calls `ready`, and returns when the service was asked to end."""

    def __init__(self, config: Config, backend: Backend, folder: RunDir) -> None:
        self._config = config
        self._backend = backend
        self._folder = folder
        self._started = time.monotonic()
        self._base: Snapshot | None = None  # what was counted before the last reset
        self._since_ns = time.monotonic_ns()
        self._listen_base: dict[str, int] = {}
        self._end = asyncio.Event()
        self._failure = ""

    async def run(self, ready: Callable[[str], None]) -> None:
        """Raises KechoError if it does not come up or its data path ends by itself, NotStopped if some is left."""
        for number in process.heeded(*_ENDING):
            asyncio.get_running_loop().add_signal_handler(number, self._end.set)
        control = ControlServer(
            {"status": self._status, "stats": lambda: self._since_reset().to_json()}, {"reset": self._reset}, self._end
        )
        with contextlib.ExitStack() as stack:
            stack.callback(control.stop)
            self._listen_base = listen_counters()
            uid = privileges.user_for(self._config.port)
            alive, dead = rundir.controllers(self._config.mode, self._config.name)
            await self._start_backend(Context(uid, alive, dead, self._fail))
            stack.callback(self._backend.stop)
            self._started = time.monotonic()
            listener = self._folder.listen()
            self._folder.write_state(self.description())
            privileges.drop(self._backend.keeps(), uid)
            await control.start(listener)
            ready(self._describe())
            await self._end.wait()
        if self._failure:
            raise KechoError(self._failure)

    async def _start_backend(self, context: Context) -> None:
        if self._config.cpus:
            cpus.run_on(self._config.cpus)
        try:
            await self._backend.start(self._config, context)
        except OSError as e:
            raise KechoError(self._explain(e)) from e

    def _explain(self, error: OSError) -> str:
        if error.errno == errno.EADDRINUSE:
            return str(port_taken(self._config))
        if error.errno == errno.EADDRNOTAVAIL:
            return f"cannot listen on {self._where()}: not an address of this machine"
        return f"cannot bring {self._config.name} up: {one_line(error)}"

    def _fail(self, why: str) -> None:
        self._failure = why
        self._end.set()

    def _where(self) -> str:
        return ", ".join(endpoint(address, self._config.port) for address in self._config.binds)

    def description(self) -> dict[str, Any]:
        """The content of state.json."""
        return {**self._description(), "config": self._config.to_json()}

    # ---- answers of the control socket ----

    def _description(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "name": self._config.name,
            "mode": self._config.mode,
            "port": self._config.port,
            "binds": list(self._config.binds),
            "pid": os.getpid(),
            "state": "up",
            "paths": list(self._backend.paths()),
            "netns": procfs.netns_inode(),
            "cpus": self._config.cpus,
        }

    def _status(self) -> dict[str, Any]:
        return {
            **self._description(),
            "uptime_s": round(time.monotonic() - self._started, 3),
            "connections": vars(self._backend.connections()),
            "trouble": self._backend.trouble(),
            "listen": {name: count - self._listen_base[name] for name, count in listen_counters().items()},
        }

    def _snapshot(self) -> Snapshot:
        return Snapshot(
            self._config.name,
            self._config.mode,
            self._config.port,
            time.monotonic() - self._started,
            features.release(),
            self._backend.connections(),
            self._backend.paths(),
        )

    def _since_reset(self) -> Snapshot:
        now = self._snapshot()
        since = now - self._base if self._base else now
        return replace(since, uptime_s=now.uptime_s, since_ns=self._since_ns)

    def _reset(self) -> dict[str, Any]:
        """Takes the counts as the new zero. The counters are not written, which could lose an echo in flight."""
        self._base = self._snapshot()
        self._since_ns = time.monotonic_ns()
        return {"ok": True}

    def _describe(self) -> str:
        return (
            f"{self._config.name} is up: mode {self._config.mode}, {self._where()}, paths: {self._backend.describe()}"
        )


def run_foreground(config: Config, backend: Backend, ready: Callable[[str], None], keep: Collection[int] = ()) -> None:
    """Brings a service up in this process and returns when it has ended. Raises KechoError.

    The process gives up its privileges for good, and closes all descriptors but the standard ones and `keep`.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # a client may go before it has read its answer
    process.close_descriptors(keep)
    check(backend.features())
    with contextlib.ExitStack() as stack:
        with process.blocked(*_ENDING):  # a signal before the keeper is there would leave the folder behind
            folder = _take(config.name)
            stack.callback(folder.release)
            keeper = stack.enter_context(_keeper(folder))
        log = logging.FileHandler(folder.log, delay=True)
        logging.getLogger("kecho").addHandler(log)
        stack.callback(logging.getLogger("kecho").removeHandler, log)
        asyncio.run(_run(Service(config, backend, folder), folder, keeper, ready))


def _take(name: str) -> RunDir:
    """Acquires the folder of that name. Raises KechoError if another service has it, and says which."""
    try:
        return RunDir.acquire(name)
    except rundir.Taken as e:
        state = rundir.read_state(name)
        what = f" (mode {state['mode']}, port {state['port']}, pid {state['pid']})" if state else ""
        raise KechoError(f"{e}{what}; `kecho-ctl down {name}`, or --name") from None


def _keeper(folder: RunDir) -> Keeper:
    """Clears the folder, and starts the keeper that removes it in the end."""
    try:
        folder.clear()
        return Keeper(folder)
    except OSError:  # fork() failed
        folder.remove()
        raise


async def _run(service: Service, folder: RunDir, keeper: Keeper, ready: Callable[[str], None]) -> None:
    try:
        await service.run(ready)
    except NotStopped:
        keeper.dismiss()
        if not rundir.read_state(folder.path.name):  # it failed while it came up, and is still root
            folder.write_state(service.description())
        raise


def run_background(config: Config, backend: Backend, dies_with_parent: bool = False) -> str:
    """Brings a service up in a process of its own. Returns the line that describes it once it answers.

    Raises KechoError, and then leaves nothing behind. An interrupt takes the half-made service down. With
    `dies_with_parent` the service goes down when the calling thread ends, even if it is killed.
    """
    receiving, sending = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid() if dies_with_parent else None
    pid = 0
    try:
        # A signal between fork() and the assignment would lose the child's pid; in the child it would unwind to here.
        with process.blocked(*_ENDING):
            pid = os.fork()
            if pid == 0:
                for number in process.heeded(*_ENDING, signal.SIGPIPE):
                    signal.signal(number, signal.SIG_DFL)
        if pid == 0:
            os.close(receiving)
            _background(config, backend, sending, parent)
        os.close(sending)
        with os.fdopen(receiving, "rb") as pipe:
            line = pipe.readline()
    except BaseException:  # a signal
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)
        raise
    if not line:
        os.waitpid(pid, 0)
        raise KechoError(f"the controller of {config.name} ended while it came up")
    answer = json.loads(line)
    if "error" in answer:
        os.waitpid(pid, 0)
        raise _rebuild(answer)
    return str(answer["ready"])


def _background(config: Config, backend: Backend, sending: int, parent: int | None) -> NoReturn:
    """Runs the child: in a session of its own, without a terminal; it sends one line to the parent."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # removes the folder, until the service handles it
        if parent is not None:
            process.end_with_parent(parent)
        process.leave_terminal()

        def ready(line: str) -> None:
            _tell(sending, {"ready": line})

        run_foreground(config, backend, ready, {sending})
        code = 0
    except KechoError as e:
        code = e.exit_code
        _tell(sending, {"error": one_line(e), "exit": code})
    except OSError as e:
        _tell(sending, {"error": f"cannot bring {config.name} up: {one_line(e)}", "exit": code})
    except BaseException as e:  # there is no terminal for a traceback
        _tell(sending, {"error": f"{type(e).__name__}: {one_line(e)}", "exit": code})
    finally:  # also if a signal came meanwhile: what the parent has to undo is not the child's
        os._exit(code)


def _tell(sending: int, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the pipe is closed already, or the parent is gone
        os.write(sending, json.dumps(message).encode() + b"\n")
        os.close(sending)


def _rebuild(answer: dict[str, Any]) -> KechoError:
    for kind in _ERRORS:
        if kind.exit_code == answer["exit"]:
            return kind(answer["error"])
    return KechoError(answer["error"])
