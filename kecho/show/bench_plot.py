# SPDX-License-Identifier: MIT
"""Draws results of bench: percentiles, latency inside and outside, and for a sweep latency against load."""

from __future__ import annotations

import functools
import math
import operator
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from kecho.bench import table
from kecho.bench.interval import CONFIDENCE, Interval
from kecho.bench.result import Result
from kecho.bench.summary import Summary, median
from kecho.model import histogram
from kecho.model.errors import KechoError
from kecho.model.histogram import Histogram
from kecho.model.units import duration, plural, ratio, three_digits
from kecho.show import canvas
from kecho.show.bench_text import headline, workload

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The ticks of the curve, by the share of slower samples.
_NINES = ((1.0, "0"), (0.5, "50"), (0.1, "90"), (0.01, "99"), (1e-3, "99.9"), (1e-4, "99.99"), (1e-5, "99.999"))


# The most lines of a legend within the axes; a longer one is below them.
_MOST_LINES = 6


@dataclass(frozen=True)
class _Series:
    """A line of a picture: a target of a result."""

    label: str
    result: Result
    target: Summary
    look: tuple[str, Any, str]


def plot_bench(found: Mapping[str, Result], path: str | Path) -> None:
    """Draws results, given by the name of their file, to a picture file. Raises KechoError.

    One load gives percentile curves, p50 with p99, and histograms inside and outside. A sweep gives latency against
    load. Several results are drawn together; ratios are taken within each result.
    """
    if not any(target.requests for result in found.values() for target in result.targets):
        raise KechoError("nothing to draw: the result has no sample")
    with canvas.style():
        canvas.save(_figure(found), path)


def _figure(found: Mapping[str, Result]) -> Figure:
    loads = {load for result in found.values() for load in result.loads()}
    figure = _sweep_figure(found) if len(loads) > 1 else _percentile_figure(found)
    figure.suptitle("TCP echo, round trip seen by the client", x=0.01, ha="left", fontweight="bold", fontsize=13)
    canvas.footer(figure, list(dict.fromkeys(line for r in found.values() for line in _origin(r))))
    return figure


def _suffix(file: str, found: Mapping[str, Result]) -> str:
    """What distinguishes the lines of several results: the file's name or path, and the workload if they differ."""
    if len(found) == 1:
        return ""
    stems = [Path(other).stem for other in found]
    parts = [Path(file).stem if len(set(stems)) == len(stems) else file]
    if len({workload(result) for result in found.values() if result.runs}) > 1:
        parts.append(workload(found[file]))
    return "".join(f", {part}" for part in parts)


