# SPDX-License-Identifier: MIT
"""The addresses of a veth pair: they overlap with no others."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kecho.kernel.sockets import Listener
from kecho.model.errors import KechoError
from kecho.system.topology import NETWORK_4, NETWORK_6, subnet

NUMBERS = st.integers(1, 1 << 20)


def test_nothing_taken() -> None:
    assert subnet(NETWORK_4, 30, 1, []) == IPv4Network("198.18.0.4/30")
    assert subnet(NETWORK_4, 30, 1 << 15, []) == IPv4Network("198.18.0.0/30")
    assert subnet(NETWORK_6, 64, 0x12, []) == IPv6Network("fd6b:6563:686f:12::/64")


@given(NUMBERS, NUMBERS)
def test_two_pairs_have_different_ones(one: int, other: int) -> None:
    """Two interfaces share a subnet only if their numbers differ by a multiple of 32,768."""
    same = one % (1 << 15) == other % (1 << 15)
    assert (subnet(NETWORK_4, 30, one, []) == subnet(NETWORK_4, 30, other, [])) == same


@given(NUMBERS, st.lists(st.tuples(st.integers(0, (1 << 16) - 1), st.integers(17, 32)), max_size=20))
def test_it_overlaps_with_nothing(number: int, others: list[tuple[int, int]]) -> None:
    """The upper half stays free, so there is one."""
    taken = [IPv4Network((int(NETWORK_4[0]) + offset, length), strict=False) for offset, length in others]
    found = subnet(NETWORK_4, 30, number, [*taken, ip_network("fd00::/8"), ip_network("10.0.0.0/8")])
    assert found.subnet_of(NETWORK_4)
    assert not any(found.overlaps(other) for other in taken)


def test_the_last_free_one_is_found() -> None:
    """From wherever the search begins."""
    free = IPv4Network("198.18.7.8/30")
    taken = list(NETWORK_4.address_exclude(free))
    for number in (0, 1, 449, 450, 451, 32767):
        assert subnet(NETWORK_4, 30, number, taken) == free


def test_no_room() -> None:
    with pytest.raises(KechoError, match=r"all of 198\.18\.0\.0/15, .*, is in use here"):
        subnet(NETWORK_4, 30, 5, [ip_network("198.18.0.0/16"), ip_network("198.19.0.0/16")])


@pytest.mark.parametrize(
    ("listener", "takes"),
    [
        (Listener("0.0.0.0", 1, False), (True, False)),
        (Listener("::", 1, True), (False, True)),
        (Listener("::", 1, False), (True, True)),
        (Listener("198.18.0.1", 1, False), (True, False)),
        (Listener("127.0.0.1", 1, False), (False, False)),
        (Listener("::1", 1, False), (False, False)),
    ],
)
def test_what_a_listener_takes(listener: Listener, takes: tuple[bool, bool]) -> None:
    assert (listener.takes("198.18.0.1"), listener.takes("fd00::1")) == takes
