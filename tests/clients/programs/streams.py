# SPDX-License-Identifier: MIT
"""Usage: streams.py asyncio|makefile|signals HOST PORT INPUT OUTPUT: sends INPUT, writes what comes back to OUTPUT."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import sys
import threading
from pathlib import Path


async def by_asyncio(host: str, port: int, data: bytes, output: Path) -> None:
    """One task sends, another receives."""
    reader, writer = await asyncio.open_connection(host, port)

    async def send() -> None:
        for at in range(0, len(data), 50_000):
            writer.write(data[at : at + 50_000])
            await writer.drain()
        writer.write_eof()

    _, echoed = await asyncio.gather(send(), reader.read())
    output.write_bytes(echoed)
    writer.close()


def by_makefile(host: str, port: int, data: bytes, output: Path) -> None:
    """Buffered file objects: one thread sends, another receives."""
    with socket.create_connection((host, port)) as sock, sock.makefile("rwb") as both, output.open("wb") as file:

        def send() -> None:
            both.write(data)
            both.flush()
            sock.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        shutil.copyfileobj(both, file)
        sender.join()


def by_signals(host: str, port: int, data: bytes, output: Path) -> None:
    """Blocking calls that a signal interrupts a thousand times a second; Python tries again after EINTR."""
    signal.signal(signal.SIGALRM, lambda _signal, _frame: None)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    with socket.create_connection((host, port)) as sock, output.open("wb") as file:
        for at in range(0, len(data), 20_000):
            message = data[at : at + 20_000]
            sock.sendall(message)
            left = len(message)
            while left:
                piece = sock.recv(left)
                if not piece:
                    return
                file.write(piece)
                left -= len(piece)
        sock.shutdown(socket.SHUT_WR)
        file.write(sock.recv(1))
    signal.setitimer(signal.ITIMER_REAL, 0)


def main() -> None:
    how, host, port, source, target = sys.argv[1:]
    data, output = Path(source).read_bytes(), Path(target)
    if how == "asyncio":
        asyncio.run(by_asyncio(host, int(port), data, output))
    else:
        {"makefile": by_makefile, "signals": by_signals}[how](host, int(port), data, output)


if __name__ == "__main__":
    main()
