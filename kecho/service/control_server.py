# SPDX-License-Identifier: MIT
"""The control socket's server: one JSON object a line each way. Reading is open to all, the rest is for root.

Anybody may connect, so nobody is trusted to send little, to send soon, or to read what was asked for.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Any

MAX_LINE_BYTES = 64 << 10
SILENCE_S = 5.0
MAX_CLIENTS = 128  # past that the one that has been silent longest goes

Handler = Callable[[], dict[str, Any]]


class ControlServer:
    """Answers ``{"op": …}`` with what the handler of that name returns; `privileged` ones are for uid 0.

    So is "down", which sets `end` once its answer has left.
    """

    def __init__(
        self, open_to_all: Mapping[str, Handler], privileged: Mapping[str, Handler], end: asyncio.Event
    ) -> None:
        self._open_to_all = open_to_all
        self._privileged: dict[str, Handler] = {**privileged, "down": lambda: {"ok": True}}
        self._end = end
        self._server: asyncio.Server | None = None
        self._clients: dict[asyncio.StreamWriter, None] = {}  # the one silent longest first

    async def start(self, sock: socket.socket) -> None:
        """Serves on a listening socket, which it then owns."""
        self._server = await asyncio.start_unix_server(self._serve, sock=sock, limit=MAX_LINE_BYTES)

    def stop(self) -> None:
        """Stops listening and drops the clients. Idempotent."""
        if self._server:
            self._server.close()
            self._server = None
        for writer in list(self._clients):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while len(self._clients) >= MAX_CLIENTS:
            oldest = next(iter(self._clients))
            del self._clients[oldest]
            oldest.transport.abort()
        self._clients[writer] = None
        writer.transport.set_write_buffer_limits(0)  # drained is what the kernel has taken in whole
        try:
            while await self._answer(reader, writer):
                if writer in self._clients:
                    self._clients[writer] = self._clients.pop(writer)
        except (TimeoutError, OSError):
            writer.transport.abort()
        finally:
            await self._close(writer)
            self._clients.pop(writer, None)

    async def _close(self, writer: asyncio.StreamWriter) -> None:
        """Closes once the client has read everything; one that does not read is dropped."""
        try:
            writer.close()
            await asyncio.wait_for(writer.wait_closed(), SILENCE_S)
        except (TimeoutError, OSError):
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Reads one line and answers it; False if that was the last."""
        try:
            line = await asyncio.wait_for(reader.readline(), SILENCE_S)
        except ValueError:
            return await self._send(writer, {"error": f"a line is at most {MAX_LINE_BYTES} bytes"}, last=True)
        if not line:
            return False
        try:
            request = json.loads(line)
            op = request["op"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return await self._send(writer, {"error": 'not a JSON object with an "op"'}, last=True)
        answer = self._handle(op, writer)
        try:
            return await self._send(writer, answer)
        finally:
            if op == "down" and "error" not in answer:
                self._end.set()

    def _handle(self, op: object, writer: asyncio.StreamWriter) -> dict[str, Any]:
        if not isinstance(op, str) or op not in {*self._open_to_all, *self._privileged}:
            return {"error": f"unknown op; there are {', '.join([*self._open_to_all, *self._privileged])}"}
        if op in self._open_to_all:
            return self._open_to_all[op]()
        if _peer_uid(writer) != 0:
            return {"error": f"{op} is for root", "denied": True}
        return self._privileged[op]()

    async def _send(self, writer: asyncio.StreamWriter, answer: Mapping[str, Any], last: bool = False) -> bool:
        writer.write(json.dumps(answer).encode() + b"\n")
        await asyncio.wait_for(writer.drain(), SILENCE_S)
        return not last


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    """Who connected, as the kernel recorded it."""
    sock = writer.get_extra_info("socket")
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(uid)
