# SPDX-License-Identifier: MIT
"""What the hooks cost at which a packet from behind a veth pair can be turned round: ``tests/host/hooks.py [ROUNDS]``.

For root; prints a table for docs/mirror.md. The client, tests/vm/pingpong.c in a network namespace on one CPU, sends
64 bytes by UDP and waits for them. The programs do the least that makes a packet its own echo: they swap the
addresses. UDP spares them the rest of a TCP connection, so what differs is the way of the packet. What XDP_TX sends
arrives only if the client's end has an XDP program, too.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import network
import support

from kecho.kernel import bpf, syscall

PORT, SIZE, COUNT = 7007, 64, 20001
SOURCE = str(support.ROOT / "tests/host/hooks.c")
PROG_TYPE_XDP, ATTACH_XDP = 6, 37  # include/uapi/linux/bpf.h
TC = syscall.PROG_TYPE_SCHED_CLS, syscall.ATTACH_TCX_INGRESS
XDP = PROG_TYPE_XDP, ATTACH_XDP
# The program, its type and where it is attached, and whether it is at the client's end as well.
HOOKS = {
    "tc, bpf_redirect": ("kecho_redirect", TC, False),
    "tc, bpf_redirect_peer": ("kecho_redirect_peer", TC, False),
    "XDP_TX": ("kecho_xdp", XDP, False),
    "XDP_TX, a program at the client's end as well": ("kecho_xdp", XDP, True),
}


def main(rounds: int) -> int:
    found: dict[str, list[int | None]] = {name: [] for name in HOOKS}
    with network.veth() as pair, contextlib.closing(bpf.Module(SOURCE, {"KECHO_PORT": PORT})) as module:
        for _ in range(rounds):
            for name, (program, hook, both) in HOOKS.items():
                found[name].append(p50_ns(pair, module.load(program, hook[0]), hook[1], both))
    print("| hook | p50 | bpf_redirect ÷ it, median and range of rounds |\n|---|---|---|")
    base = next(iter(found.values()))
    for name, times in found.items():
        ratios = sorted(ours / theirs for ours, theirs in zip(base, times, strict=True) if ours and theirs)
        if len(ratios) < rounds:
            print(f"| {name} | no answer in {rounds - len(ratios)} of {rounds} rounds | |")
        else:
            p50, middle = (statistics.median(values) for values in (filter(None, times), ratios))
            print(f"| {name} | {p50:,.0f} ns | {middle:.2f} ({ratios[0]:.2f} – {ratios[-1]:.2f}) |")
    return 0


def p50_ns(pair: network.Veth, program: int, attach_type: int, both: bool) -> int | None:
    """The client's median round trip; None without an answer."""
    cpu = str(max(os.sched_getaffinity(0)))
    command = ["ip", "netns", "exec", pair.namespace, "taskset", "-c", cpu, str(support.ROOT / "build/pingpong")]

    def attach(device: str) -> None:
        link = syscall.link_create(program, socket.if_nametoindex(device), attach_type)
        stack.callback(os.close, link)

    def attach_there() -> None:
        support.enter_netns(pair.namespace)
        attach("peer")

    with contextlib.ExitStack() as stack:
        attach(pair.device)
        if both:
            with ThreadPoolExecutor(1) as thread:  # which enters the namespace
                thread.submit(attach_there).result()
        words = [*command, pair.here, str(PORT), str(SIZE), str(COUNT), "udp"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else None


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 7))
