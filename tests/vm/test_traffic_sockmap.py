# SPDX-License-Identifier: MIT
"""What mode sockmap counts: every echo, every byte, and the latency of each, on kernels other than the host's."""

import json
from collections.abc import Callable

import pytest
from modes import SOCKMAP_MODES, Service, kecho_ctl

from kecho.client import Client


@pytest.fixture(scope="module", params=SOCKMAP_MODES)
def mode(request: pytest.FixtureRequest, keep: Callable[[str], None]) -> str:
    """Both paths in the kernel; test_traffic.py has left them up."""
    keep(request.param)
    return request.param


def test_counts_are_exact(service: Service) -> None:
    before = Client(service.mode).snapshot()
    service.pingpong(61, 1009)
    service.wait_idle()
    since = Client(service.mode).snapshot() - before
    path = since.paths[service.mode]
    assert (path.echoes, path.bytes, path.fallbacks) == (1009, 61 * 1009, 0)
    assert all(other.echoes == 0 for name, other in since.paths.items() if name != service.mode)
    assert path.latency, path.why
    assert path.latency.count == 1009
    assert path.latency.percentile(0.5)
    assert since.connections.total == 1


def test_bytes_of_streams_add_up(service: Service) -> None:
    before = Client(service.mode).snapshot()
    service.stream(7, 100_003)
    service.wait_idle()
    since = Client(service.mode).snapshot() - before
    assert sum(path.bytes for path in since.paths.values()) == 7 * 100_003
    if service.mode == "msg":
        msg = since.paths["msg"]
        assert msg.latency and msg.latency.count == msg.echoes


def test_stats_of_kecho_ctl(service: Service) -> None:
    service.pingpong(64, 13)
    done = kecho_ctl("stats", "--json", "--name", service.mode)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["paths"][service.mode]
    assert found["latency_ns"]["count"] == sum(cpu["count"] for cpu in found["latency_ns"]["per_cpu"]) >= 13
