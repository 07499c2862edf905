# SPDX-License-Identifier: MIT
"""Snapshots: the JSON schema both ways, differences, and the reason for a missing figure."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from kecho.model.histogram import Histogram
from kecho.model.snapshot import Connections, PathStats, Snapshot


def snapshot(echoes: int, uptime_s: float) -> Snapshot:
    return Snapshot(
        "kecho",
        "sockmap",
        12345,
        uptime_s,
        "6.1.0-56-amd64",
        Connections(active=2, total=3 + echoes, rejected=echoes // 10, aborted=1),
        {
            "egress": PathStats(echoes, 64 * echoes, 5, Histogram.of(range(1000, 1000 + echoes), cpu=1)),
            "user": PathStats(echoes // 2, echoes, 0, None, "the controller takes no time"),
        },
    )


def test_json_round_trip() -> None:
    original = replace(snapshot(echoes=107, uptime_s=12.3), since_ns=7)
    assert Snapshot.from_json(json.loads(json.dumps(original.to_json()))) == original


def test_json_has_the_documented_fields() -> None:
    obj = snapshot(echoes=20, uptime_s=1.5).to_json()
    assert list(obj) == ["schema", "name", "mode", "port", "uptime_s", "since_ns", "kernel", "connections", "paths"]
    assert obj["schema"] == 1
    assert obj["connections"] == {"active": 2, "total": 23, "rejected": 2, "aborted": 1}
    assert list(obj["paths"]["egress"]) == ["echoes", "bytes", "fallbacks", "latency_ns"]
    assert list(obj["paths"]["egress"]["latency_ns"]) == ["count", "p50", "p90", "p99", "p999", "max", "per_cpu"]


def test_unobserved_latency_is_null_with_a_reason() -> None:
    obj = snapshot(echoes=20, uptime_s=1.5).to_json()["paths"]["user"]
    assert obj["latency_ns"] is None
    assert obj["why"] == {"latency_ns": "the controller takes no time"}


def test_difference_is_the_interval() -> None:
    interval = snapshot(echoes=10_107, uptime_s=13.0) - snapshot(echoes=100, uptime_s=12.0)
    assert interval.uptime_s == pytest.approx(1.0)
    assert interval.connections == Connections(active=2, total=10_007, rejected=1000, aborted=0)
    message = interval.paths["egress"]
    assert (message.echoes, message.bytes, message.fallbacks) == (10_007, 640_448, 0)
    assert message.latency is not None
    assert message.latency.merged() == Histogram.of(range(1100, 11_107)).merged()
    assert interval.paths["user"].latency is None
    assert interval.paths["user"].why


def test_every_count_of_connections_is_a_difference() -> None:
    assert Connections(9, 30, 20, 10) - Connections(5, 1, 2, 3) == Connections(9, 29, 18, 7)


def test_paths_add_up_and_what_one_does_not_observe_neither_does_the_sum() -> None:
    one, other = (PathStats(n, 10 * n, n, Histogram.of([1000] * n)) for n in (2, 3))
    assert one + other == PathStats(5, 50, 5, Histogram.of([1000] * 5))
    blind = PathStats(1, 1, 0, None, "why")
    for total in (one + blind, blind + one):
        assert (total.echoes, total.latency, total.why) == (3, None, "why")


def test_difference_with_a_later_one_is_refused() -> None:
    with pytest.raises(ValueError, match="not an earlier snapshot"):
        snapshot(echoes=10, uptime_s=1.0) - snapshot(echoes=20, uptime_s=2.0)


def test_difference_over_a_reset_is_refused() -> None:
    """Even if more was counted after the reset than before."""
    with pytest.raises(ValueError, match="began to count anew"):
        replace(snapshot(echoes=20, uptime_s=2.0), since_ns=1) - snapshot(echoes=10, uptime_s=1.0)


def test_an_interval_across_a_reset_begins_with_the_reset() -> None:
    """If it began with the service, the rate would be that of the service's whole life."""
    before = replace(snapshot(echoes=100, uptime_s=3600.0), since_ns=10**9)
    after = replace(snapshot(echoes=30, uptime_s=3601.0), since_ns=3_600_600_000_000)
    interval = after.since(before, now_ns=3_601_000_000_000)
    assert interval.uptime_s == 0.4
    assert interval.paths["egress"].echoes == 30
    later = replace(snapshot(echoes=50, uptime_s=3602.0), since_ns=after.since_ns)
    assert later.since(after, now_ns=0) == later - after


@pytest.mark.parametrize("schema", [None, 0, 2, "1"])
def test_another_schema_is_refused(schema: object) -> None:
    obj = {**snapshot(echoes=1, uptime_s=1.0).to_json(), "schema": schema}
    with pytest.raises(ValueError, match=f"schema {schema}, this version reads 1"):
        Snapshot.from_json(obj)
