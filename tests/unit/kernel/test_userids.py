# SPDX-License-Identifier: MIT
"""Which user ids belong to accounts, and which one a service takes."""

from __future__ import annotations

import pytest

from kecho.kernel import userids
from kecho.kernel.userids import BLOCK, CANDIDATES
from kecho.model.errors import Unavailable

FIRST = CANDIDATES.start


def nobody(_: int) -> bool:
    return False


def test_what_login_defs_hands_out() -> None:
    text = "UMASK 022\nUID_MIN\t\t 1000\n#UID_MAX 7\nUID_MAX 60000 \nSUB_UID_MIN 200000\nSUB_GID_MAX 2000000000\n"
    found = list(userids.login_ranges(text))
    assert found == [
        range(1000, 60_001),
        range(101, 1000),
        range(200_000, 600_100_001),
        range(1000, 60_001),
        range(101, 1000),
        range(100_000, 2_000_000_001),
    ]


def test_what_accounts_may_map() -> None:
    text = "# none\nalice:100000:65536\nbob:1879048192:1\nbroken:x:1\n:::\n1000:165536:65536\n"
    found = list(userids.sub_ranges(text))
    assert found == [range(100_000, 165_536), range(FIRST, FIRST + 1), range(165_536, 231_072)]


@pytest.mark.parametrize(
    "first", ["1879048192", "0x70000000", "0X70000000", "016000000000", "+1879048192", " 1879048192"]
)
def test_numbers_are_read_as_newuidmap_reads_them(first: str) -> None:
    """It reads them by strtoul(3) in any base; a range that only it saw would be one that an account may map."""
    assert list(userids.sub_ranges(f"bob:{first}:65536\n")) == [range(FIRST, FIRST + BLOCK)]
    assert range(100_000, FIRST + 1) in userids.login_ranges(f"SUB_UID_MAX {first}\n")
    assert range(100_000, FIRST + 1) in userids.login_ranges(f'SUB_UID_MAX "{first}"\n')


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ([], FIRST),
        ([range(0, FIRST)], FIRST),
        ([range(FIRST, FIRST + 1)], FIRST + BLOCK),
        ([range(FIRST + BLOCK - 1, FIRST + BLOCK)], FIRST + BLOCK),
        ([range(FIRST + BLOCK, FIRST + 2 * BLOCK), range(0, FIRST + 1)], FIRST + 2 * BLOCK),
        ([range(FIRST + 5 * BLOCK, 1 << 32)], FIRST),
    ],
)
def test_a_block_that_overlaps_with_none(given: list[range], base: int) -> None:
    assert userids.choose(7, given, nobody) == base + 7


def test_an_id_that_has_an_account() -> None:
    assert userids.choose(7, [], lambda uid: uid == FIRST + 7) == FIRST + BLOCK + 7


def test_none_is_free() -> None:
    with pytest.raises(Unavailable, match="no user id"):
        userids.choose(7, [range(100_000, 1 << 32)], nobody)
    with pytest.raises(Unavailable):
        userids.choose(7, [], lambda _: True)
