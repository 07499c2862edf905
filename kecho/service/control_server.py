# SPDX-License-Identifier: MIT
"""The server of the control socket: a JSON object a line each way. Reading is open to all users, the rest is for root.

Any user may connect, so a client may send too much, send too slowly, or not read its answer.
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
MAX_CLIENTS = 128  # beyond that, the client that has been silent longest is dropped

Handler = Callable[[], dict[str, Any]]


class ControlServer:
    """Answers ``{"op": NAME}`` with what the handler of that name returns; the `privileged` ones are for uid 0.

    The op "down" is for uid 0 too. It sets `end` once the kernel has taken its answer.
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
        """Serves on a listening socket, and owns it from then on."""
        # start_unix_server() would want to remove the socket in the end (Python 3.13), which is the keeper's to do.
        self._server = await asyncio.start_server(self._serve, sock=sock, limit=MAX_LINE_BYTES)

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
        writer.transport.set_write_buffer_limits(0)  # drain() then waits until the kernel has taken everything
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
        """Closes the connection once the client has read everything; drops a client that does not read."""
        try:
            writer.close()
            await asyncio.wait_for(writer.wait_closed(), SILENCE_S)
        except (TimeoutError, OSError):
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Reads one line and answers it. False if there is no further line to read."""
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
    """The uid of the client when it connected (SO_PEERCRED)."""
    sock = writer.get_extra_info("socket")
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(uid)
