# SPDX-License-Identifier: MIT
"""Goodput of mode mirror beside that of epoll in bad networks: ``tests/vm/goodput.py [ROUNDS]``.

For root, where the kernel has netem; prints a table:

    scripts/vm 'KECHO_TEST_TIMEOUT_S=900 PYTHONPATH=tests/host .venv/bin/python tests/vm/goodput.py'

A client behind a veth pair sends three streams at once and reads them back (tests/host/stream.c, which compares every
byte). The rounds of the two services are interleaved.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time

import network
import support

STREAMS, STREAM_BYTES = 3, 5_000_000
# What netem does in each direction.
NETWORKS = {
    "nothing": [],
    "0.1 % lost": ["loss", "0.1%"],
    "1 % lost": ["loss", "1%"],
    "5 % lost": ["loss", "5%"],
    "5 % twice": ["duplicate", "5%"],
    "2 ms, 30 % sooner": ["delay", "2ms", "reorder", "30%", "50%"],
    "20 ms": ["delay", "20ms"],
}


def main(rounds: int) -> int:
    print("| network | mirror ÷ epoll, median and range of the rounds | epoll, Mbit/s |\n|---|---|---|", flush=True)
    with network.veth() as pair, contextlib.ExitStack() as stack:
        services = []
        for mode in ("user", "mirror"):
            services.append(support.up(mode=mode, bind=pair.here))
            stack.callback(services[-1].down)
        for name, netem in NETWORKS.items():
            pair.impair(netem)
            took_s = [[stream_s(service, pair) for service in services] for _ in range(rounds)]
            ratios = sorted(epoll / mirror for epoll, mirror in took_s)
            rate = STREAMS * STREAM_BYTES * 8e-6 / statistics.median(epoll for epoll, _ in took_s)
            middle = statistics.median(ratios)
            print(f"| {name} | {middle:.2f} ({ratios[0]:.2f} – {ratios[-1]:.2f}) | {rate:.3g} |", flush=True)
    return 0


def stream_s(service: support.Service, pair: network.Veth) -> float:
    """The time that the streams take."""
    start_s = time.monotonic()
    service.stream(STREAMS, STREAM_BYTES, pair.prefix)
    return time.monotonic() - start_s


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else 7))
