# SPDX-License-Identifier: MIT
"""Urgent data (MSG_OOB): to an echo server its bytes are like any others, and none may be lost."""

import socket

import fastecho
import pytest

CONNECTIONS = 10


@pytest.mark.parametrize("send_bytes, sends", [(1, 20), (1, 40), (2, 40), (1000, 20)])
@pytest.mark.parametrize("parameters", [("inline=1",), ("inline=0",), ("inline=0", "bench=1")])
def test_urgent_sends(parameters: tuple[str, ...], send_bytes: int, sends: int) -> None:
    """One after the other, from the moment the connection is there: the last byte of each is urgent."""
    fastecho.load(*parameters)
    for _ in range(CONNECTIONS):
        with socket.create_connection(("127.0.0.1", fastecho.PORT), timeout=60) as client:
            messages = [bytes([number]) * send_bytes for number in range(sends)]
            for message in messages:
                assert client.send(message, socket.MSG_OOB) == send_bytes
            client.shutdown(socket.SHUT_WR)
            with client.makefile("rb") as echo:
                assert echo.read() == b"".join(messages)
