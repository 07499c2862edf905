# SPDX-License-Identifier: MIT
"""Numbers as people read them: durations with the unit that suits them, ratios, counts. Pure."""

from __future__ import annotations

_PLAIN = {"µ": "u", "×": "x", "–": "-", "…": "..", "÷": "/", "≥": ">=", "≤": "<=", "→": "->", "█": "#"}
_UNITS = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"))


def duration(ns: float | None, gap: str = " ") -> str:
    """`ns` with three digits and a unit: ``896 ns``, ``1.73 µs``, ``12.3 ms``; ``-`` for None."""
    if ns is None:
        return "-"
    for unit_ns, unit in _UNITS:
        # 999.6 µs reads "1.00 ms": round to three digits before choosing the unit.
        if ns >= 0.9995 * unit_ns:
            return f"{three_digits(ns / unit_ns)}{gap}{unit}"
    return f"{ns:.0f}{gap}ns"


def three_digits(value: float) -> str:
    """`value` with three significant digits and no exponent: 1.73, 12.3, 896, 12345."""
    for below, digits in ((9.995, 2), (99.95, 1)):
        if value < below:
            return f"{value:.{digits}f}"
    return f"{value:.0f}"


def ratio(value: float | None) -> str:
    """``8.4×``, with one more digit below 1 (``0.93×``); ``-`` for None."""
    if value is None:
        return "-"
    if value < 0.995:
        return f"{value:.2f}×"
    return f"{value:.1f}×" if value < 99.95 else f"{value:.0f}×"


def uptime(seconds: float) -> str:
    """``12.3 s``, ``4 min 5 s``, ``3 h 25 min``, ``2 d 3 h``."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 59.95 else "1 min 0 s"
    whole = int(seconds)
    for unit_s, unit, below_s, below in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit_s:
            return f"{whole // unit_s} {unit} {whole % unit_s // below_s} {below}"
    raise AssertionError


def plural(n: int, noun: str) -> str:
    """``1 echo``, ``10,007 echoes``."""
    ending = "" if n == 1 else "es" if noun.endswith("o") else "s"
    return f"{n:,} {noun}{ending}"


def ascii_only(text: str) -> str:
    """`text` for a terminal that is not UTF-8."""
    for char, plain in _PLAIN.items():
        text = text.replace(char, plain)
    return text.encode("ascii", "replace").decode()
