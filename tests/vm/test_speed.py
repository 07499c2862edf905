# SPDX-License-Identifier: MIT
"""The module against the best that user space can do, once that server is built: build/user-echo-server."""

import socket
import subprocess
from statistics import median

import fastecho

SERVER = fastecho.TOP / "build/user-echo-server"
PORT = fastecho.PORT + 1


def is_listening() -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", PORT)) == 0


if SERVER.exists():

    def test_three_times_as_fast_as_epoll() -> None:
        fastecho.load()
        server = subprocess.Popen([str(SERVER), "--port", str(PORT)])
        try:
            fastecho.wait_for(is_listening, "the server to listen")
            ratios = [fastecho.pingpong(64, 501, port=PORT) / fastecho.pingpong(64, 501) for _ in range(5)]
        finally:
            server.terminate()
            server.wait()
        assert median(ratios) >= 3, ratios
