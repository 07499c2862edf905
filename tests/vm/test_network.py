# SPDX-License-Identifier: MIT
"""Clients that look remote to TCP: a veth pair with an MTU of 1500, with packets lost and reordered."""

import subprocess
from collections.abc import Iterator

import fastecho
import network
import pytest
import support

NETEM = {
    "clean": [],
    "delay": ["delay", "2ms"],
    "loss": ["delay", "1ms", "loss", "2%"],
    "reorder": ["delay", "2ms", "reorder", "70%", "50%"],
    "duplicate": ["duplicate", "5%"],
}
HARSHER = {
    "loss 0.1 %": ["loss", "0.1%"],
    "loss 1 %": ["loss", "1%"],
    "loss 5 %": ["loss", "5%"],
    "far": ["delay", "20ms"],
}


@pytest.fixture
def pair() -> Iterator[network.Veth]:
    """A namespace behind a veth pair."""
    with network.veth() as made:
        yield made


@pytest.mark.parametrize("netem", NETEM)
@pytest.mark.parametrize("parameters", [(), ("inline=0",)])
def test_remote_client(pair: network.Veth, parameters: tuple[str, ...], netem: str) -> None:
    if NETEM[netem]:
        pair.impair(NETEM[netem])
    fastecho.load(f"bind={pair.here}", *parameters)
    server = support.Server(fastecho.PORT, [pair.here])
    server.stream(3, 300_000 if NETEM[netem] else 3_000_000, prefix=pair.prefix)
    fastecho.wait_idle()
    assert fastecho.counter("aborted") == 0


def test_remote_client_of_the_mirror(pair: network.Veth) -> None:
    """One service for all networks: each meets what the one before has left."""
    service = support.up(mode="mirror", bind=pair.here)
    try:
        for netem in (NETEM | HARSHER).values():
            pair.impair(netem)
            service.stream(3, 300_000, prefix=pair.prefix)
        support.wait_for(lambda: service.active() == 0, "the end of all connections")
        assert service.path("mirror")["bytes"] >= len(NETEM | HARSHER) * 3 * 300_000
    finally:
        service.down()


@pytest.mark.unload
def test_unload_with_a_peer_that_is_gone(pair: network.Veth) -> None:
    """The FIN is never acknowledged: the wait for that is bounded."""
    fastecho.load(f"bind={pair.here}")
    talk = f"import socket; s = socket.create_connection(('{pair.here}', 12345)); s.send(b'x'); s.recv(1); s.recv(1)"
    client = subprocess.Popen([*pair.prefix, "python3", "-c", talk])
    fastecho.wait_for(lambda: fastecho.counter("active") == 1, "the client")
    subprocess.run([*pair.prefix, "ip", "link", "set", "peer", "down"], check=True)
    fastecho.unload()
    client.kill()
    client.wait()
