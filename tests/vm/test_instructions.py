# SPDX-License-Identifier: MIT
"""Bounds on what a round trip costs, in instructions: only under scripts/vm --icount, where 1 ns is one instruction."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import fastecho
import pytest
from conftest import BUILD

pytestmark = pytest.mark.instructions

KERNEL = ".".join(os.uname().release.split(".")[:2])

# Per kernel: (parameters of the module, size of the message, histogram attached) -> at most so many instructions.
# Those of 6.1 are the project's goals; on other kernels the figures are printed and nothing is bounded.
BOUNDS = {
    ((), 64, False): 22_600,
    ((), 64, True): 24_000,
    ((), 1024, False): None,
    ((), 16384, False): 87_500,
    (("inline=0", "bench=1"), 64, False): 34_000,
    (("inline=0",), 64, False): None,
}

# What a histogram of the tracepoint costs at the least: a raw tracepoint program that finds a slot and counts.
HISTOGRAM = b"""
BPF_PERCPU_ARRAY(hist, u64, 1024);
RAW_TRACEPOINT_PROBE(fastecho_echo)
{
    int slot = ctx->args[0] << 6 | bpf_log2l(ctx->args[2]);
    u64 *count = hist.lookup(&slot);
    if (count)
        *count += 1;
    return 0;
}
"""


@contextmanager
def histogram(attached: bool) -> Iterator[None]:
    if not attached:
        yield
        return
    from bcc import BPF

    bpf = BPF(text=HISTOGRAM)
    yield
    assert sum(sum(per_cpu) for per_cpu in bpf[b"hist"].values()) > 1000
    bpf.cleanup()


def pingpong(size: int) -> int:
    """The median of 2001 round trips, in instructions."""
    command = [str(BUILD / "pingpong"), "127.0.0.1", str(fastecho.PORT), str(size), "2001"]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("case", BOUNDS, ids=lambda c: f"{' '.join(c[0]) or 'inline'}-{c[1]}{'-hist' * c[2]}")
def test_round_trip(case: tuple[tuple[str, ...], int, bool], record_property) -> None:
    parameters, size, attached = case
    fastecho.load(*parameters)
    with histogram(attached):
        instructions = pingpong(size)
    print(f"\n{KERNEL}: {size} B, {' '.join(parameters) or 'inline'}{', histogram' * attached}: {instructions}")
    bound = BOUNDS[case]
    if KERNEL == "6.1" and bound:
        assert instructions <= bound
