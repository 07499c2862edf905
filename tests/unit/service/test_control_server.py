# SPDX-License-Identifier: MIT
"""The control socket's server: `down` ends the service when its answer has left, not before."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from kecho.service import control_server
from kecho.service.control_server import ControlServer

ANSWER = b'{"ok": true}\n'


def root_whose_socket_is_full(writer: asyncio.StreamWriter) -> int:
    """Stands in for _peer_uid(). It fills the socket, so that the answer cannot be sent at once."""
    fd = writer.get_extra_info("socket").fileno()
    try:
        while True:
            os.write(fd, b"x" * 4096)
    except BlockingIOError:
        return 0


@pytest.mark.parametrize("reads", [True, False])
def test_down_ends_it_when_its_answer_has_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: bool) -> None:
    """A client that does not read its answer delays the end by SILENCE_S at most."""
    monkeypatch.setattr(control_server, "_peer_uid", root_whose_socket_is_full)
    monkeypatch.setattr(control_server, "SILENCE_S", 20.0 if reads else 0.3)

    async def play() -> None:
        end = asyncio.Event()
        server = ControlServer({}, {}, end)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "control.sock"))
        listener.listen()
        await server.start(listener)
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(tmp_path / "control.sock"))
        client.sendall(b'{"op": "down"}\n')
        if reads:
            await asyncio.sleep(0.3)
            assert not end.is_set(), "the answer is still here"
            got = b""
            while not got.endswith(ANSWER):
                part = await asyncio.to_thread(client.recv, 1 << 16)
                assert part, "the end of the stream"
                got = got[-len(ANSWER) :] + part
        await asyncio.wait_for(end.wait(), 10)
        server.stop()
        client.close()

    asyncio.run(play())
