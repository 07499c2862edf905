# SPDX-License-Identifier: MIT
"""Results as tables: a row a run, every column documented, and the same figures in CSV as in Python."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
import result_samples as samples

from kecho.bench import outputs, table
from kecho.bench.result import Result
from kecho.model.errors import KechoError

DOCS = Path(__file__).resolve().parents[3] / "docs/metrics.md"


def test_a_row_a_run() -> None:
    frame = table.frame({"a.json": samples.three_targets()})
    assert list(frame["target"]) == ["fast", "slow", "127.0.0.1:7"] * 2
    assert list(frame["repeat"]) == [0, 0, 0, 1, 1, 1]
    assert list(frame["baseline"]) == [False, True, False] * 2
    assert set(frame["file"]) == {"a.json"}
    assert set(frame["requests"]) == {100}


def test_figures_are_those_of_the_runs() -> None:
    result = samples.three_targets()
    frame = table.frame({"a.json": result})
    slow = {run.repeat: run.latency.percentiles["p50"] for run in result.runs if run.target == "slow"}
    for run, row in zip(result.runs, frame.to_dict("records"), strict=True):
        assert row["ratio_p50"] == pytest.approx(slow[run.repeat] / run.latency.percentiles["p50"])
        assert row["p99_ns"] == run.latency.percentile(0.99)
        assert row["mean_ns"] == run.latency.mean
        assert row["rate_per_s"] == pytest.approx(run.latency.count / (run.elapsed_ns / 1e9))
        if run.mode == "sockmap":
            assert run.kernel is not None and run.kernel["egress"].latency is not None
            assert row["inside_p50_ns"] == run.kernel["egress"].latency.percentile(0.5)
        else:
            assert pd.isna(row["inside_p50_ns"])
        assert pd.isna(row["inside_echoes"]) if not run.mode else row["inside_echoes"] == 100


def test_every_column_is_documented_and_nothing_else() -> None:
    section = DOCS.read_text().partition("## Tables")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]*) \|", section, re.MULTILINE)
    documented = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(documented) == sorted(table.frame({"a.json": samples.three_targets()}).columns)


def test_several_files_are_one_table(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        outputs.save(samples.three_targets(), tmp_path / name)
    frame = table.load(tmp_path / "a.json", tmp_path / "b.json")
    assert list(frame.groupby("file").size()) == [6, 6]
    assert set(frame["file"]) == {str(tmp_path / "a.json"), str(tmp_path / "b.json")}


def test_nothing_to_load() -> None:
    assert table.load().empty


def test_a_file_that_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(KechoError, match=r"x\.json: not a result of kecho-ctl bench"):
        table.load(tmp_path / "x.json")


def test_csv_has_the_same_figures(tmp_path: Path) -> None:
    result = samples.three_targets()
    table.save_csv(result, tmp_path / "r.csv")
    again = pd.read_csv(tmp_path / "r.csv", keep_default_na=True)
    frame = table.frame({"": result}).drop(columns="file")
    assert list(again.columns) == list(frame.columns)
    numbers = frame.select_dtypes("number").columns
    assert len(numbers) > 20
    pd.testing.assert_frame_equal(again[numbers], frame[numbers], check_dtype=False)


def test_what_an_open_loop_never_sent_is_in_the_table() -> None:
    options = {**samples.OPTIONS, "mode": "open", "rate_per_s": 1e6, "unsent": 4}
    run = samples.run("s", [1000] * 5, options=options)
    (row,) = table.frame({"": Result.from_json(samples.result(run).to_json())}).to_dict("records")
    assert row["unsent"] == 4 and row["p50_ns"] == 1000 and pd.isna(row["p99_ns"])
