# SPDX-License-Identifier: MIT
"""Draws the latency histogram of every path of services, and the counts of each CPU."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from kecho import __version__
from kecho.model import histogram
from kecho.model.errors import KechoError
from kecho.model.histogram import Histogram
from kecho.model.snapshot import Snapshot
from kecho.model.units import duration, plural
from kecho.show import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HEIGHT_IN = 2.4  # of a histogram
_CPU_HEIGHT_IN = 0.28  # of a CPU's row in the heat map, as long as there are few
_MOST_HEIGHT_IN = 4.0
_LABEL = 0.16  # of the axis, that the label of a percentile takes


def plot_stats(snapshots: Snapshot | Sequence[Snapshot], path: str | Path) -> None:
    """Draws, for every path with samples, its histogram and a heat map by CPU to a picture file. Raises KechoError."""
    with canvas.style():
        canvas.save(_figure([snapshots] if isinstance(snapshots, Snapshot) else list(snapshots)), path)


def _figure(several: Sequence[Snapshot]) -> Figure:
    panels = [
        (f"{snapshot.name}: {snapshot.mode}, path {name}", stats.latency)
        for snapshot in several
        for name, stats in snapshot.paths.items()
        if stats.latency is not None and stats.latency.count
    ]
    if not panels:
        raise KechoError("nothing to draw: no path has a latency sample yet")
    span = _span([latency for _, latency in panels])
    heights = [height for _, latency in panels for height in (_HEIGHT_IN, _map_height(latency))]
    figure = canvas.new_figure(8.5, 1.2 + sum(heights) + 0.35 * len(heights))
    axes = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)
    for i, (title, latency) in enumerate(panels):
        top, bottom = axes[2 * i][0], axes[2 * i + 1][0]
        _draw_histogram(top, title, latency, canvas.COLOURS[i % len(canvas.COLOURS)])
        _draw_cpus(bottom, latency)
        for each in (top, bottom):
            canvas.latency_ticks(each, "x", *span)
        top.tick_params(labelbottom=False)
    axes[-1][0].set_xlabel("service latency, measured in the kernel (log scale)")
    kernels = dict.fromkeys(snapshot.kernel for snapshot in several)
    now = datetime.now(UTC)
    origin = (platform.node(), f"kernel {', '.join(kernels)}", f"{now:%Y-%m-%d %H:%M} UTC", f"kecho {__version__}")
    canvas.footer(figure, ["  ·  ".join(origin)])
    return figure


def _span(latencies: Sequence[Histogram]) -> tuple[float, float]:
    """The range of all panels: that of the samples, with room left of p50 and right of p99, where their labels are."""
    used = [histogram.bounds(i) for latency in latencies for i in latency.merged()]
    low, high = max(1, min(low for low, _ in used)) / 2, max(high for _, high in used) * 1.6
    p50, p99 = ([latency.percentile(q) or low for latency in latencies] for q in (0.5, 0.99))
    whole = max(math.log(high / low), math.log(max(p99) / min(p50)) / (1 - 2 * _LABEL))
    room = math.exp(_LABEL * whole)
    return min(low, min(p50) / room), max(high, max(p99) * room)


def _map_height(latency: Histogram) -> float:
    return min(_MOST_HEIGHT_IN, 0.25 + _CPU_HEIGHT_IN * len(latency.cpus))


def _draw_histogram(axes: Axes, title: str, latency: Histogram, colour: str) -> None:
    """Draws bars as wide as the slots, and as high as the density, on a log axis so that the tail can be seen."""
    from matplotlib.ticker import NullLocator

    counts = latency.merged()
    frame = pd.DataFrame([(*histogram.bounds(i), n) for i, n in counts.items()], columns=["low", "high", "count"])
    frame["low"] = frame["low"].clip(lower=0.5)  # a log axis has no 0
    frame["height"] = [canvas.per_eighth(*row) for row in zip(frame["count"], frame["low"], frame["high"], strict=True)]
    axes.bar(
        frame["low"],
        frame["height"],
        width=frame["high"] - frame["low"],
        align="edge",
        color=colour,
        edgecolor="white",
        linewidth=0.4,
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    top = max(frame["height"].max(), 2)
    axes.set_ylim(min(0.7, frame["height"].min() / 1.5), top**1.22)  # room for the labels above the bars
    axes.set_yticks([10.0**i for i in range(20) if 10.0**i <= 1.3 * top], minor=False)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_ylabel("echoes per ⅛ octave\n(log scale)")
    axes.grid(visible=False, axis="x")
    axes.set_title(f"{title}  ({plural(latency.count, 'echo')})")
    for key, dashes, side in (("p50", canvas.DASHES[1], "right"), ("p99", canvas.DASHES[2], "left")):
        value = latency.percentile(histogram.PERCENTILES[key])
        assert value is not None
        axes.axvline(value, color="#222222", linestyle=dashes, linewidth=1.2)
        axes.annotate(
            f"{key} {duration(value)}",
            (value, 0.99),
            xycoords=axes.get_xaxis_transform(),
            xytext=(-5 if side == "right" else 5, 0),
            textcoords="offset points",
            va="top",
            ha=side,
            fontsize=9,
        )


def _draw_cpus(axes: Axes, latency: Histogram) -> None:
    """Draws a row for each CPU and a column for each slot; darker is more, white is nothing."""
    from matplotlib.colors import LogNorm

    cpus = sorted(latency.cpus)
    slots = list(latency.merged())
    slots = list(range(slots[0], slots[-1] + 1))
    counts = np.array([[latency.cpus[cpu].get(i, 0) for i in slots] for cpu in cpus], dtype=float)
    edges = [max(0.5, histogram.bounds(i)[0]) for i in slots] + [histogram.bounds(slots[-1])[1]]
    mesh = axes.pcolormesh(
        edges,
        np.arange(len(cpus) + 1),
        np.ma.masked_equal(counts, 0),
        norm=LogNorm(1, max(2, counts.max())),
        cmap="cividis_r",  # legible for the colour-blind, and in grey
    )
    axes.set_xscale("log")
    axes.set_ylim(len(cpus), 0)
    shown = range(0, len(cpus), -(-len(cpus) // 16))
    axes.set_yticks([row + 0.5 for row in shown], [f"CPU {cpus[row]}" for row in shown])
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False)
    bar = axes.figure.colorbar(mesh, ax=axes, pad=0.01, aspect=8, label="echoes", format=lambda n, _: f"{n:,.0f}")
    bar.ax.minorticks_off()
