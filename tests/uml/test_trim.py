# SPDX-License-Identifier: MIT
"""Path skb when the kernel has no memory to trim a segment whose first part is echoed already."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import support
from support import assert_same, wait_for
from test_segments import HERE, RawClient, tun  # noqa: F401

FAILSLAB = Path("/sys/kernel/debug/failslab")
MOST_FAILURES = 1000


@contextmanager
def failing() -> Iterator[None]:
    """Makes every allocation fail that may not wait: those in softirq."""
    settings = {"verbose": 0, "times": MOST_FAILURES, "ignore-gfp-wait": "Y", "probability": 100}
    for name, value in settings.items():
        (FAILSLAB / name).write_text(str(value))
    try:
        yield
    finally:
        (FAILSLAB / "probability").write_text("0")
        assert int((FAILSLAB / "times").read_text()) < MOST_FAILURES, "nothing failed"


def test_memory_refused_to_a_trim(tun: int) -> None:  # noqa: F811
    """The stream is reset. Dropping the segment, or echoing its first part twice, would be worse."""
    served = support.up(bind=HERE, path="skb")
    try:
        data = support.payload(9100)
        client, other = RawClient(tun, served.port), RawClient(tun, served.port)
        client.send(0, data[:1400])
        assert_same(client.expect(1400), data[:1400])
        with failing():
            client.send(100, data[100:9100])
        client.send(9000, data[9000:])
        assert_same(client.expect_reset(), data[:1400])
        other.send(0, data)
        assert_same(other.expect(len(data)), data)
        wait_for(lambda: served.connections()["aborted"] == 1, "the connection to be counted")
    finally:
        served.down()
