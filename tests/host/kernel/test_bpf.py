# SPDX-License-Identifier: MIT
"""BPF objects: compiled once, loaded for each service with its own maps and settings, and gone when they are closed."""

from __future__ import annotations

import base64
import ctypes
import dataclasses
import logging
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import support

from kecho.kernel import bpf, cache, compiler, features, process, syscall
from kecho.model.errors import KechoError

SOURCE = """
#include <uapi/linux/bpf.h>
#include "kecho.h"
#include "more.h"

struct seen {
	__u64 number, runs;
};
BPF_ARRAY(seens, struct seen, 1);
BPF_RINGBUF_OUTPUT(records, 1);

int kecho_write_it_down(struct __sk_buff *skb)
{
	int zero = 0;
	struct seen *seen = seens.lookup(&zero);

	if (!seen)
		return 0;
	seen->number = NUMBER;
	seen->runs++;
	records.ringbuf_output(seen, sizeof(*seen), 0);
	return RESULT + MORE + EXTRA;
}

int kecho_forbidden(struct __sk_buff *skb)
{
	return *(int *)(long)skb->len;
}
"""
SETTINGS = {"NUMBER": 0xFEDCBA9876543210, "RESULT": 1000}
DEFINES = {"EXTRA": 30}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "main.c").write_text(SOURCE)
    (tmp_path / "more.h").write_text("#define MORE 4\n")
    for name in ("kecho.h", "hist.h"):
        (tmp_path / name).symlink_to(compiler.sources() / name)
    return tmp_path / "main.c"


@pytest.fixture(autouse=True)
def compilations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An empty cache, and what is run in processes of its own."""
    monkeypatch.setattr(cache, "FOLDER", tmp_path / "cache")
    found: list[str] = []
    in_child = process.in_child

    def counted(name: str, work: Callable[[], object]) -> tuple[Any, str]:
        found.append(name)
        return in_child(name, work)

    monkeypatch.setattr(process, "in_child", counted)
    return found


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def module(source: Path) -> Iterator[bpf.Module]:
    made = bpf.Module(str(source), DEFINES, SETTINGS)
    yield made
    made.close()


def run(program: int) -> int:
    """Runs a program on a packet once (BPF_PROG_TEST_RUN); returns its result."""
    packet = ctypes.create_string_buffer(64)
    attr = ctypes.create_string_buffer(
        struct.pack("=IIIIQQII", program, 0, 64, 0, ctypes.addressof(packet), 0, 1, 0), 128
    )
    syscall._bpf(10, attr, "BPF_PROG_TEST_RUN")
    return int(struct.unpack_from("=I", attr, 4)[0])


def seen(module: bpf.Module) -> tuple[int, ...]:
    return struct.unpack("=QQ", syscall.map_lookup(module.map_fd("seens"), bytes(4), 16))


def load(module: bpf.Module, function: str = "kecho_write_it_down") -> int:
    return module.load(function, syscall.PROG_TYPE_SCHED_CLS)


def test_one_object_serves_services_with_settings_of_their_own(source: Path, compilations: list[str]) -> None:
    """Each has its own maps. What is kept has no value of a setting in it."""
    modules = []
    for settings in (SETTINGS, {"NUMBER": 5, "RESULT": 0}, {"NUMBER": 2**64 - 1, "RESULT": 2**31}):
        module = bpf.Module(str(source), DEFINES, settings)
        modules.append(module)
        program = load(module)
        assert [run(program), run(program)] == [(settings["RESULT"] + 34) % 2**32] * 2
        assert seen(module) == (settings["NUMBER"], 2)
    assert [seen(module)[0] for module in modules] == [SETTINGS["NUMBER"], 5, 2**64 - 1]
    assert compilations == ["kecho-compiler"]
    (entry,) = cache.FOLDER.iterdir()
    (code, _, _) = cache.load(entry.name)["object"]["functions"]["kecho_write_it_down"]
    assert struct.pack("<I", SETTINGS["NUMBER"] & 0xFFFFFFFF) not in base64.b64decode(code)
    for module in modules:
        module.close()
        module.close()


def test_every_record_is_read(module: bpf.Module) -> None:
    """More than the ring buffer holds, in turns."""
    records: list[bytes] = []
    _, consume = module.on_record("records", records.append)
    program, number = load(module), SETTINGS["NUMBER"]
    for turn in range(1, 1001):
        run(program)
        if turn % 100 == 0:
            consume()
    assert [struct.unpack("=QQ", record) for record in records] == [(number, turn) for turn in range(1, 1001)]


def test_bpftool_knows_names_and_types(module: bpf.Module) -> None:
    run(load(module))
    (number,) = support.fdinfo(os.getpid(), "prog_id")
    assert support.bpftool("prog", "show", "id", number)["name"] == "kecho_write_it_down"  # by BTF: a name has 15 bytes
    (entry,) = support.bpftool("map", "dump", "id", support.map_id(os.getpid(), "seens"))
    assert entry["formatted"]["value"] == {"number": SETTINGS["NUMBER"], "runs": 1}


# ---- what makes another object ----


def _other_define(source: Path, _: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"defines": {"EXTRA": 31}}


def _other_settings(source: Path, _: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"settings": dict(reversed(SETTINGS.items()))}


def _other_text(source: Path, _: pytest.MonkeyPatch) -> dict[str, Any]:
    source.write_text(SOURCE + "\n")
    return {}


def _other_included_text(source: Path, _: pytest.MonkeyPatch) -> dict[str, Any]:
    source.with_name("more.h").write_text("#define MORE 5\n")
    return {}


def _other_headers(source: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    headers = features.headers()
    monkeypatch.setattr(features, "headers", lambda: dataclasses.replace(headers, cflags=(*headers.cflags, "-DOTHER")))
    return {}


def _newer_headers(source: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    headers = dataclasses.replace(features.headers(), configuration=source)
    monkeypatch.setattr(features, "headers", lambda: headers)
    return {}


def _other_environment(source: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("BCC_LINUX_VERSION_CODE", "1")
    return {}


def _other_kernel(source: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(cache, "_NOTES", source)
    return {}


def _other_compiler(source: Path, _: pytest.MonkeyPatch) -> dict[str, Any]:
    """As after an upgrade of one of its libraries."""
    (entry,) = cache.FOLDER.iterdir()
    content = cache.load(entry.name)
    libraries = {Path(name).name.split(".")[0].split("-")[0] for name in content["compilers"]}
    assert {"libbcc", "libLLVM"} <= libraries or libraries == {"libbcc"}
    content["compilers"][sorted(content["compilers"])[-1]][1] += 1
    cache.store(entry.name, content)
    return {}


def _damaged(source: Path, _: pytest.MonkeyPatch) -> dict[str, Any]:
    (entry,) = cache.FOLDER.iterdir()
    entry.write_bytes(entry.read_bytes()[:-1])
    return {}


CHANGES = [
    *(_other_define, _other_settings, _other_text, _other_included_text, _other_headers, _newer_headers),
    *(_other_environment, _other_kernel, _other_compiler, _damaged),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
def test_a_change_is_compiled(
    source: Path, change: Callable[..., dict[str, Any]], compilations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And then kept as well."""
    arguments = {"defines": DEFINES, "settings": SETTINGS}
    for count in (1, 1):
        bpf.Module(str(source), **arguments).close()
        assert len(compilations) == count
    arguments |= change(source, monkeypatch)
    for count in (2, 2):
        module = bpf.Module(str(source), **arguments)
        run(load(module))
        assert seen(module) == (SETTINGS["NUMBER"], 1)
        module.close()
        assert len(compilations) == count


