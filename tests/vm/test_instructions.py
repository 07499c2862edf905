# SPDX-License-Identifier: MIT
"""Bounds on the instructions of a round trip. Only under scripts/vm --icount, where 1 ns is one instruction."""

import instructions
import pytest

pytestmark = pytest.mark.instructions

# Goals by kernel, server and message size in bytes.
GOALS = {
    ("6.1", "sockmap, egress", 64): 20_900,
    ("6.1", "sockmap, ingress", 64): 6_200,
    ("6.1", "sockmap, ingress, --no-latency", 64): 5_800,
    ("6.1", "sockmap, skb", 64): 35_500,
    ("6.12", "mirror", 64): 12_900,
    ("6.1", "module, inline", 64): 24_000,
    ("6.1", "module, inline, bare", 64): 22_600,
    ("6.1", "module, inline, bare", 16384): 87_500,
    ("6.1", "module, workqueue, bench=1, bare", 64): 34_000,
}
GROWTH = 1.02  # over docs/performance.md; a change worth more updates the table there


@pytest.mark.parametrize("server", instructions.SERVERS)
def test_round_trip(server: str) -> None:
    with instructions.SERVERS[server]():
        counts = {size: instructions.round_trip(size) for size in instructions.SIZES_BYTES}
    print(f"\n{instructions.row(server, counts)}")
    accepted = instructions.accepted(instructions.kernel())
    assert accepted, "docs/performance.md has no table for this kernel: make bench-instructions prints it"
    for size, count in counts.items():
        assert count <= GROWTH * accepted[server][size], f"{size} B: {accepted[server][size]} in docs/performance.md"
        assert count <= GOALS.get((instructions.kernel(), server, size), count)
