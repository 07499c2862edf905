# SPDX-License-Identifier: MIT
"""Pictures: they are drawn, decode, and hold something; what cannot be drawn is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import result_samples as samples

from kecho.errors import KechoError
from kecho.histogram import Histogram
from kecho.snapshot import Connections, PathStats, Snapshot

plt = pytest.importorskip("matplotlib.pyplot")
pytest.importorskip("pandas")

from kecho import plot  # noqa: E402  needs both


def snapshot(*values: int) -> Snapshot:
    paths = {"msg": PathStats(len(values), 64, 0, Histogram.of(values)), "user": PathStats(1, 1, 0, None, "none")}
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
    plot.plot_stats(snapshot(*values), tmp_path / "s.png")
    check_picture(tmp_path / "s.png")


def test_stats_of_several_services(tmp_path: Path) -> None:
    plot.plot_stats([snapshot(1700)], tmp_path / "one.png")
    plot.plot_stats([snapshot(1700), snapshot(14000)], tmp_path / "two.png")
    assert plt.imread(tmp_path / "two.png").shape[0] > plt.imread(tmp_path / "one.png").shape[0]


def test_stats_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(KechoError, match="no path has a latency sample yet"):
        plot.plot_stats(snapshot(), tmp_path / "s.png")
    assert not list(tmp_path.iterdir())


def test_bench(tmp_path: Path) -> None:
    plot.plot_bench(samples.three_targets(), tmp_path / "b.png")
    check_picture(tmp_path / "b.png")


@pytest.mark.parametrize("count", [1, 12])
def test_bench_of_few_and_many_targets(tmp_path: Path, count: int) -> None:
    runs = [samples.run(f"target-{i}", [1000 * (i + 1)]) for i in range(count)]
    plot.plot_bench(samples.result(*runs, baseline="target-0"), tmp_path / "b.png")
    check_picture(tmp_path / "b.png")


def test_lines_differ_in_colour_and_in_grey() -> None:
    assert len(set(plot.COLOURS)) == len(plot.COLOURS)
    assert len(set(map(str, plot.DASHES))) == len(plot.DASHES)


@pytest.mark.parametrize("name", ["b.svg", "b.pdf"])
def test_other_formats(tmp_path: Path, name: str) -> None:
    plot.plot_bench(samples.three_targets(), tmp_path / name)
    assert (tmp_path / name).stat().st_size > 5000


@pytest.mark.parametrize("name", ["b.xyz", "missing/b.png"])
def test_what_cannot_be_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(KechoError, match="cannot write") as caught:
        plot.plot_bench(samples.three_targets(), tmp_path / name)
    assert "\n" not in str(caught.value)


def test_result_without_a_sample(tmp_path: Path) -> None:
    with pytest.raises(KechoError, match="the result has no sample"):
        plot.plot_bench(samples.result(), tmp_path / "b.png")
