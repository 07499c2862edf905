# SPDX-License-Identifier: MIT
"""The cache: what is kept comes back, and whatever may be somebody else's, or damaged, does not."""

from __future__ import annotations

import fcntl
import logging
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kecho.kernel import cache

CONTENT = {"some": ["content", 1]}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(cache, "FOLDER", tmp_path / "kecho")
    umask = os.umask(0)
    yield cache.FOLDER
    os.umask(umask)


def kept(*parts: object) -> Path:
    """Stores an entry and returns its file."""
    cache.store(cache.key(*parts), CONTENT)
    return cache.FOLDER / cache.key(*parts)


def test_what_is_kept_comes_back(folder: Path) -> None:
    assert cache.load(cache.key("a")) is None
    kept("a")
    assert cache.load(cache.key("a")) == CONTENT
    assert cache.load(cache.key("b")) is None
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [(path.name, path.stat().st_mode & 0o777) for path in folder.iterdir()] == [(cache.key("a"), 0o600)]


@pytest.mark.parametrize("what", ["release", "version", "machine", "build"])
def test_another_kernel_has_another_key(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache.key("a")
    if what == "build":
        monkeypatch.setattr(cache, "_NOTES", tmp_path / "notes")
        (tmp_path / "notes").write_bytes(b"another")
    else:
        fields = ["sysname", "nodename", "release", "version", "machine"]
        other = os.uname_result(
            "other" if field == what else value for field, value in zip(fields, os.uname(), strict=True)
        )
        monkeypatch.setattr(os, "uname", lambda: other)
    assert cache.key("a") != before


def test_the_name_of_the_machine_has_no_part_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache.key("a")
    sysname, _, *rest = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((sysname, "other", *rest)))
    assert cache.key("a") == before


# ---- damaged entries ----


def test_every_damaged_byte_is_noticed() -> None:
    file = kept("a")
    whole = file.read_bytes()
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert cache.load(cache.key("a")) is None, at
        file.write_bytes(whole[:at])
        assert cache.load(cache.key("a")) is None, at
    file.write_bytes(whole + b" ")
    assert cache.load(cache.key("a")) is None
    file.write_bytes(whole)
    assert cache.load(cache.key("a")) == CONTENT


def test_an_entry_under_anothers_name_is_damaged() -> None:
    os.rename(kept("a"), cache.FOLDER / cache.key("b"))
    assert cache.load(cache.key("b")) is None


def test_a_damaged_entry_is_replaced() -> None:
    kept("a").write_bytes(b"x")
    kept("a")
    assert cache.load(cache.key("a")) == CONTENT


# ---- what others could have written ----


def linked(path: Path) -> None:
    os.rename(path, path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def owned(path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root gives files away")
    os.chown(path, 65534, -1)


def replaced_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


TAMPERED: dict[str, Callable[[Path], None]] = {
    "readable by the group": lambda path: path.chmod(path.stat().st_mode | 0o040),
    "writable by all": lambda path: path.chmod(path.stat().st_mode | 0o002),
    "a link": linked,
    "of another owner": owned,
}


@pytest.mark.parametrize("how", [*TAMPERED, "a fifo"])
def test_a_foreign_entry_is_replaced(how: str) -> None:
    {**TAMPERED, "a fifo": replaced_by_fifo}[how](kept("a"))
    assert cache.load(cache.key("a")) is None
    kept("a")
    assert cache.load(cache.key("a")) == CONTENT


@pytest.mark.parametrize("how", TAMPERED)
def test_a_foreign_folder_is_not_used(how: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = kept("a")
    TAMPERED[how](folder)
    before = file.stat().st_mtime_ns
    with caplog.at_level(logging.WARNING):
        assert cache.load(cache.key("a")) is None
        kept("a")
        kept("b")
    assert (file.stat().st_mtime_ns, len(list(folder.iterdir()))) == (before, 1)
    assert how == "a link" or f"{folder} is not used" in caplog.text


def test_a_folder_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing fails, and nothing is told: a read-only file system is no fault."""
    for where in (Path("/proc/kecho"), Path("/dev/null/kecho"), Path("/no/such/folder")):
        monkeypatch.setattr(cache, "FOLDER", where)
        cache.store(cache.key("a"), CONTENT)
        assert cache.load(cache.key("a")) is None
    assert not caplog.text


# ---- pruning, and processes that are killed ----


def test_the_oldest_are_removed(folder: Path) -> None:
    now = time.time()
    for number in range(cache.MOST_ENTRIES):
        os.utime(kept(number), times=(now - 1000 + number, now - 1000 + number))
    (folder / "other").touch()
    assert cache.load(cache.key(0)) == CONTENT  # what is used is kept
    kept("new")
    there = {path.name for path in folder.iterdir()}
    assert there == {"other", *(cache.key(part) for part in [0, *range(2, cache.MOST_ENTRIES), "new"])}


def test_what_is_unfinished_is_cleared(folder: Path) -> None:
    file = kept("a")
    (folder / "new").write_bytes(file.read_bytes()[:50])
    kept("b")
    assert {path.name for path in folder.iterdir()} == {cache.key("a"), cache.key("b")}


def test_a_folder_in_use_is_not_waited_for(folder: Path) -> None:
    kept("a")
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert not kept("b").exists()
        assert cache.load(cache.key("a")) == CONTENT
    finally:
        os.close(fd)
    assert kept("b").exists()


def test_killed_while_it_writes(folder: Path) -> None:
    """Whatever the moment, the entries there are whole, and the next one finds nothing in its way."""
    rng = random.Random(1)
    for _ in range(30):
        pid = os.fork()
        if pid == 0:
            try:
                while True:
                    kept("a")
            finally:
                os._exit(1)
        time.sleep(rng.uniform(0.001, 0.01))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert not (folder / cache.key("a")).exists() or cache.load(cache.key("a")) == CONTENT
        assert kept("b").exists()
        assert {path.name for path in folder.iterdir()} <= {cache.key("a"), cache.key("b")}
