# SPDX-License-Identifier: MIT
"""Runs for hours what test_property.py does for a minute: `make soak HOURS=`. Ends with a report, also on Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import support
from interleaving import LANES, LIMITS, Lane, NotHere, ServiceLane, Totals, lane, make_script, run_round

_STREAM_BYTES = 16 << 20
_PROGRESS_S = 10.0
_SETTLE_S = 15.0


def scripts_of(seed: int) -> list[object]:
    """The scripts of a seed."""
    rng = random.Random(seed)
    return [make_script(rng, stream_bytes=_STREAM_BYTES) for _ in range(rng.randrange(1, 4))]


class Worker:
    """Runs one lane, round after round, each with its own seed."""

    def __init__(self, found: Lane, seeds: Sequence[int] | range, stop: threading.Event, folder: Path) -> None:
        self.lane, self.totals, self.rounds, self.failure = found, Totals(), 0, ""
        self.seed = seeds[0]
        self.rss_kb = [self._rss_kb()]
        self._seeds, self._stop, self._folder = seeds, stop, folder
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _rss_kb(self) -> int:
        """Resident memory of all processes of the service."""
        if not isinstance(self.lane, ServiceLane):
            return 0
        return self.lane.service.rss_kb()

    def _run(self) -> None:
        try:
            for seed in self._seeds:
                if self._stop.is_set():
                    break
                self.seed = seed
                run_round(self.lane, scripts_of(self.seed), self.totals)  # type: ignore[arg-type]
                self.rounds += 1
                if self.rounds == 20:
                    self.rss_kb.append(self._rss_kb())
            self._settle()
        except BaseException:
            self.failure = traceback.format_exc()
            file = self._folder / f"{self.lane.name}-{self.seed}.txt"
            file.write_text(f"{scripts_of(self.seed)}\n{self.failure}")
            self._stop.set()

    def _settle(self) -> None:
        """Checks that nothing is left of any connection."""
        support.wait_for(lambda: self.lane.active() == 0, f"the end of {self.lane.name}'s connections", _SETTLE_S)
        if isinstance(self.lane, ServiceLane) and self.lane.service.mode == "sockmap":
            pid = self.lane.service.pid
            for name in support.MAPS:
                support.wait_for(
                    lambda name=name: not support.map_entries(pid, name), f"an empty map {name}", _SETTLE_S
                )
        self.rss_kb.append(self._rss_kb())

    def report(self) -> str:
        ends = ", ".join(f"{count} {end}" for end, count in sorted(self.totals.ends.items()))
        memory = " -> ".join(f"{kb >> 10} MB" for kb in self.rss_kb if kb)
        return (
            f"  {self.lane.name:9}{self.rounds:8} rounds{self.totals.connections:8} connections"
            f"{self.totals.bytes / 1e9:9.3f} GB   {ends}" + (f"; resident {memory}" if memory else "")
        )


def main() -> int:
    """Returns 0 if every byte came back in order and once, else 1 after printing how to reproduce it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=None, help="of the first round (default: the time)")
    parser.add_argument("--rounds", type=int, default=None, help="on each lane; without it as many as the time allows")
    parser.add_argument("--lane", action="append", choices=LANES, help="repeatable (default: all)")
    parser.add_argument("--limit", choices=LIMITS, default="small", help="of the sockmap lanes (default %(default)s)")
    args = parser.parse_args()
    first = int(time.time()) if args.seed is None else args.seed
    seeds = range(first, first + (args.rounds or 1 << 40))
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    folder = Path(f"/tmp/kecho-soak-{os.getpid()}")
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        workers = []
        for name in args.lane or LANES:
            try:
                workers.append(Worker(stack.enter_context(lane(name, LIMITS[args.limit])), seeds, stop, folder))
            except NotHere as e:
                print(f"lane {name} is left out: {e}")
        print(f"seed {first}, lanes {', '.join(w.lane.name for w in workers)}, limit {LIMITS[args.limit]}", flush=True)
        began = time.monotonic()
        for worker in workers:
            worker.thread.start()
        _watch(workers, stop, began, began + args.hours * 3600)
        stop.set()
        for worker in workers:
            worker.thread.join()
        code = _report(workers, time.monotonic() - began, folder, args.limit)
    return code


def _watch(workers: Sequence[Worker], stop: threading.Event, began: float, until: float) -> None:
    last, last_bytes = began, 0
    while not stop.is_set() and time.monotonic() < until and any(worker.thread.is_alive() for worker in workers):
        stop.wait(min(1.0, _PROGRESS_S))
        now = time.monotonic()
        if now - last < _PROGRESS_S:
            continue
        total = sum(worker.totals.bytes for worker in workers)
        rate = (total - last_bytes) / (now - last) / 1e6
        where = " ".join(f"{worker.lane.name}:{worker.seed}" for worker in workers)
        print(f"{now - began:7.0f} s {total / 1e9:9.3f} GB {rate:7.1f} MB/s   seeds {where}", flush=True)
        last, last_bytes = now, total


def _report(workers: Sequence[Worker], seconds: float, folder: Path, limit: str) -> int:
    total = sum(worker.totals.bytes for worker in workers)
    connections = sum(worker.totals.connections for worker in workers)
    print(f"\n{total / 1e9:.3f} GB echoed and compared in {seconds:.0f} s over {connections} connections")
    for worker in workers:
        print(worker.report())
    failed = [worker for worker in workers if worker.failure]
    for worker in failed:
        print(f"FAILED on lane {worker.lane.name}, seed {worker.seed}; diagnostics in {folder}", file=sys.stderr)
        print(worker.failure[:3000], file=sys.stderr)
        print(
            f"again: make soak SOAK_ARGS='--lane={worker.lane.name} --seed={worker.seed} --rounds=1 --limit={limit}'",
            file=sys.stderr,
        )
    if not failed:
        folder.rmdir()
        print("every byte came back, in order, once; no connection and no map entry is left")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
