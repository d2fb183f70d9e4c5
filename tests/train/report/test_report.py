"""report: the right run in the right row, stores apart, one file, the same bytes again."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from features.errors import RunError
from train.config import FitConfig
from train.metrics import summarise_metrics
from train.report.report import run_report
from train.runs.folder import RUN_FORMAT, RUN_VERSION, Run, RunSummary, name_run, write_run

CLASSES = ("happy", "sad")
LABELS = np.array([0, 0, 0, 0, 1, 1])


def summarise(n_right: int) -> dict[str, Any]:
    """Scores of six clips of which the first ``n_right`` are right."""
    predicted = np.where(np.arange(6) < n_right, LABELS, 1 - LABELS)
    return summarise_metrics(LABELS, 0.2 + 0.6 * np.eye(2)[predicted], list("abcdef"))


def write_fake_run(
    runs: Path,
    head: str,
    seed: int,
    n_right: int,
    *,
    fingerprint: str = "f" * 64,
    test: bool = True,
    expressions: dict[str, dict[str, float]] | None = None,
    **settings: Any,
) -> Path:
    """A run folder as fit writes it, without training anything."""
    config = FitConfig(precision="float32", **settings)
    split = {"n_clips": 6, "n_labelled": 6, "n_no_face": 1, "n_frames": 30, "n_faces": 25}
    store = {
        "paths": ["store"],
        "fingerprint": fingerprint,
        "clips_sha256": "c" * 64,
        "classes": list(CLASSES),
        "splits": {s: split | {"labels": {"happy": 4, "sad": 2}} for s in ("train", "val", "test")},
        "sources": {"demo": 18},
        "n_failed": 2,
        "extract_config": {},
        "weights": {},
        "versions": {"av": "1.0"},
    }
    if expressions is not None:
        store["expressions"] = expressions
    path = runs / name_run(head, f"{fingerprint[:4]}{config.lr:g}", seed)
    summary = RunSummary(
        run=path.name,
        head=head,
        seed=seed,
        n_parameters=1000,
        best_epoch=2,
        val=summarise(n_right),
        test=summarise(3) if test else {},
    )
    run = Run(
        path=path,
        config={
            "format": RUN_FORMAT,
            "version": RUN_VERSION,
            "head": head,
            "seed": seed,
            "context": "7x7" if head == "caca" else "2x2",
            "streams": {},
            "n_epochs": 3,
            "settings": asdict(config),
            "device": "cpu",
            "store": store,
            "members": [{"head": "face", "weight": 0.5}, {"head": "context", "weight": 0.5}],
            "versions": {"torch": "2.0"},
        },
        summary=summary,
        history=pd.DataFrame(
            {"epoch": [1, 2, 3], "train_loss": [2.0, 1.0, 0.5], "val_loss": [2.0, np.nan, 1.5]}
        ),
        predictions=pd.DataFrame(
            {"clip_id": ["a"], "split": ["val"], "label": ["happy"], "predicted": ["sad"]}
        ),
    )
    write_run(run, b"weights")
    return path


def read_table(out: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(out / "tables" / f"{name}.csv", dtype=str, keep_default_na=False)


def test_table_1_holds_the_median_and_the_spread_beside_the_paper(tmp_path: Path) -> None:
    for seed, n_right in enumerate([6, 2, 5]):
        write_fake_run(tmp_path / "runs", "face", seed, n_right)
    run_report(tmp_path / "runs", tmp_path / "out")
    (row,) = read_table(tmp_path / "out", "table1").to_dict("records")
    assert row["acc"] == "83.33 (33.33–100.00)"
    assert (row["Parameters"], row["Parameters (paper)"], row["Seeds"]) == ("1,000", "1.58M", "3")
    assert (row["mAP (paper)"], row["ACC (paper)"]) == ("38.87", "52.72")


def test_the_median_run_is_the_one_reported(tmp_path: Path) -> None:
    for seed, n_right in enumerate([6, 2, 5]):
        write_fake_run(tmp_path / "runs", "face", seed, n_right)
    run_report(tmp_path / "runs", tmp_path / "out")
    table = read_table(tmp_path / "out", "runs")
    assert table.loc[table["Reported"] == "median", "Seed"].tolist() == ["2"]
    assert set(read_table(tmp_path / "out", "median_runs")["Seed"]) == {"2"}


def test_single_classes_are_told_of_the_median_run(tmp_path: Path) -> None:
    for seed, n_right in enumerate([6, 2, 5]):
        write_fake_run(tmp_path / "runs", "face", seed, n_right)
    page = run_report(tmp_path / "runs", tmp_path / "out").read_text()
    table = read_table(tmp_path / "out", "classes")
    of_val = table[table["Split"] == "val"].set_index("Figure")
    # Of six clips, four happy and two sad, the last sad one was taken for happy.
    assert of_val["happy"].to_dict() == {"precision": "80.00", "recall": "100.00", "f1": "88.89"}
    assert of_val["sad"].to_dict() == {"precision": "100.00", "recall": "50.00", "f1": "66.67"}
    assert "Precision, recall and F1 of each class" in page


def test_of_an_even_number_of_seeds_the_lower_middle_one_is_reported(tmp_path: Path) -> None:
    for seed, n_right in enumerate([6, 5]):
        write_fake_run(tmp_path / "runs", "face", seed, n_right)
    run_report(tmp_path / "runs", tmp_path / "out")
    table = read_table(tmp_path / "out", "runs")
    assert table.loc[table["Reported"] == "median", "Seed"].tolist() == ["1"]


def test_results_of_two_stores_never_share_a_table(tmp_path: Path) -> None:
    write_fake_run(tmp_path / "runs", "face", 0, 6)
    write_fake_run(tmp_path / "runs", "face", 1, 2, fingerprint="a" * 64)
    run_report(tmp_path / "runs", tmp_path / "out")
    for name in ("store1-table1", "store2-table1"):
        assert read_table(tmp_path / "out", name)["Seeds"].tolist() == ["1"]
    text = (tmp_path / "out" / "report.md").read_text()
    assert "store `aaaaaaaaaaaa`" in text
    assert "store `ffffffffffff`" in text


def test_settings_that_differ_give_rows_of_their_own(tmp_path: Path) -> None:
    write_fake_run(tmp_path / "runs", "face", 0, 6)
    write_fake_run(tmp_path / "runs", "face", 0, 5, lr=0.01)
    run_report(tmp_path / "runs", tmp_path / "out")
    assert read_table(tmp_path / "out", "table1")["Head"].tolist() == ["face", "face-2"]


def test_table_2_stands_only_where_the_submitted_head_was_trained(tmp_path: Path) -> None:
    write_fake_run(tmp_path / "runs", "face", 0, 6)
    run_report(tmp_path / "runs", tmp_path / "out")
    assert not (tmp_path / "out/tables/table2.csv").exists()
    write_fake_run(tmp_path / "runs", "caca", 0, 6)
    run_report(tmp_path / "runs", tmp_path / "out")
    table = read_table(tmp_path / "out", "table2")
    assert table["Method"].tolist() == ["CACA-RNN", "MEC 2017 baseline"]
    assert table["test mAP (paper)"].tolist() == ["45.51", "21.70"]


def test_both_pages_tell_rule_coverage_and_where_the_papers_figures_are_from(
    tmp_path: Path,
) -> None:
    for seed, head in enumerate(["face", "context", "parallel"]):
        write_fake_run(tmp_path / "runs", head, 0, 4 + seed % 3, test=False)
    run_report(tmp_path / "runs", tmp_path / "out")
    for name in ("report.md", "report.html"):
        text = (tmp_path / "out" / name).read_text()
        for told in (
            "measured on CHEAVD 2.0",
            "takes part in no choice",
            "demo (18 clips)",
            "(failures.csv): 2",
            "1 of 1 heads that read both streams are above it: parallel",
            "cli.py fit --store store",
            "av 1.0, torch 2.0",
        ):
            assert told in text, f"{name}: {told}"


def test_both_pages_tell_what_the_faces_of_each_class_show(tmp_path: Path) -> None:
    shown = {"sad": {"joy": 0.125, "sorrow": 0.875}}
    write_fake_run(tmp_path / "runs", "face", 0, 6, expressions=shown)
    run_report(tmp_path / "runs", tmp_path / "out")
    table = read_table(tmp_path / "out", "expressions")
    assert table.to_dict("records") == [{"Class": "sad", "joy": "12.5", "sorrow": "87.5"}]
    for name in ("report.md", "report.html"):
        assert "What the faces show" in (tmp_path / "out" / name).read_text()


@pytest.mark.parametrize("expressions", [None, {}])
def test_runs_on_a_store_without_expressions_have_no_table_of_them(
    tmp_path: Path, expressions: dict[str, dict[str, float]] | None
) -> None:
    write_fake_run(tmp_path / "runs", "face", 0, 6, expressions=expressions)
    run_report(tmp_path / "runs", tmp_path / "out")
    assert not (tmp_path / "out/tables/expressions.csv").exists()
    assert "What the faces show" not in (tmp_path / "out/report.html").read_text()


def test_single_streams_of_another_setting_do_not_count_as_fused(tmp_path: Path) -> None:
    for lr, n_right in ((1e-4, 4), (1e-2, 6)):
        for head in ("face", "context"):
            write_fake_run(tmp_path / "runs", head, 0, n_right, lr=lr)
    write_fake_run(tmp_path / "runs", "parallel", 0, 5)
    run_report(tmp_path / "runs", tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.count("The better single stream") == 1
    assert "1 of 1 heads that read both streams are above it: parallel." in text


def test_files_of_an_earlier_report_go_and_others_stay(tmp_path: Path) -> None:
    write_fake_run(tmp_path / "runs", "face", 0, 6)
    write_fake_run(tmp_path / "runs", "face", 0, 6, fingerprint="a" * 64)
    run_report(tmp_path / "runs", tmp_path / "out")
    (tmp_path / "out/tables/mine.csv").touch()
    shutil.rmtree(next((tmp_path / "runs").glob("face-aaaa*")))
    run_report(tmp_path / "runs", tmp_path / "out")
    assert not list((tmp_path / "out").rglob("store*"))
    assert (tmp_path / "out/tables/mine.csv").is_file()


def test_the_html_page_needs_no_other_file(tmp_path: Path) -> None:
    write_fake_run(tmp_path / "runs", "face", 0, 6)
    page = run_report(tmp_path / "runs", tmp_path / "out").read_text()
    sources = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(sources) == 3
    assert all(source.startswith("data:image/") for source in sources)


def test_every_figure_stands_as_png_and_svg_and_is_linked(tmp_path: Path) -> None:
    write_fake_run(tmp_path / "runs", "face", 0, 6)
    run_report(tmp_path / "runs", tmp_path / "out")
    names = {file.stem for file in (tmp_path / "out/figures").iterdir()}
    assert names == {"scores", "histories", "confusion-face"}
    text = (tmp_path / "out" / "report.md").read_text()
    for name in names:
        assert f"(figures/{name}.png)" in text
        assert (tmp_path / f"out/figures/{name}.svg").is_file()


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    write_fake_run(tmp_path / "runs", "face", 0, 6)
    for out in ("one", "other"):
        run_report(tmp_path / "runs", tmp_path / out)
    ours = sorted(file for file in (tmp_path / "one").rglob("*") if file.is_file())
    for file in ours:
        other = tmp_path / "other" / file.relative_to(tmp_path / "one")
        expected = file.read_bytes().replace(b"/one", b"/other")  # the command names the folder
        assert other.read_bytes() == expected, file.name


def test_names_of_classes_and_sources_cannot_break_the_page(tmp_path: Path) -> None:
    path = write_fake_run(tmp_path / "runs", "face", 0, 6)
    text = (path / "config.json").read_text().replace('"demo"', '"<script>|x"')
    (path / "config.json").write_text(text)
    page = run_report(tmp_path / "runs", tmp_path / "out").read_text()
    assert "<script>" not in page


def test_an_ensemble_without_its_members_is_shown(tmp_path: Path) -> None:
    """As where the members alone were scored on other clips since."""
    write_fake_run(tmp_path / "runs", "ensemble", 0, 5, members="face,context")
    run_report(tmp_path / "runs", tmp_path / "out")
    page = (tmp_path / "out/report.md").read_text(encoding="utf-8")
    assert "### Median runs on val and test" in page
    assert "### Training" not in page
    assert "|  |" not in page  # no table of nothing


def test_a_folder_without_runs_says_how_to_make_some(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no run folder here\. Train some with: cli\.py fit"):
        run_report(tmp_path, tmp_path / "out")


def test_a_run_of_newer_code_is_refused(tmp_path: Path) -> None:
    path = write_fake_run(tmp_path / "runs", "face", 0, 6)
    text = (path / "config.json").read_text().replace('"version": 1', '"version": 2')
    (path / "config.json").write_text(text)
    with pytest.raises(RunError, match=r"version 2, but this code reads .* 1\. Update the code"):
        run_report(tmp_path / "runs", tmp_path / "out")


def test_a_run_whose_config_lacks_a_part_is_named_and_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for seed in (0, 1):
        path = write_fake_run(tmp_path / "runs", "face", seed, 4)
    config = json.loads((path / "config.json").read_text())
    del config["store"]["classes"], config["versions"]
    (path / "config.json").write_text(json.dumps(config))
    run_report(tmp_path / "runs", tmp_path / "out")
    assert f"{path / 'config.json'}: lacks versions, store.classes." in caplog.text
    assert [row["Seed"] for _, row in read_table(tmp_path / "out", "runs").iterrows()] == ["0"]


def make_strange(runs: Path) -> dict[str, str]:
    """Things that are none of ours, and a run of ours that was copied by half: name -> its line."""
    (runs / "bert").mkdir(parents=True)
    (runs / "bert/config.json").write_text('{"model_type": "bert"}')
    (runs / "plots").mkdir()
    (runs / "study").mkdir()
    (runs / "study/sweep.json").write_text("[]")
    (runs / "crossval").mkdir()
    (runs / "crossval/pooled.json").write_bytes(b"\xff")
    (runs / "deep").mkdir()
    (runs / "deep/config.json").write_text("[" * 100_000)
    (runs / "pipe").mkdir()
    os.mkfifo(runs / "pipe/config.json")
    (runs / "notes.txt").write_text("mine")
    (runs / "sweep-face-0123").mkdir()
    half = write_fake_run(runs, "context", 0, 6)
    (half / "metrics.json").unlink()
    (half / "history.csv").unlink()
    other = "a folder that neither fit nor sweep wrote"
    return {
        "bert": other,
        "plots": other,
        "study": other,
        "crossval": other,
        "deep": other,
        "pipe": other,
        "notes.txt": "a file, not a run folder",
        "sweep-face-0123": "a sweep that is not finished: run the same sweep again",
        half.name: "a run without metrics.json, history.csv: copy it again",
    }


def test_strange_things_among_the_runs_are_passed_over_in_a_line_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_fake_run(tmp_path / "runs", "face", 0, 6)
    lines = make_strange(tmp_path / "runs")
    before = sorted((tmp_path / "runs").rglob("*"))
    run_report(tmp_path / "runs", tmp_path / "out")
    assert read_table(tmp_path / "out", "table1")["Head"].tolist() == ["face"]
    assert sorted(record.getMessage() for record in caplog.records) == sorted(
        f"{tmp_path / 'runs' / name}: passed over, {line}" for name, line in lines.items()
    )
    assert "elete" not in caplog.text
    assert sorted((tmp_path / "runs").rglob("*")) == before


def test_a_run_that_was_cut_off_in_copying_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_fake_run(tmp_path / "runs", "face", 0, 6)
    file = write_fake_run(tmp_path / "runs", "face", 1, 6) / "metrics.json"
    file.write_bytes(file.read_bytes()[:100])
    run_report(tmp_path / "runs", tmp_path / "out")
    assert read_table(tmp_path / "out", "table1")["Seeds"].tolist() == ["1"]
    assert f"passed over: {file}: damaged (" in caplog.text
    assert "elete" not in caplog.text


def test_a_sweep_or_folds_that_were_cut_off_in_copying_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_fake_run(tmp_path / "runs", "face", 0, 6)
    for file, kind in (("pooled.json", "caca-rnn-folds"), ("sweep.json", "caca-rnn-sweep")):
        (tmp_path / "runs" / kind).mkdir()
        told = json.dumps({"format": kind, "version": 1})
        (tmp_path / "runs" / kind / file).write_text(told)
    run_report(tmp_path / "runs", tmp_path / "out")
    assert caplog.text.count("passed over: ") == 2


def test_among_strange_things_alone_there_is_nothing_to_report(tmp_path: Path) -> None:
    make_strange(tmp_path / "runs")
    with pytest.raises(RunError, match=r"no run folder here\. Train some with: cli\.py fit"):
        run_report(tmp_path / "runs", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_runs_of_the_first_release_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tarfile.open(Path(__file__).parents[2] / "archives/runs-v1.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    run_report(tmp_path / "runs", tmp_path / "out")
    table = read_table(tmp_path / "out", "table1")
    assert table["Head"].tolist() == ["face", "context", "ensemble"]
    assert table["Seeds"].tolist() == ["2", "2", "2"]
    assert read_table(tmp_path / "out", "folds1")["Fold"].tolist() == [
        "1of2", "2of2", "all together"
    ]  # fmt: skip
    assert len(list((tmp_path / "out/tables").glob("sweep-face-*-trials.csv"))) == 1
    assert caplog.text == ""


def test_the_report_loads_no_network() -> None:
    code = "import sys, train.report.report; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
