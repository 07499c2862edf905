# SPDX-License-Identifier: MIT
"""Bounds on what a round trip costs, in instructions: only under scripts/vm --icount, where 1 ns is one instruction."""

import instructions
import pytest

pytestmark = pytest.mark.instructions

# The project's goals for Linux 6.1, by server and message size in bytes.
GOALS = {
    ("sockmap, egress", 64): 20_900,
    ("sockmap, ingress", 64): 6_200,
    ("sockmap, ingress, --no-latency", 64): 5_800,
    ("sockmap, skb", 64): 35_500,
    ("module, inline", 64): 24_000,
    ("module, inline, bare", 64): 22_600,
    ("module, inline, bare", 16384): 87_500,
    ("module, workqueue, bench=1, bare", 64): 34_000,
}
GROWTH = 1.02  # over docs/performance.md; a change that is worth more has to say so there


@pytest.mark.parametrize("server", instructions.SERVERS)
def test_round_trip(server: str) -> None:
    with instructions.SERVERS[server]():
        counts = {size: instructions.round_trip(size) for size in instructions.SIZES_BYTES}
    print(f"\n{instructions.row(server, counts)}")
    accepted = instructions.accepted(instructions.kernel())
    assert accepted, "docs/performance.md has no table for this kernel: make bench-instructions prints it"
    for size, count in counts.items():
        assert count <= GROWTH * accepted[server][size], f"{size} B: {accepted[server][size]} in docs/performance.md"
        if instructions.kernel() == "6.1":
            assert count <= GOALS.get((server, size), count)
