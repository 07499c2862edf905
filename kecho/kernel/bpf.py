# SPDX-License-Identifier: MIT
"""Compiles and loads BPF programs. The only importer of bcc."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kecho.kernel import features, privileges, syscall
from kecho.kernel.privileges import CAP_BPF, CAP_SYS_ADMIN
from kecho.model.errors import KechoError, Unavailable
from kecho.model.histogram import SLOTS, Histogram
from kecho.model.snapshot import PathStats

log = logging.getLogger("kecho")  # the controller gives it a file; without one it is silent
log.addHandler(logging.NullHandler())

# struct path_stats of bpf/kecho.h, in units of 8 bytes.
_COUNTERS = 3
_STATS_WORDS = _COUNTERS + SLOTS
_INCLUDE = re.compile(r'#include "([^"]+)"')


def sources() -> Path:
    """The folder of the BPF sources: shipped inside the package, or `bpf/` of the checkout."""
    shipped = Path(__file__).parents[1] / "_bpf"
    return shipped if shipped.is_dir() else Path(__file__).parents[2] / "bpf"


def source_text(path: Path) -> str:
    """A source with its `#include "…"` lines replaced by the files: BCC rewrites only the main file."""
    included: set[Path] = set()

    def expand(file: Path) -> str:
        included.add(file)
        lines = [f'# 1 "{file}"']
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            match = _INCLUDE.fullmatch(line)
            if not match:
                lines.append(line)
            elif (other := file.parent / match[1]) not in included:
                lines += [expand(other), f'# {number + 1} "{file}"']
        return "\n".join(lines)

    return expand(path) + "\n"


class Module:
    """A compiled source file, its maps and the programs loaded from it. `close` frees all of it."""

    def __init__(self, source: str, defines: Mapping[str, int | str]) -> None:
        """Compiles `source` of `sources()`. Raises Unavailable without bcc or headers, KechoError if it fails."""
        features.probe_bcc()
        headers = features.headers()
        if headers.source:
            os.environ["BCC_KERNEL_SOURCE"] = str(headers.source)
        cflags = [f"-D{name}={value}" for name, value in defines.items()]
        path = sources() / source
        with _quiet_stderr(f"cannot compile {path}"):
            import bcc  # slow: imported only where a service is brought up

            self._lib = bcc.lib
            self._bpf = bcc.BPF(text=source_text(path).encode(), cflags=[*cflags, *headers.cflags])
        self._raw_tracepoints: list[int] = []

    def map_fd(self, name: str) -> int:
        """The descriptor of a map. The module owns it."""
        fd: int = self._lib.bpf_table_fd(self._bpf.module, name.encode())
        if fd < 0:
            raise KechoError(f"no BPF map {name}")
        return fd

    def load(self, function: str, prog_type: int) -> int:
        """Loads a program and returns its descriptor, which the module owns. Raises KechoError if it does not load."""
        with _quiet_stderr(f"the kernel refuses the BPF program {function}"):
            fd: int = self._bpf.load_func(function.encode(), prog_type).fd
        return fd

    def on_record(self, ringbuf: str, handle: Callable[[bytes], None]) -> tuple[int, Callable[[], None]]:
        """A descriptor that is readable when there are records, and a function that hands each of them to `handle`."""

        def received(_context: object, data: int, size: int) -> None:
            handle(ctypes.string_at(data, size))

        with _quiet_stderr(f"cannot read the ring buffer {ringbuf}"):
            self._bpf[ringbuf.encode()].open_ring_buffer(received)
        return self.map_fd(ringbuf), self._bpf.ring_buffer_consume

    def attach_raw_tracepoint(self, tracepoint: str, function: str) -> None:
        """Runs `function` at every hit, until `close`. Raises KechoError if the kernel has no such tracepoint."""
        with _quiet_stderr(f"the kernel has no usable tracepoint {tracepoint}"):
            self._bpf.attach_raw_tracepoint(tracepoint.encode(), function.encode())

    def close(self) -> None:
        """Detaches and frees everything. Idempotent."""
        bpf: Any = self._bpf
        if bpf is None:
            return
        self._bpf = None
        for name in list(bpf.funcs):
            function = bpf.funcs.pop(name)
            if function.fd >= 0:
                os.close(function.fd)
        bpf.cleanup()
        if bpf.module:
            self._lib.bpf_module_destroy(bpf.module)
            bpf.module = None


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


@contextlib.contextmanager
def _quiet_stderr(what: str) -> Iterator[None]:
    """Keeps the output of clang and the verifier off the terminal; on failure all of it goes to the service's log."""
    with tempfile.TemporaryFile() as captured:
        sys.stderr.flush()
        saved = os.dup(2)
        os.dup2(captured.fileno(), 2)
        try:
            yield
        except (KechoError, Unavailable):
            raise
        except Exception as e:
            captured.seek(0)
            text = captured.read().decode(errors="replace").strip()
            log.warning("%s: %s\n%s", what, e, text)
            reason = next((line for line in text.splitlines() if "error:" in line or "denied" in line), str(e))
            raise KechoError(f"{what}: {' '.join(reason.split())}") from e
        finally:
            os.dup2(saved, 2)
            os.close(saved)
