# SPDX-License-Identifier: MIT
"""Pictures: they are drawn, decode, and hold something; what cannot be drawn is refused in one line."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import result_samples as samples

from kecho.bench.interval import MIN_ROUNDS
from kecho.bench.result import Result
from kecho.cli import plot as cli_plot
from kecho.cli.main import main
from kecho.model import histogram
from kecho.model.errors import KechoError
from kecho.model.histogram import Histogram, slot
from kecho.model.snapshot import Connections, PathStats, Snapshot

plt = pytest.importorskip("matplotlib.pyplot")
pytest.importorskip("pandas")

from matplotlib.figure import Figure  # noqa: E402
from matplotlib.text import Text  # noqa: E402

from kecho.show import bench_plot, canvas, stats_plot  # noqa: E402  needs both


def snapshot(*values: int) -> Snapshot:
    paths = {"egress": PathStats(len(values), 64, 0, Histogram.of(values)), "user": PathStats(1, 1, 0, None, "none")}
    return Snapshot("kecho", "sockmap", 12345, 12.3, "6.1.0", Connections(), paths)


def check_picture(path: Path) -> None:
    """A PNG of a sensible size, with white paper, something dark, and something coloured on it."""
    picture = plt.imread(path)[..., :3]
    height, width, _ = picture.shape
    assert height > 300
    assert width > 800
    assert (picture.min(axis=2) == 1).mean() > 0.5
    assert (picture.max(axis=2) < 0.3).any()
    assert (picture.max(axis=2) - picture.min(axis=2) > 0.4).any()


@pytest.mark.parametrize("values", [(1700,), (0, 1, 2), (1500, 1700, 1700, 9_000_000), (10, 10**12)], ids=str)
def test_stats(tmp_path: Path, values: tuple[int, ...]) -> None:
    stats_plot.plot_stats(snapshot(*values), tmp_path / "s.png")
    check_picture(tmp_path / "s.png")


@pytest.mark.parametrize(
    "values", [(1700,), [2700] * 97 + [4800, 81000, 1_700_000], (10, 10**12), [5000] * 9 + [10**9], [10] + [10**9] * 9]
)
def test_no_label_of_stats_stands_out_of_its_panel(values: Sequence[int]) -> None:
    with canvas.style():
        figure = stats_plot._figure([snapshot(*values)])
        assert not overlapping(figure)
        panel = figure.axes[0].get_window_extent()
        labels = [text for text in figure.axes[0].texts if text.get_text().startswith("p")]
        assert len(labels) == 2
        for box in (text.get_window_extent() for text in labels):
            assert panel.x0 <= box.x0 and box.x1 <= panel.x1


def test_stats_of_several_services(tmp_path: Path) -> None:
    stats_plot.plot_stats([snapshot(1700)], tmp_path / "one.png")
    stats_plot.plot_stats([snapshot(1700), snapshot(14000)], tmp_path / "two.png")
    assert plt.imread(tmp_path / "two.png").shape[0] > plt.imread(tmp_path / "one.png").shape[0]


def test_stats_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(KechoError, match="no path has a latency sample yet"):
        stats_plot.plot_stats(snapshot(), tmp_path / "s.png")
    assert not list(tmp_path.iterdir())


def test_bench(tmp_path: Path) -> None:
    bench_plot.plot_bench({"a.json": samples.three_targets()}, tmp_path / "b.png")
    check_picture(tmp_path / "b.png")


@pytest.mark.parametrize("count", [1, 12])
def test_bench_of_few_and_many_targets(tmp_path: Path, count: int) -> None:
    runs = [samples.run(f"target-{i}", [1000 * (i + 1)]) for i in range(count)]
    bench_plot.plot_bench({"a.json": samples.result(*runs, baseline="target-0")}, tmp_path / "b.png")
    check_picture(tmp_path / "b.png")


def test_bench_of_no_time_at_all(tmp_path: Path) -> None:
    """A damaged file may say so, and a log axis has no 0."""
    bench_plot.plot_bench({"a.json": samples.result(samples.run("slow", [0, 0, 1]))}, tmp_path / "b.png")
    check_picture(tmp_path / "b.png")


def sweep(*loads: tuple[int, int]) -> Result:
    runs = [
        replace(run, options={**run.options, "connections": connections, "size_bytes": size})
        for connections, size in loads
        for run in samples.three_targets().runs
    ]
    return samples.result(*runs)


@pytest.mark.parametrize(
    "loads",
    [
        ((1, 64), (10, 64), (1000, 64)),
        ((1, 64), (1, 1024)),
        ((1, 64), (10, 64), (1, 1024), (10, 1024)),
    ],
    ids=["connections", "sizes", "both"],
)
def test_sweep(tmp_path: Path, loads: tuple[tuple[int, int], ...]) -> None:
    bench_plot.plot_bench({"a.json": sweep(*loads)}, tmp_path / "s.png")
    check_picture(tmp_path / "s.png")


def test_a_row_for_each_size_of_a_sweep(tmp_path: Path) -> None:
    for name, loads in (("one", ((1, 64), (9, 64))), ("two", ((1, 64), (9, 64), (1, 999), (9, 999)))):
        bench_plot.plot_bench({"a.json": sweep(*loads)}, tmp_path / f"{name}.png")
    assert plt.imread(tmp_path / "two.png").shape[0] > 1.5 * plt.imread(tmp_path / "one.png").shape[0]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """The texts that stand on one another: labels of ticks, titles, the legend, what is below everything."""
    figure.draw_without_rendering()
    shown = [
        (text.get_text(), text.get_window_extent())
        for text in figure.findobj(Text)
        if text.get_text().strip() and text.get_visible()
    ]
    return [
        (one, other)
        for (one, here), (other, there) in itertools.combinations(shown, 2)
        if here.padded(-1).overlaps(there.padded(-1))
    ]


@pytest.mark.parametrize(
    ("targets", "along", "loads"), [(1, "connections", 2), (6, "connections", 6), (6, "size_bytes", 6)]
)
def test_no_text_of_a_sweep_stands_on_another(targets: int, along: str, loads: int) -> None:
    runs = [
        samples.run(
            f"127.0.0.1:{7000 + number}",
            [1000 * (number + 1) * load],
            options={**samples.OPTIONS, along: load},
        )
        for load in (64, 256, 1000, 2000, 5000, 65536)[:loads]
        for number in range(targets)
    ]
    found = {"a.json": samples.result(*runs, baseline="127.0.0.1:7000")}
    with canvas.style():
        figure = bench_plot._figure(found)
        assert not overlapping(figure)
        assert all(axes.get_yticks().size > 1 for axes in figure.axes)


def test_saved_stats(tmp_path: Path) -> None:
    """The intervals of a file are added up; another file stands beside it; a result of bench does not go with them."""
    (tmp_path / "s.json").write_text(
        "".join(f"{json.dumps(snapshot(*one).to_json())}\n" for one in ((1700, 1800), (9000,)))
    )
    saved = cli_plot._snapshot(str(tmp_path / "s.json"))
    assert saved and saved.paths["egress"].latency == Histogram.of((1700, 1800, 9000))
    picture = str(tmp_path / "s.png")
    assert main(["plot", str(tmp_path / "s.json"), str(tmp_path / "s.json"), "-o", picture]) == 0
    check_picture(tmp_path / "s.png")
    (tmp_path / "b.json").write_text(json.dumps(samples.three_targets().to_json()))
    assert main(["plot", str(tmp_path / "s.json"), str(tmp_path / "b.json"), "-o", picture]) == 2
    assert main(["plot", str(tmp_path / "b.json"), "-o", picture]) == 0
    (tmp_path / "s.json").write_text('{"schema": 1, "paths": 7}\n')
    assert main(["plot", str(tmp_path / "s.json"), "-o", picture]) == 1


def test_workloads_are_told_apart() -> None:
    closed = sweep((10, 64), (100, 64))
    burst = replace(closed, runs=tuple(replace(run, options={**run.options, "mode": "burst"}) for run in closed.runs))
    drawn = texts(bench_plot._figure({"a.json": closed, "b.json": burst}))
    assert {"fast, a, closed loop", "fast, b, burst"} <= set(drawn)


def test_bars_of_different_widths_compare() -> None:
    """As many samples at every latency: on a log axis density rises evenly, and does not double at an octave."""
    slots = range(slot(4096), slot(8192) + 8)
    edges = [histogram.bounds(one) for one in slots]
    heights = [canvas.per_eighth(high - low, low, high) for low, high in edges]
    assert all(1 < after / before < 1.2 for before, after in itertools.pairwise(heights))


def test_several_results_are_told_apart() -> None:
    one = samples.three_targets()
    drawn = texts(bench_plot._percentile_figure({"monday.json": one, "friday.json": one}))
    for day in ("monday", "friday"):
        assert f"fast (sockmap egress), {day}" in drawn
    same_stem = texts(bench_plot._percentile_figure({"a/last.json": one, "b/last.json": one}))
    assert {"127.0.0.1:7, a/last.json", "127.0.0.1:7, b/last.json"} <= set(same_stem)


def test_inside_stands_beside_outside_where_the_service_measures() -> None:
    drawn = texts(bench_plot._percentile_figure({"a.json": samples.three_targets()}))
    assert [text for text in drawn if text.startswith("Inside")] == [
        "Inside the kernel and outside: fast (sockmap egress)"
    ]
    assert any(text.startswith("inside, p50 8") and text.endswith(" ns") for text in drawn)
    assert "outside, p50 1.75 µs" in drawn
    swept = texts(bench_plot._figure({"a.json": sweep((1, 64), (10, 64))}))
    assert "the same, measured\ninside the kernel" in swept, "beside p99 it is the p99"


def test_shares_inside_and_outside_are_of_all_samples() -> None:
    target = samples.three_targets().targets[1]
    one = bench_plot._Series("fast", samples.three_targets(), target, canvas.looks(1)[0])
    shares = bench_plot._shares(one)
    for where, values in (("inside", [v // 2 for v in range(1700, 1800)]), ("outside", range(1700, 1800))):
        assert sum(shares[where].values()) == pytest.approx(100)
        assert set(shares[where]) <= set(map(slot, values))


def test_the_picture_calls_no_difference_that_the_interval_does_not_support() -> None:
    runs = [
        samples.run(name, [ns + repeat] * 9, repeat=repeat)
        for repeat in range(MIN_ROUNDS)
        for name, ns in (("slow", 9000), ("same", 9001), ("fast", 3000))
    ]
    figure = bench_plot._percentile_figure({"a.json": samples.result(*runs)})
    drawn = texts(figure)
    assert sum(": undecided\n" in text for text in drawn) == 1
    assert sum("requests/s 3.0×" in text for text in drawn) == 1
    weights = {text.get_text(): text.get_fontweight() for text in figure.findobj(Text)}
    assert (weights["3.0×"], weights["1.0×"]) == ("bold", "normal")


def test_the_heat_map_has_a_row_a_cpu(tmp_path: Path) -> None:
    def of(cpus: int) -> Snapshot:
        latency = Histogram({cpu: {slot(1000 + 100 * cpu): cpu + 1} for cpu in range(cpus)})
        return replace(snapshot(1), paths={"egress": PathStats(latency.count, 64, 0, latency)})

    heights = {}
    for cpus in (1, 8, 200):
        stats_plot.plot_stats(of(cpus), tmp_path / "s.png")
        check_picture(tmp_path / "s.png")
        heights[cpus] = plt.imread(tmp_path / "s.png").shape[0]
    assert heights[1] < heights[8] < heights[200] < 2 * heights[1]


@pytest.mark.parametrize("kind", ["bench", "stats"])
def test_the_users_settings_are_not_ours(tmp_path: Path, kind: str) -> None:
    """A notebook's backend, a settings file that wants LaTeX and more, no HOME: the same picture, and no word."""
    shown = samples.three_targets() if kind == "bench" else snapshot(1700, 14000)
    script = f"""
import json, sys
from kecho.bench.result import Result
from kecho.cli import plot as cli_plot
from kecho.cli.main import main
from kecho.model.snapshot import Snapshot
obj = json.loads({json.dumps(shown.to_json())!r})
if {kind!r} == "bench":
    from kecho.show import bench_plot
    bench_plot.plot_bench({{"": Result.from_json(obj)}}, sys.argv[1])
else:
    from kecho.show import stats_plot
    stats_plot.plot_stats(Snapshot.from_json(obj), sys.argv[1])
"""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "matplotlibrc").write_text(
        "text.usetex: True\naxes.facecolor: black\nfont.size: 30\nsavefig.dpi: 10\nfont.size: no number\nwhat: 1\n"
    )
    home = {"PATH": os.environ["PATH"], "MPLCONFIGDIR": str(tmp_path / "config")}
    homeless = {"PATH": os.environ["PATH"], "HOME": "/proc/nowhere"}
    notebook = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    unknown = {"MPLBACKEND": "none of these"}
    settings = ((tmp_path, home), (theirs, {**homeless, **notebook}), (theirs, {**homeless, **unknown}))
    pictures = []
    for name, (folder, environment) in enumerate(settings):
        picture = tmp_path / f"{name}.png"
        command = [sys.executable, "-c", script, str(picture)]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done
        pictures.append(plt.imread(picture))
    for other in pictures[1:]:
        assert other.shape == pictures[0].shape
        assert abs(other - pictures[0]).mean() < 0.01


def test_lines_differ_in_colour_and_in_grey() -> None:
    assert len(set(canvas.COLOURS)) == len(canvas.COLOURS)
    assert len(set(map(str, canvas.DASHES))) == len(canvas.DASHES)


@pytest.mark.parametrize("name", ["b.svg", "b.pdf"])
def test_other_formats(tmp_path: Path, name: str) -> None:
    bench_plot.plot_bench({"a.json": samples.three_targets()}, tmp_path / name)
    assert (tmp_path / name).stat().st_size > 5000


@pytest.mark.parametrize("name", ["b.xyz", "missing/b.png"])
def test_what_cannot_be_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(KechoError, match="cannot write") as caught:
        bench_plot.plot_bench({"a.json": samples.three_targets()}, tmp_path / name)
    assert "\n" not in str(caught.value)


def test_result_without_a_sample(tmp_path: Path) -> None:
    with pytest.raises(KechoError, match="the result has no sample"):
        bench_plot.plot_bench({"a.json": samples.result()}, tmp_path / "b.png")
