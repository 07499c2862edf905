# SPDX-License-Identifier: MIT
"""Draws snapshots and bench results: legible in print, for the colour-blind and in grey, units on every axis."""

from __future__ import annotations

import itertools
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import pandas as pd
from matplotlib.ticker import NullLocator

from kecho import __version__, histogram
from kecho.errors import KechoError, one_line
from kecho.snapshot import PathStats, Snapshot
from kecho.units import duration, plural, ratio

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from kecho.bench.result import Result, Target

matplotlib.use("Agg")

# Okabe and Ito, "Color Universal Design" (2008), without the yellow, which vanishes on paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (9, 2)))
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
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
# The curve's ticks, by the share of the samples that is slower.
_NINES = ((1.0, "0"), (0.5, "50"), (0.1, "90"), (0.01, "99"), (1e-3, "99.9"), (1e-4, "99.99"), (1e-5, "99.999"))


def plot_stats(snapshots: Snapshot | Sequence[Snapshot], path: str | Path) -> None:
    """The latency histogram of every path that has one, a panel each, to a picture file. Raises KechoError."""
    several = [snapshots] if isinstance(snapshots, Snapshot) else list(snapshots)
    panels = [
        (snapshot, name, stats)
        for snapshot in several
        for name, stats in snapshot.paths.items()
        if stats.latency is not None and stats.latency.count
    ]
    if not panels:
        raise KechoError("nothing to draw: no path has a latency sample yet")
    import matplotlib.pyplot as plt

    used = [histogram.bounds(i) for _, _, stats in panels if stats.latency for i in stats.latency.merged()]
    span = (max(1, min(low for low, _ in used)) / 2, max(high for _, high in used) * 1.6)
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(
            len(panels), 1, figsize=(8.5, 1.2 + 2.6 * len(panels)), squeeze=False, layout="constrained"
        )
        for i, (snapshot, name, stats) in enumerate(panels):
            title = f"{snapshot.name}: {snapshot.mode}, path {name}"
            _draw_histogram(axes[i][0], title, stats, COLOURS[i % len(COLOURS)], span)
        axes[-1][0].set_xlabel("service latency, measured in the kernel (log scale)")
        kernels = dict.fromkeys(snapshot.kernel for snapshot, _, _ in panels)
        now = datetime.now(UTC)
        origin = (platform.node(), f"kernel {', '.join(kernels)}", f"{now:%Y-%m-%d %H:%M} UTC", f"kecho {__version__}")
        _footer(figure, "  ·  ".join(origin))
        _save(figure, path)


