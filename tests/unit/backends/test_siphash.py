# SPDX-License-Identifier: MIT
"""The mirror's hash against another implementation of SipHash, and the properties of its shifts."""

from __future__ import annotations

import os
import random
import stat
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import native_support
import pytest
import siphash24

from kecho.backends.mirror import read_secret
from kecho.model.errors import KechoError

MOST_IN_FLIGHT = 1 << 28  # bpf/mirror.h

# A line of input: the key's halves, the number of whole words, the words, the rest, the size. Output: hash, shift.
PROGRAM = r"""
#include <stdio.h>
#include "mirror.h"
#include "siphash.h"

int main(void)
{
	unsigned long long key0, key1, word, rest, hash;
	unsigned int words, size;

	printf("%u\n", MOST_IN_FLIGHT);
	while (scanf("%llu %llu %u", &key0, &key1, &words) == 3) {
		struct siphash sip = siphash_begin(key0, key1);

		while (words--) {
			if (scanf("%llu", &word) != 1)
				return 1;
			siphash_add(&sip, word);
		}
		if (scanf("%llu %u", &rest, &size) != 2)
			return 1;
		hash = siphash_end(&sip, rest, size);
		printf("%llu %u\n", hash, mirror_shift(hash));
	}
	return 0;
}
"""

Ask = Callable[[Sequence[tuple[bytes, bytes]]], list[tuple[int, int]]]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """The hash and the shift of each (key, message)."""
    twin = native_support.bpf_twin(PROGRAM, tmp_path_factory.mktemp("siphash"))

    def line(key: bytes, message: bytes) -> str:
        whole = len(message) // 8
        words = [int.from_bytes(message[8 * i : 8 * i + 8], "little") for i in range(whole + 1)]
        halves = (int.from_bytes(half, "little") for half in (key[:8], key[8:]))
        return " ".join(map(str, (*halves, whole, *words, len(message))))

    def run(cases: Sequence[tuple[bytes, bytes]]) -> list[tuple[int, int]]:
        text = "\n".join(line(*case) for case in cases)
        done = subprocess.run([twin], input=text, capture_output=True, text=True, check=True)
        most, *answers = done.stdout.splitlines()
        assert int(most) == MOST_IN_FLIGHT
        return [(int(answer.split()[0]), int(answer.split()[1])) for answer in answers]

    return run


def other(key: bytes, message: bytes) -> int:
    """The hash by the package siphash24."""
    return int.from_bytes(siphash24.siphash24(message, key=key).digest(), "little")


def test_siphash_published_vector(ask: Ask) -> None:
    """The vector in the paper's appendix: key 00 01 … 0f, message 00 01 … 0e."""
    case = (bytes(range(16)), bytes(range(15)))
    assert ask([case])[0][0] == other(*case) == 0xA129CA6149BE45E5


def test_siphash_all_lengths(ask: Ask) -> None:
    rng = random.Random(1)
    cases = [(rng.randbytes(16), rng.randbytes(size)) for size in range(64) for _ in range(20)]
    assert [found for found, _ in ask(cases)] == [other(*case) for case in cases]


def test_no_shift_undoes_another(ask: Ask) -> None:
    """A segment from one mirror is out of the range that another mirror accepts as its own."""
    rng = random.Random(2)
    shifts = [shift for _, shift in ask([(rng.randbytes(16), rng.randbytes(12)) for _ in range(3000)])]
    distinct = {shift >> 28 for shift in shifts}
    assert distinct == {0x1, 0x2, 0x9, 0xA}  # every one there may be, and no other
    for one, two in zip(shifts, rng.sample(shifts, len(shifts)), strict=True):
        distance = (one + two) % 2**31
        assert min(distance, 2**31 - distance) >= 2 * MOST_IN_FLIGHT


# ---- --keep-secret ----


def test_secret_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    first = read_secret(str(path))
    assert len(first) == 16 and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_secret(str(path)) == first
    assert read_secret(str(tmp_path / "other")) != first


def test_secret_of_a_bad_file(tmp_path: Path) -> None:
    readable, short, link = tmp_path / "readable", tmp_path / "short", tmp_path / "link"
    readable.write_bytes(bytes(16))
    readable.chmod(0o644)
    short.write_bytes(b"short")
    short.chmod(0o600)
    link.symlink_to(short)
    os.mkfifo(tmp_path / "fifo", 0o600)
    for path, reason in (
        (readable, "alone can read"),
        (short, "not 16 bytes"),
        (link, "symbolic links"),
        (tmp_path / "fifo", "must be a file"),
        (tmp_path / "none/secret", "No such file"),
        (tmp_path, "Is a directory"),
    ):
        with pytest.raises(KechoError, match=reason):
            read_secret(str(path))
    assert short.read_bytes() == b"short"
