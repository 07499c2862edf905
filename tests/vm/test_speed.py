# SPDX-License-Identifier: MIT
"""The module against the best that user space can do, once that server is built: build/user-echo-server."""

import socket
import subprocess
from statistics import median

import fastecho
from modes import BUILD, Service

SERVER = BUILD / "user-echo-server"
PORT = fastecho.PORT + 1


def is_listening() -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", PORT)) == 0


if SERVER.exists():

    def test_three_times_as_fast_as_epoll() -> None:
        fastecho.load()
        module, user = Service("softirq"), Service("user", port=PORT)
        server = subprocess.Popen([str(SERVER), "--port", str(PORT)])
        try:
            fastecho.wait_for(is_listening, "the server to listen")
            ratios = [user.pingpong(64, 2001) / module.pingpong(64, 2001) for _ in range(5)]
        finally:
            server.terminate()
            server.wait()
        assert median(ratios) >= 3, ratios