def _draw_histogram(axes: Axes, title: str, stats: PathStats, colour: str, span: tuple[float, float]) -> None:
    """Bars as wide as the slots. Counts are on a log axis too, or nobody would see the tail."""
    latency = stats.latency
    assert latency is not None
    counts = latency.merged()
    frame = pd.DataFrame([(*histogram.bounds(i), n) for i, n in counts.items()], columns=["low", "high", "count"])
    frame["low"] = frame["low"].clip(lower=0.5)  # a sample of 0 ns has no place on a log axis
    axes.bar(
        frame["low"],
        frame["count"],
        width=frame["high"] - frame["low"],
        align="edge",
        color=colour,
        edgecolor="white",
        linewidth=0.4,
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    _latency_ticks(axes, "x", *span)
    top = max(frame["count"].max(), 2)
    axes.set_ylim(0.7, top**1.22)  # room for the labels above the bars
    axes.set_yticks([10.0**i for i in range(20) if 10.0**i <= top], minor=False)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_ylabel("echoes (log scale)")
    axes.grid(visible=False, axis="x")
    axes.set_title(f"{title}  ({plural(latency.count, 'echo')})")
    for key, dashes, side in (("p50", DASHES[1], "right"), ("p99", DASHES[2], "left")):
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


def plot_bench(result: Result, path: str | Path) -> None:
    """Percentile curves and p50 with p99 of every target of `result`, to a picture file. Raises KechoError."""
    targets = [target for target in result.targets() if target.latency.count]
    if not targets:
        raise KechoError("nothing to draw: the result has no sample")
    import matplotlib.pyplot as plt

    with plt.rc_context(_STYLE):
        height = max(4.6, 2.4 + 0.75 * len(targets))
        figure, (left, right) = plt.subplots(1, 2, figsize=(12, height), width_ratios=(1.2, 1), layout="constrained")
        cycles = zip(*map(itertools.cycle, (COLOURS, DASHES, MARKERS)), strict=False)
        styles = list(itertools.islice(cycles, len(targets)))
        _draw_curves(left, targets, styles)
        _draw_dots(right, targets, styles, result)
        figure.suptitle("TCP echo, round trip seen by the client", x=0.01, ha="left", fontweight="bold", fontsize=13)
        _footer(figure, _origin(result))
        _save(figure, path)


def _draw_curves(axes: Axes, targets: Sequence[Target], styles: Sequence[tuple[str, Any, str]]) -> None:
    """Latency up, the share of faster samples to the right, stretched towards the slowest as 1 ÷ (1 − share)."""
    most = max(target.latency.count for target in targets)
    end = max(10.0, 2.0 * most)
    low = min(target.latency.min for target in targets)
    high = max(target.latency.max for target in targets)
    for target, (colour, dashes, _) in zip(targets, styles, strict=True):
        frame = pd.DataFrame(target.latency.buckets, columns=["low", "high", "count"])
        before = frame["count"].cumsum().shift(fill_value=0)
        curve = pd.DataFrame(
            {
                "nines": 1 / (1 - before / target.latency.count),
                "latency": (frame["high"] - 1).clip(upper=target.latency.max),
            }
        )
        curve.loc[len(curve)] = [end, target.latency.max]
        axes.plot(
            curve["nines"],
            curve["latency"],
            color=colour,
            linestyle=dashes,
            linewidth=2,
            drawstyle="steps-post",
            label=target.label,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    shown = [(share, text) for share, text in _NINES if share * most >= 1]
    axes.set_xlim(1, end)
    axes.set_xticks([1 / share for share, _ in shown], [text for _, text in shown])
    axes.minorticks_off()
    # The legend stands above the curves, in room made for it: about a twelfth of the axis for each line.
    room = (high / low) ** (len(targets) / (12 - len(targets))) if len(targets) < 8 else 1
    _latency_ticks(axes, "y", low / 1.25, high * 1.25 * room)
    axes.set_xlabel("percentile")
    axes.set_ylabel("latency (log scale)")
    axes.set_title("Latency by percentile")
    axes.legend(loc="upper left", handlelength=3.6)


def _draw_dots(axes: Axes, targets: Sequence[Target], styles: Sequence[tuple[str, Any, str]], result: Result) -> None:
    """A row a target: p50 as a filled mark, p99 as a hollow one, and in a column of their own the ratios."""
    low = min(target.latency.percentile(0.5) for target in targets)
    high = max(target.latency.percentile(0.99) for target in targets)
    for row, (target, (colour, _, marker)) in enumerate(zip(targets, styles, strict=True)):
        p50, p99 = (target.latency.percentile(q) for q in (0.5, 0.99))
        axes.plot([p50, p99], [row, row], color=colour, linewidth=2.5, alpha=0.5, zorder=2)
        axes.plot(p99, row, marker, color=colour, markerfacecolor="white", markersize=9, markeredgewidth=1.7, zorder=3)
        axes.plot(p50, row, marker, color=colour, markersize=10, zorder=4)
        for ns, text, up, size in ((p50, duration(p50), 1, 11), (p99, f"p99 {duration(p99)}", -1, 9)):
            axes.annotate(
                text,
                (ns, row),
                xytext=(0, 9 * up),
                textcoords="offset points",
                ha="center",
                va="bottom" if up > 0 else "top",
                fontsize=size,
                fontweight="bold" if up > 0 else "normal",
                color="#222222" if up > 0 else "#555555",
            )
        is_base = target.name == result.baseline
        axes.annotate(
            "baseline" if is_base else ratio(result.ratio(target)),
            (1.02, row),
            xycoords=axes.get_yaxis_transform(),
            va="center",
            fontsize=10 if is_base else 15,
            fontweight="normal" if is_base else "bold",
            color="#555555" if is_base else "#111111",
        )
    axes.annotate(
        "baseline's p50 ÷ p50",
        (1.02, 1.0),
        xycoords="axes fraction",
        xytext=(0, 6),
        textcoords="offset points",
        fontsize=9,
        color="#555555",
    )
    axes.set_xscale("log")
    _latency_ticks(axes, "x", low / 2, high * 2)
    axes.set_yticks(range(len(targets)), [target.label.replace(" (", "\n(", 1) for target in targets])
    axes.set_ylim(len(targets) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("latency (log scale)")
    axes.set_title("Median (filled) and p99 (hollow)")


def _latency_ticks(axes: Axes, which: str, low: float, high: float) -> None:
    """A log axis of nanoseconds from `low` to `high`: ticks at 1, 2, 5 with units, fewer if there are many decades."""
    few = 1e5 if which == "y" else 300  # numbers side by side need more room than one above the other
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


def _origin(result: Result) -> str:
    host = result.host
    return (
        f"{'  ·  '.join(result.headline()[:-3])}\n"
        f"{host.hostname}, {host.cpu}, {host.cpus} CPUs  ·  kernel {host.kernel}  ·  "
        f"{result.date.replace('T', ' ').replace('+00:00', ' UTC')}  ·  kecho {result.version}"
    )


def _footer(figure: Figure, text: str) -> None:
    figure.supxlabel(text, x=0.01, ha="left", fontsize=8, color="#555555")


def _save(figure: Figure, path: str | Path) -> None:
    import matplotlib.pyplot as plt

    try:
        figure.savefig(path, metadata={"Title": "kecho"} if str(path).endswith((".png", ".pdf", ".svg")) else None)
    except (OSError, ValueError) as e:  # ValueError: no such format
        raise KechoError(f"cannot write {path}: {one_line(e)}") from e
    finally:
        plt.close(figure)
