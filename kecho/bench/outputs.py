# SPDX-License-Identifier: MIT
"""The files that a benchmark writes. They are tried before it starts and replaced atomically."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from kecho.bench.plan import STDOUT, Plan
from kecho.bench.result import Result
from kecho.model.errors import KechoError, one_line


def check(path: str) -> None:
    """Raises OSError if `path` cannot be written. Does not change it."""
    target = Path(path).resolve()
    if not path or target.is_dir():
        raise IsADirectoryError(f"{path!r} is a folder")
    if _is_special(target):
        with target.open("a"):
            return
    with _beside(target):
        pass


def replace(path: str, write: Callable[[Path], None]) -> None:
    """Lets `write` make a new file, and replaces `path` by it once it is complete. Raises KechoError.

    A device or pipe is written to directly.
    """
    target = Path(path).resolve()
    try:
        if _is_special(target):
            write(target)
            return
        with _beside(target) as new:
            write(new)
            if target.exists():
                old = target.stat()
                new.chmod(old.st_mode & 0o7777)
                with contextlib.suppress(PermissionError):
                    os.chown(new, old.st_uid, old.st_gid)
            new.rename(target)
    except OSError as e:
        raise KechoError(f"cannot write {path}: {one_line(e)}") from e


def _is_special(path: Path) -> bool:
    return path.exists() and not path.is_file()


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """An empty file in the same folder with the same suffix. It is removed in the end, unless it was renamed."""
    new = target.with_name(f".{target.stem}.{secrets.token_hex(4)}{target.suffix}")
    new.touch(exist_ok=False)
    try:
        yield new
    finally:
        new.unlink(missing_ok=True)


def save(result: Result, path: str | Path) -> None:
    """Writes the JSON of a result. Raises KechoError."""
    text = json.dumps(result.to_json()) + "\n"
    replace(str(path), lambda new: _write(new, text))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def save_all(plan: Plan, result: Result) -> None:
    """Writes the files of the plan but for the picture, and the result that `make plot` draws.

    Raises KechoError, and then the others are written nevertheless.
    """
    _save_last(result)
    with contextlib.ExitStack() as stack:
        if plan.csv:
            from kecho.bench import table

            stack.callback(replace, plan.csv, functools.partial(table.save_csv, result))
        if plan.json not in (None, STDOUT):
            stack.callback(save, result, str(plan.json))


def _save_last(result: Result) -> None:
    """Keeps the result for `make plot`, in a checkout or where there is a folder of results."""
    folder = Path("results")
    if folder.is_dir() or (Path("Makefile").is_file() and Path("kecho").is_dir()):
        with contextlib.suppress(OSError, KechoError):
            folder.mkdir(exist_ok=True)
            save(result, folder / "last.json")
