# SPDX-License-Identifier: MIT
"""Records and their JSON: copies the fields that have the same name and form in both. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any


def plain(record: object, names: Iterable[str]) -> dict[str, Any]:
    """These fields of a record, for its JSON."""
    return {name: getattr(record, name) for name in names}


def picked(obj: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """These fields of a JSON object, for the record. Raises KeyError for one that is missing."""
    return {name: obj[name] for name in names}


def known(record: type[Any], obj: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a JSON object that this dataclass has; a later version may have written others."""
    return {field.name: obj[field.name] for field in fields(record) if field.name in obj}
