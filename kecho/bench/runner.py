# SPDX-License-Identifier: MIT
"""Runs ``build/bench`` once against one address: its options, its progress, its result, its failures."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kecho.bench.cpu import CpuTime
from kecho.bench.latency import Latency
from kecho.model.errors import KechoError, UsageError
from kecho.model.record import known
from kecho.native import programs
from kecho.system.topology import ClientNetns

# What the load generator does without an option (native/bench/options.c).
DEFAULT_CONNECTIONS = 1
DEFAULT_BURSTS = 10
DEFAULT_TIMEOUT_S = 10
DEFAULT_SEED = 1

_INTERRUPTED = 130


@dataclass(frozen=True)
class RunOptions:
    """The options of one run of bench. None leaves the choice to bench, which checks the values itself."""

    connections: int | None = None  # a burst has `burst` of them
    threads: int = 1
    size_bytes: int = 64
    count: int | None = None
    duration_s: float | None = None
    warmup_s: float | None = None
    look_s: float | None = None  # at the CPU time of others, before anything begins
    service: str | None = None  # the processes that serve, as in ``12,34``, for their CPU time
    burst: int | None = None
    bursts: int | None = None
    rate_per_s: float | None = None
    crr: bool = False
    depth: int | None = None
    connect_timeout_s: float | None = None
    io_timeout_s: float | None = None
    busy_poll_us: int | None = None
    cpus: str | None = None
    seed: int | None = None
    hdr: str | None = None
    raw: str | None = None

    def arguments(self) -> list[str]:
        """The options as arguments of the command line."""
        given = {
            "--connections": self.connections,
            "--threads": self.threads,
            "--size": self.size_bytes,
            "--count": self.count,
            "--duration": self.duration_s,
            "--warmup": self.warmup_s,
            "--look": self.look_s,
            "--service": self.service,
            "--burst": self.burst,
            "--bursts": self.bursts,
            "--rate": self.rate_per_s,
            "--depth": self.depth,
            "--connect-timeout": self.connect_timeout_s,
            "--io-timeout": self.io_timeout_s,
            "--busy-poll": self.busy_poll_us,
            "--cpus": self.cpus,
            "--seed": self.seed,
            "--hdr": self.hdr,
            "--raw": self.raw,
        }
        words = [word for option, value in given.items() if value is not None for word in (option, str(value))]
        return [*words, "--crr"] if self.crr else words

    @property
    def most_open(self) -> int:
        """The largest number of connections open at once."""
        return self.burst or self.connections or DEFAULT_CONNECTIONS

    @property
    def requests(self) -> int | None:
        """The number of requests that it makes; None if it makes as many as there is time for."""
        return self.burst * (self.bursts or DEFAULT_BURSTS) if self.burst else self.count

    @property
    def is_alone(self) -> bool:
        """One connection in one thread. Then the CPU of the client matters."""
        return self.most_open == 1 and self.threads == 1 and self.burst is None


@dataclass(frozen=True)
class Progress:
    """The progress of bench: its phase (``connect``, ``warmup``, ``hold``, ``run``) and its counts since the start."""

    phase: str
    elapsed_s: float
    connected: int
    requests: int


@dataclass(frozen=True)
class Measurement:
    """What bench measured. `options` are what it reports that it did."""

    options: Mapping[str, Any]
    elapsed_ns: int
    interrupted: bool
    latency: Latency
    cpu: CpuTime | None = None  # of the machine, during the measured part
    cpu_before: CpuTime | None = None  # and just before the run


def check(options: RunOptions) -> None:
    """Has bench check the options, before anything is set up for the runs. Raises UsageError, Unavailable."""
    command = [str(programs.find("bench")), "--dry-run", *options.arguments()]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="replace", check=False)
    _raise_failure(done.returncode, done.stderr.splitlines())


def run_bench(
    host: str,
    port: int,
    options: RunOptions,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_hold: Callable[[], None] | None = None,
    client: ClientNetns | None = None,
) -> Measurement:
    """Runs bench, here or in the namespace of `client`. Calls `on_hold` between warm-up and measured phase.

    A KeyboardInterrupt stops bench, and what it measured so far is returned. Raises KechoError with bench's own line
    if it fails, UsageError if it refuses the options, Unavailable if it is not built.
    """
    command = [str(programs.find("bench")), "--host", host, "--port", str(port), "--json", "--progress"]
    if on_hold:
        command.append("--hold")
    # The result goes to a file. It is larger than a pipe's buffer, and is written while stderr is being read.
    with tempfile.TemporaryFile() as out:
        with subprocess.Popen(
            [*(client.command if client else ()), *command, *options.arguments()],
            pass_fds=client.fds if client else (),
            stdin=subprocess.PIPE if on_hold else subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
        ) as process:
            said: list[str] = []

            def follow(progress: Progress) -> None:
                if progress.phase == "hold" and on_hold and process.stdin:
                    on_hold()
                    process.stdin.close()  # bench goes on at the end of stdin
                else:
                    on_progress(progress)

            try:
                try:
                    said += _follow(process.stderr or (), follow)
                    process.wait()
                except KeyboardInterrupt:
                    # In a terminal bench got the signal too; a second one changes nothing.
                    process.send_signal(signal.SIGINT)
                    said += _follow(process.stderr or (), lambda _: None)
                    if process.wait() == -signal.SIGINT:  # it did not handle the signal yet
                        raise
            except BaseException:  # a second Ctrl-C too
                process.kill()
                raise
        out.seek(0)
        answer = out.read()
    _raise_failure(process.returncode, said)
    return parse(answer)


def _follow(lines: Iterable[str], on_progress: Callable[[Progress], None]) -> list[str]:
    """Reads to the end. Reports lines of progress, and returns the others."""
    said = []
    for line in lines:
        progress = parse_progress(line)
        if progress:
            on_progress(progress)
        else:
            said.append(line.strip())
    return said


def parse_progress(line: str) -> Progress | None:
    """The progress in a line of ``bench --progress``; None if it is another line."""
    try:
        return Progress(**known(Progress, json.loads(line)["progress"]))
    except (ValueError, TypeError, KeyError):
        return None


def _raise_failure(code: int, said: list[str]) -> None:
    if code in (0, _INTERRUPTED):
        return
    if code < 0:
        raise KechoError(f"bench was ended by {signal.Signals(-code).name}")
    own = (line.removeprefix("bench: ") for line in reversed(said) if line.startswith("bench: "))
    raise (UsageError if code == 2 else KechoError)(next(own, f"bench failed with exit status {code}"))


def parse(answer: bytes | str) -> Measurement:
    """The measurement in the output of ``bench --json``. Raises KechoError if it is malformed."""
    try:
        obj = json.loads(answer)
        latency = Latency.from_json(obj.pop("latency_ns"), obj.get("unsent", 0))
        # The other fields are the options.
        options = {key: value for key, value in obj.items() if key not in _OUTCOME}
        cpu, cpu_before = (CpuTime.from_json(obj.get(name)) for name in ("cpu", "cpu_before"))
        return Measurement(options, obj["elapsed_ns"], obj["interrupted"], latency, cpu, cpu_before)
    except (ValueError, KeyError, TypeError) as e:
        raise KechoError(f"bench printed no result: {e}") from e


_OUTCOME = frozenset(("schema", "host", "port", "elapsed_ns", "requests", "bytes", "interrupted", "cpu", "cpu_before"))
