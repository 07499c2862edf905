# SPDX-License-Identifier: MIT
"""Shared by all pictures: legible in print, for the colour-blind and in grey, with units on every axis."""

from __future__ import annotations

import itertools
import logging
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kecho.model.errors import KechoError, one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito, "Color Universal Design" (2008), without the yellow, which vanishes on paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (9, 2)))
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
GREY = "#555555"
_KEPT = ("backend", "backend_fallback", "interactive", "toolbar", "timezone")  # settings that are not style
_STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#d8d8d8",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "savefig.dpi": 160,
}


def style() -> AbstractContextManager[None]:
    """Within it, figures are made in kecho's way, whatever the user's settings are, and without a word about them.

    It is the first to import Matplotlib. A user's backend may need a notebook or a screen; figures here need none.
    """
    logging.getLogger("matplotlib").setLevel(logging.CRITICAL)
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        from matplotlib import rc_context, rcParamsDefault
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    return rc_context({**{key: value for key, value in rcParamsDefault.items() if key not in _KEPT}, **_STYLE})


def new_figure(width_in: float, height_in: float) -> Figure:
    """An empty figure, which belongs to no window."""
    from matplotlib.figure import Figure

    return Figure((width_in, height_in), layout="constrained")


def looks(count: int) -> list[tuple[str, Any, str]]:
    """Colour, dashes and mark for `count` lines. Lines differ in more than one of these as long as there are enough."""
    cycles = zip(*map(itertools.cycle, (COLOURS, DASHES, MARKERS)), strict=False)
    return list(itertools.islice(cycles, count))


def latency_ticks(axes: Axes, which: str, low: float, high: float) -> None:
    """A log axis of nanoseconds from `low` to `high`: ticks at 1, 2, 5 with units, fewer if there are many decades."""
    few = 1e5 if which == "y" else 300  # labels side by side need more room than labels above each other
    steps = (1, 2, 5) if high / low < 300 else (1,) if high / low > few else (1, 3)
    ticks = [step * 10.0**decade for decade in range(13) for step in steps if low <= step * 10.0**decade <= high]
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(ticks, [_tick(ns) for ns in ticks])
    axis.set_ticks([], minor=True)


def _tick(ns: float) -> str:
    for unit_ns, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns")):
        if ns >= unit_ns:
            return f"{ns / unit_ns:g} {unit}"
    return f"{ns:g} ns"


def footer(figure: Figure, text: str) -> None:
    figure.supxlabel(text, x=0.01, ha="left", fontsize=8, color=GREY)


def save(figure: Figure, path: str | Path) -> None:
    try:
        figure.savefig(path, metadata={"Title": "kecho"} if str(path).endswith((".png", ".pdf", ".svg")) else None)
    except (OSError, ValueError) as e:  # ValueError: no such format
        raise KechoError(f"cannot write {path}: {one_line(e)}") from e
