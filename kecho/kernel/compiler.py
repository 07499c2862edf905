# SPDX-License-Identifier: MIT
"""Compiles BPF sources with BCC, in a process that ends with it, and keeps the objects. The only importer of bcc."""

from __future__ import annotations

import base64
import ctypes
import logging
import os
import re
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kecho.kernel import cache, features, process, syscall
from kecho.kernel.btf import Btf
from kecho.kernel.features import Headers
from kecho.kernel.syscall import Map
from kecho.model.errors import KechoError

log = logging.getLogger("kecho")

_INCLUDE = re.compile(r'#include "([^"]+)"')
# A setting of bpf/kecho.h is compiled as this number plus its own.
_MARKER, _MOST_SETTINGS = 0x6B6563686F000000, 256
# A load of 64 bits takes two instructions; the source register of the first says what of.
_LOAD_64, _NUMBER, _MAP_FD = 0x18, 0, 1
_INSTRUCTION = struct.Struct("=BBhi")
# The libraries that make an object: others of them may make another one.
_COMPILERS = re.compile(r"\S*/lib(?:bcc|clang|LLVM)\S*\.so\S*")


@dataclass(frozen=True)
class Function:
    """A program before it is loaded. `uses` are the loads, by number of the instruction, of a map or a setting."""

    instructions: bytes
    uses: dict[int, str]
    btf_type: int

    def bound(self, values: Mapping[str, int], maps: Mapping[str, int]) -> bytes:
        """The instructions with settings and descriptors of maps put in."""
        code = bytearray(self.instructions)
        for number, name in self.uses.items():
            source, value = (_MAP_FD, maps[name]) if name in maps else (_NUMBER, values[name])
            at = number * _INSTRUCTION.size
            code[at + 1] = code[at + 1] & 0xF | source << 4
            struct.pack_into("=I", code, at + 4, value & 0xFFFFFFFF)
            struct.pack_into("=I", code, at + 12, value >> 32)
        return bytes(code)


@dataclass(frozen=True)
class Object:
    """A compiled source: its programs and maps, which the loader makes. `btf` describes both, empty if unknown."""

    licence: str
    btf: bytes
    maps: tuple[Map, ...]
    functions: dict[str, Function]

    def to_json(self) -> dict[str, Any]:
        return {
            "licence": self.licence,
            "btf": base64.b64encode(self.btf).decode(),
            "maps": [asdict(one) for one in self.maps],
            "functions": {
                name: [base64.b64encode(one.instructions).decode(), list(one.uses.items()), one.btf_type]
                for name, one in self.functions.items()
            },
        }

    @classmethod
    def from_json(cls, json: Mapping[str, Any]) -> Object:
        return cls(
            json["licence"],
            base64.b64decode(json["btf"]),
            tuple(Map(**one) for one in json["maps"]),
            {
                name: Function(base64.b64decode(code), dict(uses), btf_type)
                for name, (code, uses, btf_type) in json["functions"].items()
            },
        )


def sources() -> Path:
    """The folder of the BPF sources: shipped inside the package, or `bpf/` of the checkout."""
    shipped = Path(__file__).parents[1] / "_bpf"
    return shipped if shipped.is_dir() else Path(__file__).parents[2] / "bpf"


def source_text(path: Path) -> str:
    """A source with its `#include "…"` lines replaced by the files: BCC rewrites only the main file."""
    included: set[Path] = set()

    def expand(file: Path) -> str:
        included.add(file)
        lines = [f'# 1 "{file}"']
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            match = _INCLUDE.fullmatch(line)
            if not match:
                lines.append(line)
            elif (other := file.parent / match[1]) not in included:
                lines += [expand(other), f'# {number + 1} "{file}"']
        return "\n".join(lines)

    return expand(path) + "\n"


