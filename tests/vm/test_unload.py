# SPDX-License-Identifier: MIT
"""The service ends early, and the rest of the machine goes on meanwhile."""

import os
import signal
import socket
import subprocess
import threading
import time

import fastecho
from kernel_log import KernelLog

from kecho.kernel import libc

CLONE_NEWNET = 0x40000000


def is_refused(address: str = "127.0.0.1") -> bool:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
        return sock.connect_ex((address, fastecho.PORT)) != 0


def make_namespaces(report: int) -> None:
    """Makes namespaces without end. Reports the start of each, in seconds, and the number of peers left then."""
    while True:
        begun_s = time.monotonic()
        try:
            libc.call("unshare", CLONE_NEWNET)
        except OSError:
            os._exit(1)
        try:
            peers = fastecho.counter("active")
        except OSError:
            peers = 0
        os.write(report, f"{begun_s} {peers}\n".encode())


def test_namespaces_can_be_made_while_it_unloads() -> None:
    """While rmmod waits for peers that do not answer, `unshare -n` does not wait for rmmod."""
    fastecho.load()
    clients = fastecho.stuck_clients(4)
    receiving, sending = os.pipe()
    pid = os.fork()
    if pid == 0:
        make_namespaces(sending)
    os.close(sending)
    with os.fdopen(receiving) as reports:
        try:
            reports.readline()  # it has begun
            unloader = threading.Thread(target=fastecho.unload)
            unloader.start()
            fastecho.wait_for(is_refused, "the unloading to begin")
            waits_s = time.monotonic()
            unloader.join()
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        made = [line.split() for line in reports]
    assert any(float(begun_s) > waits_s and int(peers) for begun_s, peers in made), "none was made while rmmod waited"
    for client in clients:
        client.close()


def test_listening_socket_ended_by_the_administrator(kernel_log: KernelLog) -> None:
    """First one of two addresses: a line in the log, a counter, and the other goes on. Then the last one."""
    fastecho.load()
    assert fastecho.counter("listening") == 2
    with socket.create_connection(("127.0.0.1", fastecho.PORT), timeout=60) as client:
        for address, left in ("127.0.0.1", 1), ("[::1]", 0):
            kernel_log.new_lines()
            subprocess.run(["ss", "-K", "-tln", "src", f"{address}:{fastecho.PORT}"], check=True)
            fastecho.wait_for(lambda left=left: fastecho.counter("listening") == left, "the module to see it")
            lines = [line for line in kernel_log.new_lines() if line.startswith("fastecho: ")]
            assert len(lines) == 1 and f"{address.strip('[]')}" in lines[0] and "ss -K" in lines[0]
            assert is_refused(address.strip("[]"))
        client.sendall(b"x")
        assert client.recv(1) == b"x", "connections go on"
    fastecho.unload()


def test_listening_ends_with_the_namespace() -> None:
    """No administrator ended a socket, so nothing is logged; the counter follows."""
    subprocess.run(["unshare", "-n", "sh", "-c", f"ip link set lo up; insmod {fastecho.KO}"], check=True)
    fastecho.wait_for(lambda: fastecho.counter("listening") == 0, "the namespace to go")
    fastecho.unload()
