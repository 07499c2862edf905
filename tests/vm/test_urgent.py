# SPDX-License-Identifier: MIT
"""Urgent data (MSG_OOB) is echoed like any other, and no byte is lost."""

import socket

import fastecho
import pytest

CONNECTIONS = 10


@pytest.mark.parametrize("send_bytes, sends", [(1, 20), (1, 40), (2, 40), (1000, 20)])
@pytest.mark.parametrize("parameters", [("inline=1",), ("inline=0",), ("inline=0", "bench=1")])
def test_urgent_sends(parameters: tuple[str, ...], send_bytes: int, sends: int) -> None:
    """Sends in a row as soon as the connection is established. The last byte of each send is urgent."""
    fastecho.load(*parameters)
    for _ in range(CONNECTIONS):
        with socket.create_connection(("127.0.0.1", fastecho.PORT), timeout=60) as client:
            messages = [bytes([number]) * send_bytes for number in range(sends)]
            for message in messages:
                assert client.send(message, socket.MSG_OOB) == send_bytes
            client.shutdown(socket.SHUT_WR)
            with client.makefile("rb") as echo:
                assert echo.read() == b"".join(messages)