def _percentile_figure(found: Mapping[str, Result]) -> Figure:
    named = [
        (target.label + _suffix(file, found), result, target)
        for file, result in found.items()
        for target in result.targets
        if target.requests
    ]
    series = [_Series(*one, look) for one, look in zip(named, canvas.looks(len(named)), strict=True)]
    observed = [one for one in series if _inside(one.target)]
    rows = -(-len(observed) // 2)
    top = max(4.2, 2.0 + 0.75 * len(series))
    figure = canvas.new_figure(12, top + 0.6 + 2.6 * rows)
    grid = figure.add_gridspec(1 + rows, 2, width_ratios=(1.2, 1), height_ratios=(top, *[2.6] * rows))
    _draw_curves(figure.add_subplot(grid[0, 0]), series)
    _draw_dots(figure.add_subplot(grid[0, 1]), series)
    span = _span(observed)
    for i, one in enumerate(observed):
        _draw_inside(figure.add_subplot(grid[1 + i // 2, i % 2]), one, span)
    return figure


def _inside(target: Summary) -> Histogram | None:
    """The histogram that the service measured, over all paths and rounds."""
    measured = [run.inside.latency for run in target.runs if run.inside and run.inside.latency]
    return functools.reduce(operator.add, measured) if measured else None


def _known(target: Summary, name: str) -> float:
    """A percentile; NaN, which is not drawn, for one that was never sent."""
    value = target.percentiles[name]
    return math.nan if value is None else value


def _curve(target: Summary) -> pd.DataFrame:
    """The upper end of each bucket, and the share of samples that are not below it. Every round has the same weight.

    Requests that were never sent, and rounds without a request, count as the slowest: the curve ends before them.
    """
    latencies = [run.latency for run in target.runs]
    rows = [(high, n / (one.count + one.unsent)) for one in latencies for _, high, n in one.buckets]
    shares = pd.DataFrame(rows, columns=["high", "share"]).groupby("high")["share"].sum() / len(target.runs)
    before = shares.cumsum().shift(fill_value=0).clip(upper=1 - 1e-12)
    return pd.DataFrame({"nines": 1 / (1 - before.to_numpy()), "latency": (shares.index - 1).to_numpy()})


def _draw_curves(axes: Axes, series: Sequence[_Series]) -> None:
    """Draws latency over the share of faster samples, on a scale of 1 ÷ (1 − share) that stretches the tail."""
    targets = [one.target for one in series]
    most = max(target.requests for target in targets)
    end = max(10.0, 2.0 * most)
    low = max(1, min(target.min for target in targets))
    high = max(low, *(target.max for target in targets))
    for one in series:
        target, (colour, dashes, _) = one.target, one.look
        curve = _curve(target)
        curve["latency"] = curve["latency"].clip(upper=target.max)
        if not any(run.latency.unsent or not run.latency.count for run in target.runs):
            curve.loc[len(curve)] = [end, target.max]
        axes.plot(
            curve["nines"],
            curve["latency"],
            color=colour,
            linestyle=dashes,
            linewidth=2,
            drawstyle="steps-post",
            label=one.label,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    shown = [(share, text) for share, text in _NINES if share * most >= 1]
    axes.set_xlim(1, end)
    axes.set_xticks([1 / share for share, _ in shown], [text for _, text in shown])
    axes.minorticks_off()
    # The legend needs room above the curves: about a sixteenth of the axis for each line.
    columns = 2 if max(len(one.label) for one in series) <= 18 and len(series) > 2 else 1
    lines = -(-len(series) // columns)
    inside = lines <= _MOST_LINES
    room = (high / low) ** (lines / (16 - lines)) if inside else 1
    canvas.latency_ticks(axes, "y", low / 1.25, high * 1.25 * room)
    axes.set_xlabel("percentile")
    axes.set_ylabel("latency (log scale)")
    axes.set_title("Latency by percentile")
    if inside:
        axes.legend(loc="upper left", handlelength=3.6, ncols=columns)
    else:
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.07), handlelength=3.6, ncols=2)


def _draw_dots(axes: Axes, series: Sequence[_Series]) -> None:
    """Draws a row for each target: p50 as a filled mark, p99 as a hollow one, and the ratios in a column."""
    known = [ns for one in series for name in ("p50", "p99") if (ns := one.target.percentiles[name]) is not None]
    low = max(1.0, min(known, default=1000.0))
    high = max([low, *known])
    for row, one in enumerate(series):
        target, (colour, _, marker) = one.target, one.look
        p50, p99 = (_known(target, name) for name in ("p50", "p99"))
        axes.plot([p50, p99], [row, row], color=colour, linewidth=2.5, alpha=0.5, zorder=2)
        axes.plot(p99, row, marker, color=colour, markerfacecolor="white", markersize=9, markeredgewidth=1.7, zorder=3)
        axes.plot(p50, row, marker, color=colour, markersize=10, zorder=4)
        for ns, name, up, size in ((p50, "", 1, 11), (p99, "p99 ", -1, 9)):
            if math.isnan(ns):
                continue
            axes.annotate(
                f"{name}{duration(ns)}",
                (ns, row),
                xytext=(0, 9 * up),
                textcoords="offset points",
                ha="center",
                va="bottom" if up > 0 else "top",
                fontsize=size,
                fontweight="bold" if up > 0 else "normal",
                color="#222222" if up > 0 else canvas.GREY,
            )
        _write_ratio(axes, row, one)
    axes.annotate(
        "p50 shorter by"
        + (f", {CONFIDENCE:.0%} interval;" if any(map(_interval, series)) else ";")
        + "\nmore requests/s by",
        (1.02, 1.0),
        xycoords="axes fraction",
        xytext=(0, 6),
        textcoords="offset points",
        fontsize=9,
        color=canvas.GREY,
    )
    axes.set_xscale("log")
    room = max(2.0, (high / low) ** 0.15)  # for the labels of the outermost marks
    canvas.latency_ticks(axes, "x", low / room, high * room)
    axes.set_yticks(range(len(series)), [one.label.replace(" (", "\n(", 1).replace(", ", "\n", 1) for one in series])
    axes.set_ylim(len(series) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("latency (log scale)")
    axes.set_title("Median (filled) and p99 (hollow)")


def _interval(one: _Series) -> Interval | None:
    comparison = one.result.compare(one.target)
    return comparison.p50.interval if comparison else None


def _write_ratio(axes: Axes, row: int, one: _Series) -> None:
    """Writes beside a row how many times faster than the baseline it is, with the interval if there is one."""
    comparison = one.result.compare(one.target)
    interval = _interval(one)
    is_base = one.target.name == one.result.baseline
    bold = comparison is not None and not is_base and comparison.verdict != "undecided"
    axes.annotate(
        "baseline" if is_base else ratio(comparison.p50.value if comparison else None),
        (1.02, row),
        xycoords=axes.get_yaxis_transform(),
        va="center",
        fontsize=15 if bold else 10,
        fontweight="bold" if bold else "normal",
        color="#111111" if bold else canvas.GREY,
    )
    said = []
    if comparison and not is_base:
        if interval:
            said.append(f"{three_digits(interval.low)} – {three_digits(interval.high)}{'' if bold else ': undecided'}")
        if comparison.requests_per_s:
            said.append(f"requests/s {ratio(comparison.requests_per_s.value)}")
    if one.target.requests_per_s is not None and one.target.bytes_per_s is not None:
        rates = (canvas.thousands(one.target.requests_per_s), three_digits(one.target.bytes_per_s / 1e6))
        said.append(f"{rates[0]}/s, {rates[1]} MB/s")
    axes.annotate(
        "\n".join(said),
        (1.02, row),
        xycoords=axes.get_yaxis_transform(),
        xytext=(0, -10),
        textcoords="offset points",
        va="top",
        fontsize=8,
        color=canvas.GREY,
    )


def _span(observed: Sequence[_Series]) -> tuple[float, float]:
    """The range of the panels of `_draw_inside`: from the fastest sample inside to the client's highest p99."""
    lows = [low for one in observed for low, _ in map(histogram.bounds, _shares(one)["inside"])]
    highs = [ns for one in observed if (ns := one.target.percentiles["p99"]) is not None]
    return max(1, min(lows, default=1)) / 1.3, max(highs, default=10) * 1.6


def _shares(one: _Series) -> dict[str, dict[int, float]]:
    """The share of samples in percent, by slot of the kernel's histogram: ``inside`` and ``outside``.

    The client's buckets are narrower than the slots; each counts for the slot of its lower end.
    """
    inside = _inside(one.target)
    outside: Counter[int] = Counter()
    for run in one.target.runs:
        for low, _, n in run.latency.buckets:
            outside[histogram.slot(low)] += n
    counts = {"inside": inside.merged() if inside else {}, "outside": dict(sorted(outside.items()))}
    return {where: {slot: 100 * n / sum(of.values()) for slot, n in of.items()} for where, of in counts.items()}


def _draw_inside(axes: Axes, one: _Series, span: tuple[float, float]) -> None:
    """Draws what the service measured, filled, and what the client measured for the same requests, as an outline."""
    colour = one.look[0]
    shares = _shares(one)
    inside = _inside(one.target)
    assert inside is not None
    measured = [run.inside.latency.percentile(0.5) for run in one.target.runs if run.inside and run.inside.latency]
    highest = 0.0
    for where, p50 in (("inside", median(measured)), ("outside", one.target.percentiles["p50"])):
        slots = shares[where]
        edges = [(max(0.5, low), high) for low, high in map(histogram.bounds, slots)]
        heights = [canvas.per_eighth(share, *edge) for share, edge in zip(slots.values(), edges, strict=True)]
        highest = max(highest, *heights)
        axes.bar(
            [low for low, _ in edges],
            heights,
            width=[high - low for low, high in edges],
            align="edge",
            color=colour if where == "inside" else "none",
            edgecolor="white" if where == "inside" else "#222222",
            hatch=None if where == "inside" else "////",
            linewidth=0.4 if where == "inside" else 1.0,
            label=f"{where}, p50 {duration(p50)}",
        )
    axes.set_xscale("log")
    canvas.latency_ticks(axes, "x", *span)
    axes.set_ylim(0, 1.45 * highest)  # the legend is above the bars
    axes.set_xlabel("latency (log scale), up to the client's p99")
    axes.set_ylabel("samples (%) per ⅛ octave")
    axes.grid(visible=False, axis="x")
    axes.set_title(textwrap.fill(f"Inside the kernel and outside: {one.label}", 54))
    axes.legend(loc="upper right")


# The columns of a sweep: figures of the client, and of the service if it measures.
_SWEEP_COLUMNS = (
    ("p50_ns", "inside_p50_ns", "Median"),
    ("p99_ns", "inside_p99_ns", "p99"),
    ("rate_per_s", "", "Requests a second"),
    ("mb_per_s", "", "MB a second"),
)
_INSIDE_DASHES = (0, (1, 2.5))


def _bytes(size: float) -> str:
    """``64``, ``1K``, ``1M``: as --size takes it."""
    for unit, text in ((1 << 20, "M"), (1 << 10, "K")):
        if size >= unit and size % unit == 0:
            return f"{size / unit:.0f}{text}"
    return f"{size:.0f}"


# What a sweep may vary: the label of its axis, a value in a title, a value at a tick.
_SWEPT: Mapping[str, tuple[str, Callable[[Any], str], Callable[[float], str]]] = {
    "offered_per_s": ("requests due a second (log scale)", lambda n: f"{canvas.thousands(n)}/s due", canvas.thousands),
    "connections": ("connections (log scale)", lambda n: plural(int(n), "connection"), canvas.thousands),
    "size_bytes": ("message size in bytes (log scale)", lambda n: f"{n:,} B", _bytes),
}


def _sweep_figure(found: Mapping[str, Result]) -> Figure:
    """Draws p50, p99 and requests a second against what varies, with a row for each load of the other dimensions."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    frame = table.frame(found)
    frame = frame[frame["requests"] > 0]
    frame = frame.assign(
        label=frame["target"] + frame["file"].map(lambda file: _suffix(file, found)),
        mb_per_s=frame["bytes_per_s"] / 1e6,
    )
    along = max(_SWEPT, key=lambda column: frame[column].nunique() > 1)  # the first that varies
    across = [column for column in _SWEPT if column != along]
    rows = frame.groupby(across, dropna=False)
    labels = list(dict.fromkeys(frame["label"]))
    figure = canvas.new_figure(20, 1.6 + 3.4 * len(rows))
    grid = figure.subplots(len(rows), len(_SWEEP_COLUMNS), sharex=True, squeeze=False)
    for (_, part), row in zip(rows, grid, strict=True):
        what = ", ".join(_SWEPT[column][1](part[column].iloc[0]) for column in across if part[column].notna().all())
        for axes, (outside, inside, title) in zip(row, _SWEEP_COLUMNS, strict=True):
            _draw_sweep(axes, part, along, (outside, inside), dict(zip(labels, canvas.looks(len(labels)), strict=True)))
            axes.set_title(f"{title}, {what}")
        low = part[["p50_ns", "inside_p50_ns"]].min().min()
        for axes in row[:2]:
            canvas.latency_ticks(axes, "y", low / 1.5, part["p99_ns"].max() * 1.5)
            axes.set_ylabel("latency (log scale)")
        for axes, column in zip(row[2:], ("rate_per_s", "mb_per_s"), strict=True):
            canvas.rate_ticks(axes, part[column].min() / 1.5, part[column].max() * 1.5)
        row[2].set_ylabel("requests a second (log scale)")
        row[3].set_ylabel("MB a second each way (log scale)")
    canvas.load_ticks(grid[0][0], sorted(frame[along].unique()), _SWEPT[along][2])
    for axes in grid[-1]:
        axes.set_xlabel(_SWEPT[along][0])
    handles, names = grid[0][0].get_legend_handles_labels()
    handles.append(Patch(color=canvas.GREY, alpha=0.2, linewidth=0))
    names.append("lowest to highest round;\nline: their median")
    if frame["inside_p50_ns"].notna().any():
        handles.append(Line2D([], [], color=canvas.GREY, linestyle=_INSIDE_DASHES, marker=".", linewidth=1.2))
        names.append("the same, measured\ninside the kernel")
    figure.legend(handles, names, loc="outside right upper", handlelength=3.6)
    return figure


def _draw_sweep(
    axes: Axes,
    frame: pd.DataFrame,
    along: str,
    columns: tuple[str, str],
    looks: Mapping[str, tuple[str, Any, str]],
) -> None:
    """Draws a line for each target through its rounds' medians, in a band from the lowest to the highest round."""
    outside, inside = columns
    for label, (colour, dashes, marker) in looks.items():
        rounds = frame[frame["label"] == label].groupby(along)
        spread = rounds[outside].agg(["min", "median", "max"])
        axes.fill_between(spread.index, spread["min"], spread["max"], color=colour, alpha=0.2, linewidth=0)
        axes.plot(
            spread.index, spread["median"], color=colour, linestyle=dashes, marker=marker, linewidth=2, label=label
        )
        measured = rounds[inside].median().dropna() if inside else pd.Series(dtype=float)
        axes.plot(measured.index, measured, color=colour, linestyle=_INSIDE_DASHES, linewidth=1.2, marker=".")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.minorticks_off()


def _origin(result: Result) -> tuple[str, str]:
    host = result.host
    return (
        "  ·  ".join(headline(result)),
        f"{host.hostname}, {', '.join(host.summary()[1:])}  ·  {host.summary()[0]}  ·  "
        f"{result.date.replace('T', ' ').replace('+00:00', ' UTC')}  ·  kecho {result.version}",
    )