def test_what_the_kernel_has_of_fields_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from kecho.kernel import fields

    made = fields.fields()
    assert made.defines["KECHO_OFF_RCV_NXT"] > 0
    monkeypatch.setattr(fields, "_fields", lambda _: pytest.fail("read again"))
    assert fields.fields() == made


# ---- what does not work ----


def test_an_error_of_the_compiler(source: Path, compilations: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """The first line that says what is wrong, and all of it in the log. It is not kept."""
    line = SOURCE[: SOURCE.index("seen->runs++")].count("\n") + 1
    source.write_text(SOURCE.replace("seen->runs++;", "seen->runs++"))
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING), pytest.raises(KechoError) as caught:
            bpf.Module(str(source), DEFINES, SETTINGS)
        assert str(caught.value).startswith(f"cannot compile {source}: {source}:{line}:14: error: expected ';'")
        assert "1 error generated" in caplog.text
    assert len(compilations) == 2 and not cache.FOLDER.exists()


def test_a_setting_that_nothing_uses(source: Path) -> None:
    with pytest.raises(KechoError, match=r"no instruction uses OTHER$"):
        bpf.Module(str(source), DEFINES, {**SETTINGS, "OTHER": 1})


def test_a_program_that_the_verifier_refuses(module: bpf.Module, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(KechoError) as caught:
        load(module, "kecho_forbidden")
    assert str(caught.value) == "the kernel refuses the BPF program kecho_forbidden: BPF_PROG_LOAD: Permission denied"
    assert "invalid mem access" in caplog.text
    assert run(load(module)) == 1034


def test_a_tracepoint_that_is_not_there(module: bpf.Module) -> None:
    with pytest.raises(KechoError, match="no usable tracepoint kecho_nowhere"):
        module.attach_raw_tracepoint("kecho_nowhere", "kecho_write_it_down")


def test_a_compiler_that_is_killed(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        os.kill(os.getpid(), 9)

    monkeypatch.setattr(compiler, "_compile", killed)
    with pytest.raises(KechoError, match="the compiler was killed"):
        bpf.Module(str(source), DEFINES, SETTINGS)
