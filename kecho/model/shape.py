# SPDX-License-Identifier: MIT
"""Checks that an object out of a file is what it is taken for: files get damaged, and edited by hand. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# A shape is a type (int and float are numbers from 0 on), [shape] a list of such, {"key": shape} an object. A key with
# a question mark may be missing, or its value null; the key "*" stands for all others. Keys without a name are let be.
Shape = Any


def check(obj: object, shape: Shape, where: str = "the file") -> None:
    """Raises ValueError that names the place of what is not of this shape."""
    if isinstance(shape, dict):
        if not isinstance(obj, dict):
            raise ValueError(f"{where} is not an object")
        _check_keys(obj, shape, where)
    elif isinstance(shape, list):
        if not isinstance(obj, list):
            raise ValueError(f"{where} is not a list")
        for i, item in enumerate(obj):
            check(item, shape[0], f"{where}[{i}]")
    elif shape in (int, float):
        if not _is_number(obj, shape):
            raise ValueError(f"{where} is not a {'whole ' if shape is int else ''}number from 0 on")
    elif not isinstance(obj, shape):
        raise ValueError(f"{where} is not {'true or false' if shape is bool else 'a text'}")


def _check_keys(obj: Mapping[str, object], shape: Mapping[str, Shape], where: str) -> None:
    prefix = "" if where == "the file" else f"{where}."
    for key, inner in shape.items():
        name = key.removesuffix("?")
        if key == "*":
            for other in obj.keys() - shape.keys():
                check(obj[other], inner, f"{prefix}{other}")
        elif name != key and obj.get(name) is None:
            continue
        elif name not in obj:
            raise ValueError(f"{prefix}{name} is missing")
        else:
            check(obj[name], inner, f"{prefix}{name}")


def _is_number(obj: object, kind: type) -> bool:
    if isinstance(obj, bool) or not isinstance(obj, int | float if kind is float else int):
        return False
    return math.isfinite(obj) and obj >= 0
