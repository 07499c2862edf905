# SPDX-License-Identifier: MIT
"""A bad network between here and a namespace: packets are lost, doubled, overtaken and delayed, by a seed."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import random
import select
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import network


@dataclass(frozen=True)
class Faults:
    """Shares of the packets of each direction, and how long all of them take."""

    loss: float = 0
    duplicate: float = 0
    reorder: float = 0  # overtaken by what comes in the next 2 ms
    delay_s: float = 0


class Relay:
    """Carries packets from one TUN device to the other. Clients come from `namespace` to `here` and `here6`."""

    _OVERTAKEN_S = 0.002

    def __init__(self, namespace: str, ends: tuple[int, int], here: str, here6: str) -> None:
        self.namespace, self.here, self.here6 = namespace, here, here6
        self.faults = Faults()
        self.lost = self.doubled = 0
        self._ends = ends
        self._rng = random.Random(1)
        self._in_flight: list[tuple[float, int, int, bytes]] = []  # when due, a number, for which end, packet
        self._numbers = itertools.count()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.is_set():
            wait_s = self._in_flight[0][0] - time.monotonic() if self._in_flight else 0.1
            for end in select.select(self._ends, [], [], max(0, min(wait_s, 0.1)))[0]:
                self._take(os.read(end, 1 << 17), self._ends[end == self._ends[0]])
            while self._in_flight and self._in_flight[0][0] <= time.monotonic():
                _, _, to, packet = heapq.heappop(self._in_flight)
                with contextlib.suppress(OSError):  # a full queue loses it as well
                    os.write(to, packet)

    def _take(self, packet: bytes, to: int) -> None:
        faults, draw = self.faults, self._rng.random
        if draw() < faults.loss:
            self.lost += 1
            return
        copies = 1 + (draw() < faults.duplicate)
        self.doubled += copies - 1
        for _ in range(copies):
            due_s = time.monotonic() + faults.delay_s + self._OVERTAKEN_S * (draw() < faults.reorder)
            heapq.heappush(self._in_flight, (due_s, next(self._numbers), to, packet))

    def close(self) -> None:
        self._ended.set()
        self._thread.join()


@contextlib.contextmanager
def relay(folder: Path) -> Iterator[Relay]:
    """A network without faults, until `faults` says otherwise."""
    net = network.NET
    (here, there), (here6, there6) = ((f"10.97.{net}.{i}" for i in (1, 2)), (f"fd97:{net}::{i}" for i in (1, 2)))
    with (
        network.namespace() as namespace,
        network.tun(folder, (here, 24), (here6, 64)) as ours,
        network.tun(folder, (there, 24), (there6, 64), namespace=namespace) as theirs,
    ):
        found = Relay(namespace, (ours, theirs), here, here6)
        try:
            yield found
        finally:
            found.close()
