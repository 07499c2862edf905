# SPDX-License-Identifier: MIT
"""The user backend: runs ``user-echo-server``, the baseline, and reads the counters that it keeps in shared memory."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import signal
import struct
import subprocess
from collections.abc import Callable, Collection, Mapping

from kecho.backends.base import AllOrNothing, Context
from kecho.kernel.features import Feature
from kecho.kernel.sockets import port_taken
from kecho.model.config import Config
from kecho.model.errors import KechoError, Unavailable, UsageError
from kecho.model.snapshot import Connections, PathStats
from kecho.native import programs

# kecho/native/server/stats.h
_MAGIC = 0x3154534F4843454B
_HEADER = struct.Struct("=QQQQQ")  # magic, version, header_bytes, block_bytes, blocks
_BLOCK = struct.Struct("=QQQQQQ")  # active, total, rejected, aborted, echoes, bytes

_START_TIMEOUT_S = 5
# enum exit_code of kecho/native/common/args.h
_KINDS: Mapping[int, type[KechoError]] = {2: UsageError, 3: Unavailable}
_EXIT_PORT_TAKEN = 4
_WHY_NO_LATENCY = "user-echo-server is the baseline: it spends no time on clock reads"


def probe_root() -> str:
    """Root, whose folder ``/run/kecho`` is; the server alone would need it for ports below 1024 only."""
    if os.geteuid() != 0:
        raise Unavailable("services are root's to bring up and down", "run it as root, with sudo")
    return "yes"


def probe_server() -> str:
    """The native server, if it is built."""
    return str(programs.find("user-echo-server"))


class UserBackend(AllOrNothing):
    """One user-echo-server, which ends with this process."""

    def __init__(self) -> None:
        super().__init__()
        self._stats: mmap.mmap | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._engine = ""

    @staticmethod
    def features() -> tuple[Feature, ...]:
        return (Feature("privilege", probe_root), Feature("user-echo-server", probe_server))

    async def _start(self, config: Config, context: Context) -> None:
        self._engine = config.engine
        with contextlib.ExitStack() as stack:
            stats_fd = os.memfd_create("kecho-stats")
            stack.callback(os.close, stats_fd)
            ready, ready_child = os.pipe()
            stack.callback(os.close, ready)
            try:
                self._process = self._run(config, context.uid, ready_child, stats_fd)
            finally:
                os.close(ready_child)
            self._undo.callback(self._end_process)
            if await _first_line(ready) != b"ready\n":
                raise self._explain(config)
            self._stats = mmap.mmap(stats_fd, 0, prot=mmap.PROT_READ)
            self._undo.callback(self._stats.close)
        self._watch(context.on_failure)

    @staticmethod
    def _run(config: Config, uid: int | None, ready_fd: int, stats_fd: int) -> subprocess.Popen[bytes]:
        """Starts the server. It binds as root and then becomes the user of this process, which can then signal it."""
        return subprocess.Popen(
            [
                programs.find("user-echo-server"),
                f"--port={config.port}",
                f"--backlog={config.backlog}",
                f"--engine={config.engine}",
                *(f"--bind={address}" for address in config.binds),
                f"--ready-fd={ready_fd}",
                f"--stats-fd={stats_fd}",
                f"--die-with-parent={os.getpid()}",
                *(() if uid is None else (f"--uid={uid}",)),
            ],
            pass_fds=(ready_fd, stats_fd),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def _explain(self, config: Config) -> KechoError:
        """The error of a server that did not come up."""
        assert self._process is not None
        _, error = self._process.communicate(timeout=_START_TIMEOUT_S)
        if self._process.returncode == _EXIT_PORT_TAKEN:
            return port_taken(config)
        text = error.decode(errors="replace").strip().splitlines()
        message = text[-1] if text else f"user-echo-server ended with {self._process.returncode}"
        return _KINDS.get(self._process.returncode, KechoError)(message)

    def _watch(self, on_failure: Callable[[str], None]) -> None:
        assert self._process is not None
        loop, pidfd = asyncio.get_running_loop(), os.pidfd_open(self._process.pid)

        def ended() -> None:
            loop.remove_reader(pidfd)
            on_failure("user-echo-server ended by itself")

        def unwatch() -> None:
            loop.remove_reader(pidfd)
            os.close(pidfd)

        loop.add_reader(pidfd, ended)
        self._undo.callback(unwatch)

    def _end_process(self) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(2)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.stderr:
            self._process.stderr.close()

    def stop(self) -> None:
        super().stop()
        self._stats = None

    def _counters(self) -> tuple[int, int, int, int, int, int]:
        """The sums of active, total, rejected, aborted, echoes and bytes over all threads."""
        if self._stats is None:
            return (0,) * 6
        magic, version, header_bytes, block_bytes, blocks = _HEADER.unpack_from(self._stats)
        if magic != _MAGIC or version != 1:
            raise KechoError("user-echo-server keeps its counters in a layout that this version does not know")
        rows = [_BLOCK.unpack_from(self._stats, header_bytes + i * block_bytes) for i in range(blocks)]
        active, total, rejected, aborted, echoes, size = (sum(column) for column in zip(*rows, strict=True))
        return active, total, rejected, aborted, echoes, size

    def keeps(self) -> Collection[int]:
        return ()

    def paths(self) -> dict[str, PathStats]:
        *_, echoes, size = self._counters()
        return {"user": PathStats(echoes, size, 0, None, _WHY_NO_LATENCY)}

    def connections(self) -> Connections:
        return Connections(*self._counters()[:4])

    def describe(self) -> str:
        return f"user, {self._engine}"


async def _first_line(fd: int) -> bytes:
    """Waits until a pipe is readable and reads from it. Uses no thread, since privileges.drop() allows only one."""
    loop = asyncio.get_running_loop()
    there = asyncio.Event()
    loop.add_reader(fd, there.set)
    try:
        await asyncio.wait_for(there.wait(), _START_TIMEOUT_S)
    except TimeoutError:
        raise KechoError(f"user-echo-server does not come up within {_START_TIMEOUT_S} s") from None
    finally:
        loop.remove_reader(fd)
    return os.read(fd, 64)
