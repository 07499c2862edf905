# SPDX-License-Identifier: MIT
"""Field offsets from BTF: of hand-made and malformed blobs, and of the running kernel, compared with bpftool."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kecho.kernel.btf import VMLINUX, Btf, BtfError

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT = range(1, 12)
FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(12, 20)
LOC_PARAM, LOC_PROTO, LOCSEC = range(20, 23)


class Maker:
    """Builds a BTF blob: Documentation/bpf/btf.rst of the kernel. Types are numbered from 1 in the order of making."""

    def __init__(self) -> None:
        self.strings = b"\0"
        self.types = b""
        self.made = 0

    def name(self, text: str) -> int:
        if not text:
            return 0
        at = len(self.strings)
        self.strings += text.encode() + b"\0"
        return at

    def add(self, name: str, kind: int, size_or_type: int, vlen: int = 0, trailer: bytes = b"", flag: int = 0) -> int:
        info = flag << 31 | kind << 24 | vlen
        self.types += struct.pack("<III", self.name(name), info, size_or_type) + trailer
        self.made += 1
        return self.made

    def number(self) -> int:
        return self.add("int", INT, 4, trailer=struct.pack("<I", 32))

    def record(
        self, name: str, size: int, members: Sequence[tuple[str, int, int]], kind: int = STRUCT, flag: int = 0
    ) -> int:
        """Members are (name, type, bit offset); with `flag` the offset has a bit-field size in its upper byte."""
        trailer = b"".join(struct.pack("<III", self.name(member), of, bits) for member, of, bits in members)
        return self.add(name, kind, size, len(members), trailer, flag)

    def blob(self, layout: bytes = b"") -> bytes:
        """The blob, with a layout section after the strings if one is given."""
        lengths = (0, len(self.types), len(self.types), len(self.strings))
        header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 32 if layout else 24, *lengths)
        if layout:
            header += struct.pack("<II", len(self.types) + len(self.strings), len(layout))
        return header + self.types + self.strings + layout


def nested() -> Maker:
    """struct outer { int a; union { int u; struct { int v, w; }; }; struct inner in; const ... alias; bit fields }."""
    make = Maker()
    number = make.number()
    inner = make.record("inner", 8, [("x", number, 0), ("y", number, 32)])
    alias = make.add("inner_t", TYPEDEF, make.add("", CONST, make.add("", VOLATILE, inner)))
    tagged = make.add("rcu", TYPE_TAG, make.add("", RESTRICT, alias))
    pair = make.record("", 8, [("v", number, 0), ("w", number, 32)])
    either = make.record("", 8, [("u", number, 0), ("", pair, 0)], kind=UNION)
    make.record(
        "outer",
        64,
        [("a", number, 0), ("", either, 64), ("in", inner, 128), ("alias", alias, 192), ("tagged", tagged, 256)],
    )
    make.record(
        "bits", 8, [("whole", number, 0), ("low", number, 3 << 24 | 32), ("high", number, 5 << 24 | 35)], flag=1
    )
    return make


@pytest.mark.parametrize(
    ("path", "offset"),
    [
        ("outer", 0),
        ("outer.a", 0),
        ("outer.u", 8),
        ("outer.v", 8),
        ("outer.w", 12),
        ("outer.in", 16),
        ("outer.in.y", 20),
        ("outer.alias.y", 28),
        ("outer.tagged.y", 36),
        ("inner.y", 4),
        ("bits.whole", 0),
        ("bits.low", 4),
    ],
)
def test_offset(path: str, offset: int) -> None:
    assert Btf(nested().blob()).offset(path) == offset


def test_offsets() -> None:
    assert Btf(nested().blob()).offsets(["inner.x", "outer.w"]) == {"inner.x": 0, "outer.w": 12}


def test_every_kind_is_stepped_over() -> None:
    make = Maker()
    number = make.number()
    make.add("", PTR, number)
    make.add("", ARRAY, 0, trailer=struct.pack("<III", number, number, 4))
    make.add("enum", ENUM, 4, 2, bytes(16))
    make.add("fwd", FWD, 0)
    make.add("alias", TYPEDEF, number)
    proto = make.add("", FUNC_PROTO, number, 3, bytes(24))
    make.add("func", FUNC, proto)
    make.add("var", VAR, number, trailer=bytes(4))
    make.add(".data", DATASEC, 4, 1, bytes(12))
    make.add("float", FLOAT, 4)
    make.add("tag", DECL_TAG, number, trailer=bytes(4))
    make.add("enum64", ENUM64, 8, 2, bytes(24))
    make.record("last", 8, [("a", number, 0), ("b", number, 32)])
    assert Btf(make.blob()).offset("last.b") == 4


def test_a_name_that_ends_another_is_not_taken_for_it() -> None:
    make = Maker()
    number = make.number()
    make.record("long_sock", 8, [("b", number, 32)])
    make.record("sock", 8, [("b", number, 0)])
    assert Btf(make.blob()).offset("sock.b") == 0


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("missing.a", "no struct missing in the kernel's BTF"),
        ("int.a", "no struct int in the kernel's BTF"),
        ("outer.missing", "no field outer.missing in the kernel's BTF"),
        ("outer.a.x", "no field outer.a.x in the kernel's BTF"),
        ("bits.high", "bits.high is a bit field"),
    ],
)
def test_what_is_not_there(path: str, line: str) -> None:
    with pytest.raises(BtfError) as caught:
        Btf(nested().blob()).offset(path)
    assert str(caught.value) == line


def test_functions() -> None:
    """By kind and name: a struct has the same name, and the bytes that stand for it stand elsewhere before."""
    make = Maker()
    name = make.name("send")
    make.add("", INT, name, trailer=struct.pack("<I", name))
    make.types += struct.pack("<III", name, STRUCT << 24, 4)
    make.types += struct.pack("<III", name, FUNC << 24, 1)
    assert Btf(make.blob()).function("send") == 3
    assert Btf(make.blob()).function("sen") == Btf(make.blob()).function("int") == 0


def test_every_truncation_is_refused() -> None:
    blob = nested().blob()
    for length in range(len(blob)):
        with pytest.raises(BtfError):
            Btf(blob[:length])


def test_types_that_end_in_the_middle_of_one_are_refused() -> None:
    make = nested()
    whole = make.types
    make.types, make.strings = whole[:-4], b""
    with pytest.raises(BtfError):
        Btf(make.blob()).offset("bits.high")


@pytest.mark.parametrize("magic", [b"\xeb\x9f", b"\0\0", b"\x7fE"])
def test_another_magic_is_refused(magic: bytes) -> None:
    with pytest.raises(BtfError, match="not little-endian BTF"):
        Btf(magic + nested().blob()[2:])


def test_kinds_of_bpf_next_are_stepped_over() -> None:
    make = Maker()
    number = make.number()
    make.add("", LOC_PARAM, 8, 2, bytes(4 + 2 * 4))
    make.add("", LOC_PROTO, 0, 3, bytes(3 * 4))
    make.add("inline.text", LOCSEC, 0, 2, bytes(2 * 12))
    make.record("last", 8, [("a", number, 0), ("b", number, 32)])
    assert Btf(make.blob()).offset("last.b") == 4


def test_an_unknown_kind_is_stepped_over_as_the_blob_says() -> None:
    make = Maker()
    number = make.number()
    make.add("new", 100, 0, 70_000, bytes(8 + 4 * 70_000))
    make.record("last", 8, [("a", number, 0), ("b", number, 32)])
    layout = bytes(4 * 100) + struct.pack("<BBH", 8, 4, 0)
    assert Btf(make.blob(layout)).offset("last.b") == 4
    with pytest.raises(BtfError, match="truncated BTF layout"):
        Btf(make.blob(layout)[: -len(layout)] + layout[:-1])


def test_an_unknown_kind_hides_only_what_follows() -> None:
    make = Maker()
    number = make.number()
    make.record("first", 8, [("a", number, 0), ("b", number, 32), ("later", 4, 64)])
    make.add("new", 31, 4)
    make.record("last", 8, [("a", number, 0), ("b", number, 32)])
    btf = Btf(make.blob())
    assert btf.offset("first.b") == 4
    for path in ("last.b", "first.later.b"):
        with pytest.raises(BtfError, match="type 3, of the unknown kind 31, is not read"):
            btf.offset(path)


def test_a_type_that_is_not_there_is_refused() -> None:
    make = Maker()
    make.record("broken", 4, [("a", 99, 0)])
    with pytest.raises(BtfError, match="no BTF type 99"):
        Btf(make.blob()).offset("broken.a.b")


def test_types_in_a_circle_are_refused() -> None:
    make = Maker()
    make.add("self", TYPEDEF, 1)
    anonymous = make.record("", 4, [("", 2, 0)])
    make.record("round", 4, [("a", 1, 0), ("", anonymous, 0)])
    btf = Btf(make.blob())
    for path in ("round.a.b", "round.missing"):
        with pytest.raises(BtfError, match="in a circle"):
            btf.offset(path)


def test_a_field_of_void_is_refused() -> None:
    make = Maker()
    make.record("holder", 8, [("nothing", make.add("", CONST, 0), 0)])
    with pytest.raises(BtfError, match=r"no field holder\.nothing\.x"):
        Btf(make.blob()).offset("holder.nothing.x")


@given(st.integers(24, len(nested().blob()) - 1), st.integers(0, 255))
def test_a_flipped_byte_gives_an_offset_or_a_btf_error(at: int, value: int) -> None:
    blob = bytearray(nested().blob())
    blob[at] = value
    try:
        assert Btf(bytes(blob)).offset("outer.alias.y") >= 0
    except BtfError as e:
        assert str(e)


KERNEL_FIELDS = (
    "sock.sk_backlog.rmem_alloc",
    "sock.sk_wmem_queued",
    "tcp_sock.snd_una",
    "tcp_sock.write_seq",
    "tcp_sock.rcv_nxt",
    "tcp_sock.copied_seq",
    "sk_buff.len",
)


@pytest.mark.skipif(not VMLINUX.exists(), reason="the kernel has no BTF")
@pytest.mark.skipif(not shutil.which("bpftool"), reason="no bpftool")
def test_running_kernel_against_bpftool() -> None:
    """Compiles what ``bpftool btf dump format c`` prints, and asks the compiler."""
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    header = subprocess.run(
        ["bpftool", "btf", "dump", "file", str(VMLINUX), "format", "c"], capture_output=True, text=True
    )
    if header.returncode:
        pytest.skip(f"bpftool: {header.stderr.strip()}")
    probes = "\n".join(
        f"char probe_{i}[__builtin_offsetof(struct {path.partition('.')[0]}, {path.partition('.')[2]}) + 1];"
        for i, path in enumerate(KERNEL_FIELDS)
    )
    done = subprocess.run(
        ["cc", "-w", "-std=gnu11", "-S", "-x", "c", "-o", "-", "-"],
        input=f"{header.stdout}\n{probes}\n",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[:2000]
    sizes = dict(re.findall(r"\.size\s+probe_(\d+), (\d+)", done.stdout))
    expected = {path: int(sizes[str(i)]) - 1 for i, path in enumerate(KERNEL_FIELDS)}
    assert Btf.vmlinux().offsets(KERNEL_FIELDS) == expected
