# SPDX-License-Identifier: MIT
"""Goodput of mode mirror beside that of epoll in bad networks: ``tests/vm/goodput.py [ROUNDS]``.

For root, where the kernel has netem; prints a table:

    scripts/vm 'KECHO_TEST_TIMEOUT_S=900 PYTHONPATH=tests/host .venv/bin/python tests/vm/goodput.py'

A client behind a veth pair sends three streams at once and reads them back (tests/host/stream.c, which compares every
byte). Each round has the mirror, epoll, and epoll where every fault is there twice: request and echo have one
acknowledgement through the mirror, so a loss of either is one of both.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from dataclasses import dataclass

import network
import support

STREAMS, STREAM_BYTES = 3, 5_000_000
# What netem does in each direction, and the same done twice; None where netem has no such thing.
NETWORKS: dict[str, tuple[list[str], list[str] | None]] = {
    "nothing": ([], None),
    "0.1 % lost": (["loss", "0.1%"], ["loss", "0.1999%"]),
    "1 % lost": (["loss", "1%"], ["loss", "1.99%"]),
    "5 % lost": (["loss", "5%"], ["loss", "9.75%"]),
    "5 % duplicated": (["duplicate", "5%"], ["duplicate", "9.75%"]),
    "2 ms, 30 % sooner": (["delay", "2ms", "reorder", "30%", "50%"], None),
    "20 ms": (["delay", "20ms"], ["delay", "40ms"]),
    "20 ms, 20 Mbit/s": (["delay", "20ms", "rate", "20mbit"], ["delay", "40ms", "rate", "20mbit"]),
}


@dataclass(frozen=True)
class Transfer:
    """What the streams took: seconds, and the retransmission timeouts of both ends."""

    took_s: float
    timeouts: int


def main(rounds: int) -> int:
    print(
        "| network | mirror ÷ epoll, median and range of the rounds | mirror ÷ epoll with each fault twice "
        "| timeouts: mirror; epoll; with each fault twice | epoll, Mbit/s |\n|---|---|---|---|---|",
        flush=True,
    )
    with network.veth() as pair, contextlib.ExitStack() as stack:
        epoll, mirror = (support.up(mode=mode, bind=pair.here) for mode in ("user", "mirror"))
        stack.callback(epoll.down)
        stack.callback(mirror.down)
        for name, (netem, twice) in NETWORKS.items():
            found: dict[str, list[Transfer]] = {"epoll": [], "mirror": [], "twice": []}
            for _ in range(rounds):
                pair.impair(netem)
                found["epoll"].append(transfer(epoll, pair))
                found["mirror"].append(transfer(mirror, pair))
                if twice:
                    pair.impair(twice)
                    found["twice"].append(transfer(epoll, pair))
            rate = STREAMS * STREAM_BYTES * 8e-6 / statistics.median(one.took_s for one in found["epoll"])
            cells = [name, ratio(found["epoll"], found["mirror"]), ratio(found["twice"], found["mirror"])]
            cells.append("; ".join(timeouts(found[of]) for of in ("mirror", "epoll", "twice")))
            print("|", " | ".join([*cells, f"{rate:.3g}"]), "|", flush=True)
    return 0


def transfer(service: support.Service, pair: network.Veth) -> Transfer:
    before, start_s = timeouts_here(pair), time.monotonic()
    service.stream(STREAMS, STREAM_BYTES, pair.prefix)
    return Transfer(time.monotonic() - start_s, timeouts_here(pair) - before)


def timeouts_here(pair: network.Veth) -> int:
    """The timeouts that both ends have counted."""
    return sum(network.tcp_counter("TCPTimeouts", namespace) for namespace in ("", pair.namespace))


def ratio(epoll: list[Transfer], mirror: list[Transfer]) -> str:
    """Goodput of the mirror ÷ of epoll in the same rounds: its median and range."""
    if not epoll:
        return "–"
    ratios = sorted(one.took_s / other.took_s for one, other in zip(epoll, mirror, strict=True))
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} – {ratios[-1]:.2f})"


def timeouts(transfers: list[Transfer]) -> str:
    return f"{statistics.median(one.timeouts for one in transfers):g}" if transfers else "–"


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else 7))
