# SPDX-License-Identifier: MIT
"""Clients on another machine, as far as TCP can tell: a veth pair with an MTU of 1500, packets lost and reordered."""

import subprocess
from collections.abc import Iterator

import fastecho
import pytest
import support
from test_module import ip

NETEM = {
    "clean": [],
    "delay": ["delay", "2ms"],
    "loss": ["delay", "1ms", "loss", "2%"],
    "reorder": ["delay", "2ms", "reorder", "70%", "50%"],
    "duplicate": ["duplicate", "5%"],
}


@pytest.fixture
def remote() -> Iterator[tuple[str, ...]]:
    """A namespace behind a veth pair; the command prefix that runs a client in it."""
    ip("netns", "add", "kecho-remote")
    ip("link", "add", "kecho0", "type", "veth", "peer", "name", "kecho1", "netns", "kecho-remote")
    ip("addr", "add", "10.77.0.1/24", "dev", "kecho0")
    ip("link", "set", "kecho0", "up")
    ip("-n", "kecho-remote", "addr", "add", "10.77.0.2/24", "dev", "kecho1")
    ip("-n", "kecho-remote", "link", "set", "kecho1", "up")
    yield ("ip", "netns", "exec", "kecho-remote")
    ip("link", "del", "kecho0")
    ip("netns", "del", "kecho-remote")


@pytest.mark.parametrize("netem", NETEM)
@pytest.mark.parametrize("parameters", [(), ("inline=0",)])
def test_remote_client(remote: tuple[str, ...], parameters: tuple[str, ...], netem: str) -> None:
    if NETEM[netem]:
        subprocess.run(["tc", "qdisc", "add", "dev", "kecho0", "root", "netem", *NETEM[netem]], check=True)
        subprocess.run([*remote, "tc", "qdisc", "add", "dev", "kecho1", "root", "netem", *NETEM[netem]], check=True)
    fastecho.load("bind=10.77.0.1", *parameters)
    support.Server(fastecho.PORT, ["10.77.0.1"]).stream(3, 300_000 if NETEM[netem] else 3_000_000, prefix=remote)
    fastecho.wait_idle()
    assert fastecho.counter("aborted") == 0


@pytest.mark.unload
def test_unload_with_a_peer_that_is_gone(remote: tuple[str, ...]) -> None:
    """Nobody acknowledges the FIN: the wait for it is bounded."""
    fastecho.load("bind=10.77.0.1")
    talk = "import socket; s = socket.create_connection(('10.77.0.1', 12345)); s.send(b'x'); s.recv(1); s.recv(1)"
    client = subprocess.Popen([*remote, "python3", "-c", talk])
    fastecho.wait_for(lambda: fastecho.counter("active") == 1, "the client")
    ip("-n", "kecho-remote", "link", "set", "kecho1", "down")
    fastecho.unload()
    client.kill()
    client.wait()
