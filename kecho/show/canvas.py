# SPDX-License-Identifier: MIT
"""Shared by all pictures: legible in print, for the colour-blind and in grey, with units on every axis."""

from __future__ import annotations

import itertools
import logging
import math
import os
import textwrap
from collections.abc import Callable, Sequence
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
    """A log axis of nanoseconds from `low` to `high`, with units."""
    _log_ticks(axes, which, low, high, _in_time_units)


def rate_ticks(axes: Axes, low: float, high: float) -> None:
    """A log y axis of a number a second from `low` to `high`: 500, 20k, 1M."""
    _log_ticks(axes, "y", low, high, thousands)


def _log_ticks(axes: Axes, which: str, low: float, high: float, text: Callable[[float], str]) -> None:
    """Ticks at 1, 2, 5; fewer if there are many decades, not each of twelve; and more if there is less than one."""
    few = 1e5 if which == "y" else 300  # labels side by side need more room than labels above each other
    steps: tuple[float, ...] = (1, 2, 5) if high / low < 300 else (1,) if high / low > few else (1, 3)
    if high / low < 3:
        steps = (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
    first, end = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = range(first, end, 1 + (end - first) // 12)
    ticks = [tick for decade in decades for step in steps if low <= (tick := step * 10.0**decade) <= high]
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(ticks, [text(tick) for tick in ticks])
    axis.set_ticks([], minor=True)


def _in_time_units(ns: float) -> str:
    for unit_ns, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns")):
        if ns >= unit_ns:
            return f"{ns / unit_ns:g} {unit}"
    return f"{ns:g} ns"


def thousands(number: float) -> str:
    """Short for the tick of an axis: 0.5, 500, 2k, 1.5M."""
    for unit, text in ((1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{text}"
    return f"{number:.3g}"


def per_eighth(share: float, low: float, high: float) -> float:
    """The height of a bar from `low` to `high` on a log axis, so that bars of different widths compare.

    That is the density of `share` over the axis, in an eighth of an octave, which is the mean width of a slot.
    """
    return share / (8 * math.log2(high / low))


def load_ticks(axes: Axes, loads: Sequence[float], text: Callable[[float], str]) -> None:
    """The ticks of a log x axis at these values. Labels that would touch the next one are left out."""
    reach = math.log(loads[-1] / loads[0]) or 1.0
    labelled = [loads[-1]]
    for load in reversed(loads[:-1]):
        width = 0.0125 * (len(text(load)) + len(text(labelled[-1]))) + 0.015  # half of both, as a share of the axis
        if math.log(labelled[-1] / load) > width * reach:
            labelled.append(load)
    axes.set_xticks(loads, [text(load) if load in labelled else "" for load in loads])


def footer(figure: Figure, lines: Sequence[str]) -> None:
    """Small lines below everything, wrapped at the figure's width."""
    fits = int(15 * figure.get_figwidth())  # characters of that size
    text = "\n".join(part for line in lines for part in textwrap.wrap(line, fits, subsequent_indent="      "))
    figure.supxlabel(text, x=0.01, ha="left", fontsize=8, color=GREY)


def save(figure: Figure, path: str | Path) -> None:
    try:
        figure.savefig(path, metadata={"Title": "kecho"} if str(path).endswith((".png", ".pdf", ".svg")) else None)
    except (OSError, ValueError) as e:  # ValueError: no such format
        raise KechoError(f"cannot write {path}: {one_line(e)}") from e