def compiled(source: str, defines: Mapping[str, int | str], settings: Collection[str]) -> Object:
    """The object of a file of `sources()`, from the cache or by compiling it.

    `settings` are names for which the loader puts in values, so that one object serves all services. Raises Unavailable
    without bcc or headers, KechoError if it does not compile.
    """
    features.probe_bcc()
    headers = features.headers()
    path = sources() / source
    text = source_text(path)
    flags = [f"-D{name}={value}" for name, value in sorted(defines.items())]
    flags += [f"-D{name}=SETTING({number:02x})" for number, name in enumerate(settings)]
    flags += headers.cflags
    surroundings = {name: value for name, value in os.environ.items() if name.startswith("BCC_")}
    tree = [str(headers.source), _stamp(headers.configuration), sorted(surroundings.items())]
    key = cache.key("object", Path(__file__).read_text(), text, flags, tree)
    kept = cache.load(key)
    if kept and kept["compilers"] == {name: _stamp(Path(name)) for name in kept["compilers"]}:
        return Object.from_json(kept["object"])
    made, said = process.in_child("kecho-compiler", lambda: _compile(text, flags, headers, settings))
    if made is None:
        log.warning("cannot compile %s\n%s", path, said)
        lines = said.splitlines() or ["the compiler was killed"]
        reason = next((line for line in lines if "error:" in line), lines[-1])
        raise KechoError(f"cannot compile {path}: {' '.join(reason.split())}")
    if made["compilers"]:
        cache.store(key, made)
    return Object.from_json(made["object"])


def _stamp(path: Path) -> list[int]:
    """What changes when a file is replaced; empty if there is none."""
    try:
        found = path.stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]


# ---- in the process that compiles ----


def _compile(text: str, flags: list[str], headers: Headers, settings: Collection[str]) -> dict[str, Any]:
    """The object as JSON, and the libraries that made it. BCC makes the maps too, and the kernel says what they are."""
    if headers.source:
        os.environ["BCC_KERNEL_SOURCE"] = str(headers.source)
    import bcc  # brings LLVM with it

    lib: Any = bcc.lib
    given = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
    module = ctypes.c_void_p(lib.bpf_module_create_c_from_string(text.encode(), 0, given, len(given), True, None))
    if not module:
        raise KechoError("BCC makes no object of it")
    names, maps, btf_id = {}, [], 0
    for index in range(lib.bpf_num_tables(module)):
        fd = lib.bpf_table_fd_id(module, ctypes.c_size_t(index))
        found, map_btf_id = syscall.map_info(fd)
        names[fd] = found.name
        maps.append(found)
        btf_id = btf_id or map_btf_id
    compilers = set(_COMPILERS.findall(Path("/proc/self/maps").read_text()))
    try:
        blob = syscall.btf_blob(btf_id) if btf_id else b""
    except PermissionError:  # without CAP_SYS_ADMIN: it will do, but not for others
        blob, compilers = b"", set()
    types = Btf(blob) if blob else None
    functions = {}
    for index in range(lib.bpf_num_functions(module)):
        name = lib.bpf_function_name(module, index)
        code = ctypes.string_at(lib.bpf_function_start(module, name), lib.bpf_function_size(module, name))
        functions[name.decode()] = Function(
            code, dict(_uses(code, names, list(settings))), types.function(name.decode()) if types else 0
        )
    missing = set(settings).difference(*(one.uses.values() for one in functions.values()))
    if missing:
        raise KechoError(f"no instruction uses {', '.join(sorted(missing))}")
    licence = lib.bpf_module_license(module).decode()
    return {
        "object": Object(licence, blob, tuple(maps), functions).to_json(),
        "compilers": {name: _stamp(Path(name)) for name in sorted(compilers)},
    }


def _uses(code: bytes, maps: Mapping[int, str], settings: list[str]) -> Iterator[tuple[int, str]]:
    """The loads of maps, by descriptor, and of settings, by marker."""
    instructions = list(_INSTRUCTION.iter_unpack(code))
    for number, (opcode, registers, _, low) in enumerate(instructions):
        if opcode != _LOAD_64:
            continue
        source, value = registers >> 4, low & 0xFFFFFFFF | instructions[number + 1][3] << 32
        if source == _MAP_FD:
            yield number, maps[low]
        elif source != _NUMBER:
            raise KechoError(f"instruction {number} is a load of an unknown kind, {source}")
        elif 0 <= value - _MARKER < _MOST_SETTINGS:
            yield number, settings[value - _MARKER]
