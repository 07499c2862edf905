# SPDX-License-Identifier: MIT
"""Runs ``user-echo-server``, which accepts and echoes in modes user and sockmap, and reads its counters."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import signal
import struct
import subprocess
from collections.abc import Collection, Iterable, Mapping

from kecho.backends.base import Context
from kecho.kernel.sockets import port_taken
from kecho.model.config import Config
from kecho.model.errors import KechoError, Unavailable, UsageError
from kecho.model.histogram import SLOTS, Histogram
from kecho.model.snapshot import Connections, PathStats
from kecho.native import programs

# kecho/native/server/stats.h
_MAGIC = 0x3154534F4843454B
_HEADER = struct.Struct("=QQQQQQ")  # magic, version, header_bytes, block_bytes, blocks, cpus
_BLOCK = struct.Struct("=QQQQQQ")  # active, total, rejected, aborted, echoes, bytes
_BLOCK_BYTES = 128  # with its padding; a histogram for each CPU follows
_LATENCY = struct.Struct(f"={SLOTS}Q")

_START_TIMEOUT_S = 5
# enum exit_code of kecho/native/common/args.h
_KINDS: Mapping[int, type[KechoError]] = {2: UsageError, 3: Unavailable}
_EXIT_PORT_TAKEN = 4


def probe_server() -> str:
    """The native server, if it is built."""
    return str(programs.find("user-echo-server"))


class _Counters:
    """What the server keeps in shared memory."""

    def __init__(self, stats: mmap.mmap) -> None:
        magic, version, header_bytes, block_bytes, blocks, self._cpus = _HEADER.unpack_from(stats)
        if magic != _MAGIC or version != 1:
            raise KechoError("user-echo-server keeps its counters in a layout that this version does not know")
        self._stats = stats
        self._offsets = [header_bytes + i * block_bytes for i in range(blocks)]

    def sums(self) -> tuple[int, ...]:
        """The sums of active, total, rejected, aborted, echoes and bytes over all threads."""
        rows = (_BLOCK.unpack_from(self._stats, offset) for offset in self._offsets)
        return tuple(map(sum, zip(*rows, strict=True)))

    def latency(self) -> Histogram | None:
        """The latency of all threads' echoes; None if the engine does not measure it."""
        if not self._cpus:
            return None
        threads = (Histogram.from_arrays(self._latency(offset + _BLOCK_BYTES)) for offset in self._offsets)
        return sum(threads, Histogram())

    def _latency(self, offset: int) -> dict[int, tuple[int, ...]]:
        return {cpu: _LATENCY.unpack_from(self._stats, offset + cpu * _LATENCY.size) for cpu in range(self._cpus)}


class EchoServer:
    """One user-echo-server, which ends with this process."""

    def __init__(self) -> None:
        self._undo = contextlib.ExitStack()
        self._counters: _Counters | None = None

    async def start(self, config: Config, context: Context, options: Iterable[str], fds: Collection[int] = ()) -> None:
        """Returns when it listens; it has the descriptors `fds` too. Raises KechoError. Ends with `stop`, also then.

        It begins as this process's user and then becomes `context.uid`, who can signal it.
        """
        with contextlib.ExitStack() as stack:
            stats_fd = os.memfd_create("kecho-stats")
            stack.callback(os.close, stats_fd)
            ready, ready_child = os.pipe()
            stack.callback(os.close, ready)
            try:
                process = subprocess.Popen(
                    [
                        programs.find("user-echo-server"),
                        *options,
                        f"--backlog={config.backlog}",
                        f"--ready-fd={ready_child}",
                        f"--stats-fd={stats_fd}",
                        f"--die-with-parent={os.getpid()}",
                        *(() if context.uid is None else (f"--uid={context.uid}",)),
                    ],
                    pass_fds=(ready_child, stats_fd, *fds),
                    stdin=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                )
            finally:
                os.close(ready_child)
            self._undo.callback(_end, process)
            if await _first_line(ready) != b"ready\n":
                raise _explain(config, process)
            stats = self._undo.enter_context(mmap.mmap(stats_fd, 0, prot=mmap.PROT_READ))
            self._counters = _Counters(stats)
        self._watch(process, context)

    def _watch(self, process: subprocess.Popen[bytes], context: Context) -> None:
        loop, pidfd = asyncio.get_running_loop(), os.pidfd_open(process.pid)

        def ended() -> None:
            loop.remove_reader(pidfd)
            context.on_failure("user-echo-server ended by itself")

        def unwatch() -> None:
            loop.remove_reader(pidfd)
            os.close(pidfd)

        loop.add_reader(pidfd, ended)
        self._undo.callback(unwatch)

    def stop(self) -> None:
        """Ends it and all its connections. Idempotent."""
        self._counters = None
        self._undo.close()

    def connections(self) -> Connections:
        """The counts since the start."""
        return Connections(*self._counters.sums()[:4]) if self._counters else Connections()

    def carried(self) -> PathStats:
        """What it echoed. Without latency from engines that do not measure it."""
        if not self._counters:
            return PathStats()
        *_, echoes, size = self._counters.sums()
        return PathStats(echoes, size, 0, self._counters.latency())


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stderr:
        process.stderr.close()


def _explain(config: Config, process: subprocess.Popen[bytes]) -> KechoError:
    """The error of a server that did not come up."""
    _, error = process.communicate(timeout=_START_TIMEOUT_S)
    if process.returncode == _EXIT_PORT_TAKEN:
        return port_taken(config)
    text = error.decode(errors="replace").strip().splitlines()
    message = text[-1] if text else f"user-echo-server ended with {process.returncode}"
    return _KINDS.get(process.returncode, KechoError)(message)


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
