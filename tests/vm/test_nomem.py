# SPDX-License-Identifier: MIT
"""The module when the kernel has no memory for a moment, as tests/vm/nomem makes it."""

import os
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import fastecho

from kecho.kernel import modules

NOMEM = fastecho.TOP / "build" / f"nomem-{os.uname().release}" / "nomem.ko"
CALLS = Path("/sys/module/nomem/parameters/calls")
TCPI_DATA_SEGS_IN = 152  # its offset in struct tcp_info
MESSAGES = 40  # more than one skb of the receive queue can have fragments
# On a busy machine TCP's timer may be faster than a worker that starts late; and where acknowledgements are late the
# client's TCP puts its messages together, so that one part has them all and nothing fails.
ATTEMPTS = 10


@contextmanager
def no_memory(nth: int) -> Iterator[Callable[[], bool]]:
    """The nth time that a worker sends within the block, it finds no memory. Yields what tells whether it did."""
    subprocess.run(["insmod", NOMEM, f"nth={nth}"], check=True)
    try:
        yield lambda: int(CALLS.read_text()) > nth
    finally:
        modules.unload("nomem")


def segments_of_an_echo() -> int:
    """How many segments bring the echo of one pass in which memory fails after the first part; 0 if it did not fail."""
    data = bytes(range(MESSAGES))
    with socket.create_connection(("127.0.0.1", fastecho.PORT), timeout=60) as client, no_memory(nth=2) as failed:
        client.setsockopt(socket.SOL_TCP, socket.TCP_NODELAY, 1)
        with fastecho.workers_starve():
            for byte in data:
                client.send(bytes([byte]))
        with client.makefile("rb") as echo:
            assert echo.read(MESSAGES) == data
        (segments,) = struct.unpack_from(
            "I", client.getsockopt(socket.SOL_TCP, socket.TCP_INFO, 160), TCPI_DATA_SEGS_IN
        )
        return segments if failed() else 0


def test_the_first_part_waits_for_the_second() -> None:
    """The first part is kept back for the second, for which there is no memory, and nothing is in flight.

    The module soon tries again, and both leave as one segment. TCP's own timer would send the first part alone, after
    200 ms.
    """
    fastecho.load("inline=0")
    assert any(segments_of_an_echo() == 1 for _ in range(ATTEMPTS))
