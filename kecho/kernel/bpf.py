# SPDX-License-Identifier: MIT
"""Makes maps and loads programs, from objects that kecho/kernel/compiler.py has compiled."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from kecho.kernel import compiler, privileges, syscall
from kecho.kernel.btf import btf_of_int
from kecho.kernel.privileges import CAP_BPF, CAP_SYS_ADMIN
from kecho.kernel.ringbuf import RingBuffer
from kecho.kernel.syscall import Map, Program, Refused
from kecho.model.errors import KechoError, one_line
from kecho.model.histogram import SLOTS, Histogram
from kecho.model.snapshot import PathStats

log = logging.getLogger("kecho")  # the controller gives it a file; without one it is silent
log.addHandler(logging.NullHandler())

# struct path_stats of bpf/kecho.h, in units of 8 bytes.
_COUNTERS = 3
_STATS_WORDS = _COUNTERS + SLOTS


class Module:
    """The maps of a compiled source and the programs loaded from it. `close` frees all of it."""

    def __init__(
        self, source: str, defines: Mapping[str, int | str], settings: Mapping[str, int] | None = None
    ) -> None:
        """Compiles `source` of `compiler.sources()`, unless that was done before, and makes its maps.

        `settings` have values that differ from service to service: SETTING of bpf/kecho.h. Raises Unavailable without
        bcc or headers, KechoError if it fails.
        """
        self._settings = settings or {}
        self._object = compiler.compiled(source, defines, self._settings.keys())
        self._maps: dict[str, int] = {}
        self._undo = ExitStack()
        try:
            self._btf = self._own(syscall.btf_load(self._object.btf)) if self._object.btf else 0
            for what in self._object.maps:
                self._maps[what.name] = self._own(self._create(what))
        except OSError as e:
            self.close()
            raise KechoError(f"cannot make the maps of {source}: {one_line(e)}") from e

    def _create(self, what: Map) -> int:
        if what.map_type != syscall.MAP_TYPE_SK_STORAGE:
            return syscall.map_create(what, self._btf)
        btf = syscall.btf_load(btf_of_int())  # it must have one, and without CAP_SYS_ADMIN there is no other
        try:
            return syscall.map_create(replace(what, btf_key=1, btf_value=1), btf)
        finally:
            os.close(btf)

    def _own(self, fd: int) -> int:
        self._undo.callback(os.close, fd)
        return fd

    def map_fd(self, name: str) -> int:
        """The descriptor of a map. The module owns it."""
        if name not in self._maps:
            raise KechoError(f"no BPF map {name}")
        return self._maps[name]

    def load(self, function: str, prog_type: int, attach_type: int = 0, attach_btf_id: int = 0) -> int:
        """Loads a program and returns its descriptor, which the module owns. Raises KechoError if it does not load."""
        compiled = self._object.functions[function]
        code = compiled.bound(self._settings, self._maps)
        attach = attach_type, attach_btf_id
        program = Program(prog_type, code, function, self._object.licence, *attach, self._btf, compiled.btf_type)
        try:
            return self._own(syscall.program_load(program))
        except Refused as e:
            what = f"the kernel refuses the BPF program {function}: {one_line(e)}"
            log.warning("%s\n%s", what, e.log)
            raise KechoError(what) from e

    def on_record(self, ringbuf: str, handle: Callable[[bytes], None]) -> tuple[int, Callable[[], None]]:
        """A descriptor that is readable when there are records, and a function that hands each of them to `handle`."""
        (size,) = (what.max_entries for what in self._object.maps if what.name == ringbuf)
        try:
            ring = RingBuffer(self.map_fd(ringbuf), size)
        except OSError as e:
            raise KechoError(f"cannot read the ring buffer {ringbuf}: {one_line(e)}") from e
        self._undo.callback(ring.close)

        def consume() -> None:
            for record in ring.read():
                handle(record)

        return self.map_fd(ringbuf), consume

    def attach_raw_tracepoint(self, tracepoint: str, function: str) -> None:
        """Runs `function` at every hit, until `close`. Raises KechoError if the kernel has no such tracepoint."""
        program = self.load(function, syscall.PROG_TYPE_RAW_TRACEPOINT)
        try:
            self._own(syscall.raw_tracepoint_open(program, tracepoint))
        except OSError as e:
            raise KechoError(f"the kernel has no usable tracepoint {tracepoint}: {one_line(e)}") from e

    def attach_fexit(self, btf_id: int, function: str) -> None:
        """Runs `function` when the kernel's function of that BTF type returns, until `close`. Raises KechoError."""
        program = self.load(function, syscall.PROG_TYPE_TRACING, syscall.ATTACH_TRACE_FEXIT, btf_id)
        try:
            self._own(syscall.raw_tracepoint_open(program))
        except OSError as e:
            raise KechoError(f"fexit is refused: {one_line(e)}") from e

    def close(self) -> None:
        """Detaches and frees everything. Idempotent."""
        self._undo.close()


class PathArray:
    """The per-CPU array `paths`: the counters and the histogram of each path."""

    def __init__(self, map_fd: int, names: tuple[str, ...]) -> None:
        self._map_fd = map_fd
        self._names = names
        self._cpus = possible_cpus()

    def read(self) -> dict[str, PathStats]:
        """The counts of all paths now. One system call a path reads all CPUs."""
        return {name: self._read(index) for index, name in enumerate(self._names)}

    def needs(self) -> frozenset[int]:
        """The capability that reading takes: before Linux 5.19 the descriptor alone is not enough."""
        return privileges.needed((CAP_BPF, CAP_SYS_ADMIN), self.read)

    def _read(self, index: int) -> PathStats:
        key = index.to_bytes(4, sys.byteorder)
        words = memoryview(syscall.map_lookup(self._map_fd, key, 8 * _STATS_WORDS * len(self._cpus))).cast("Q")
        rows = {cpu: words[i * _STATS_WORDS : (i + 1) * _STATS_WORDS].tolist() for i, cpu in enumerate(self._cpus)}
        # One CPU may take back what another has counted: only the sum over all CPUs means something.
        echoes, total_bytes, fallbacks = (sum(row[i] for row in rows.values()) % 2**64 for i in range(_COUNTERS))
        latency = Histogram.from_arrays({cpu: row[_COUNTERS:] for cpu, row in rows.items()})
        return PathStats(echoes, total_bytes, fallbacks, latency)


def possible_cpus() -> list[int]:
    """The CPUs that per-CPU maps have a value for, in the kernel's order."""
    cpus: list[int] = []
    for part in Path("/sys/devices/system/cpu/possible").read_text().strip().split(","):
        first, _, last = part.partition("-")
        cpus.extend(range(int(first), int(last or first) + 1))
    return cpus
