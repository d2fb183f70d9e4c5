"""fit: run folders, what it refuses, reproducibility, seeds side by side, and that it learns."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file

from features.errors import ConfigError, RunError
from features.store.reader import open_store
from features.store.writer import write_store
from tests.builders import clip_features
from tests.fits import fit_runs
from tests.train.training.losses import spoil_losses
from train.config import PRESETS, FitConfig, find_matrices, parse_settings
from train.data.stores import check_stores
from train.fit_jobs import FitProgress
from train.heads.build import NETWORKS, build_head
from train.metrics import summarise_metrics
from train.runs.folder import RUN_FILES, find_runs, read_run
from train.streams import choose_streams

CLASSES = ("happy", "sad", "angry")
QUICK = FitConfig(epochs=3, min_updates=0, batch_size=4, precision="float32")


def planted_store(path: Path, *, fingerprint: str = "test", prefix: str = "c") -> Path:
    """27 clips of 2..4 steps; the face says the class, the context says nothing."""
    rng = np.random.default_rng(0)
    faces = rng.random((3, 512))
    clips = []
    for i in range(27):
        n_frames = int(rng.integers(2, 5))  # not by class: length alone would tell it
        noise = rng.random((n_frames, 512))
        clips.append(
            clip_features(
                f"{prefix}{i:02}",
                n_frames=n_frames,
                label=CLASSES[i % 3],
                split=("train", "train", "val", "test")[i // 3 % 4],
                subject=f"s{i % 5}",
                face_vector=(2 * faces[i % 3] + noise).astype(np.float16),
            )
        )
    return write_store(path, clips, classes=CLASSES, fingerprint=fingerprint)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def runs(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of two heads, trained once for the tests that only look."""
    folder = tmp_path_factory.mktemp("runs")
    fit_runs([store], folder, ["face", "caca-a"], [0, 1], QUICK)
    return folder


def test_a_run_folder_holds_exactly_the_five_files(runs: Path) -> None:
    paths = find_runs(runs)
    assert len(paths) == 4
    for path in paths:
        assert sorted(file.name for file in path.iterdir()) == sorted(RUN_FILES)
    assert not list(runs.glob(".*"))


def test_the_summary_is_what_metrics_json_holds(store: Path, runs: Path) -> None:
    (summary,) = fit_runs([store], runs, ["face"], [1], QUICK)
    assert asdict(summary) == json.loads((runs / summary.run / "metrics.json").read_text())
    assert set(asdict(summary)) == {
        *("run", "head", "seed", "n_parameters", "best_epoch", "val", "test")
    }
    assert (summary.head, summary.seed) == ("face", 1)
    assert 1 <= summary.best_epoch <= 3
    low, high = summary.val["intervals"]["acc"]
    assert low <= summary.val["acc"] <= high


def test_metrics_follow_from_the_predictions(store: Path, runs: Path) -> None:
    run = read_run(find_runs(runs)[0])
    table = run.predictions
    assert list(table.columns) == [
        *("clip_id", "split", "label", "predicted", "p_happy", "p_sad", "p_angry")
    ]
    for split, told in (("val", run.summary.val), ("test", run.summary.test)):
        part = table[table["split"] == split]
        scores = part[["p_happy", "p_sad", "p_angry"]].to_numpy()
        np.testing.assert_allclose(scores.sum(1), 1, atol=1e-6)
        labels = np.array([CLASSES.index(label) for label in part["label"]])
        subjects = part["clip_id"].map(open_store(store).clips.set_index("clip_id")["subject"])
        expected = summarise_metrics(labels, scores, subjects.tolist())
        assert set(told) == set(expected)
        assert told["map_rank"] == pytest.approx(expected["map_rank"])
        for name in ("confusion", "per_class", "intervals"):
            assert told[name] == expected[name]
        assert told["n_never_predicted"] == 3 - part["predicted"].nunique()


def test_the_best_epoch_is_the_best_row_of_the_history(runs: Path) -> None:
    for path in find_runs(runs):
        run = read_run(path)
        assert run.history["epoch"].tolist() == [1, 2, 3]
        ranks = list(
            zip(
                run.history["val_map_mec"],
                run.history["val_acc"],
                -run.history["val_loss"],
                strict=True,
            )
        )
        assert ranks.index(max(ranks)) + 1 == run.summary.best_epoch
        assert max(ranks)[0] == pytest.approx(run.summary.val["map_mec"])


def test_weights_load_into_the_plain_head_and_give_the_predictions(store: Path, runs: Path) -> None:
    clip = next(clip for clip in open_store(store) if clip.split == "test")
    for path in find_runs(runs):
        run = read_run(path)
        head = build_head(run.config["head"], 3)
        weights = {n: torch.from_numpy(w) for n, w in load_file(run.weights_path).items()}
        head.load_state_dict(weights)
        assert run.summary.n_parameters == sum(w.numel() for w in weights.values())
        context = torch.from_numpy(clip.context_2x2).flatten(1)[None].float()  # [1, T, 2048]
        face = torch.from_numpy(clip.face_vector)[None].float()  # [1, T, 512]
        scores = head(context, face, torch.tensor([clip.n_frames])).softmax(-1)[0]
        row = run.predictions.set_index("clip_id").loc[clip.clip_id]
        told = [row[f"p_{name}"] for name in CLASSES]
        np.testing.assert_allclose(told, scores.detach(), atol=1e-5)


def test_a_complete_run_is_skipped_and_said(store: Path, runs: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in runs.rglob("*")}
    events: list[FitProgress] = []
    fit_runs([store], runs, ["face", "caca-a"], [0, 1], QUICK, progress=events.append)
    assert [(e.head, e.seeds, e.state) for e in events] == [
        ("face", (0, 1), "skipped"),
        ("caca-a", (0, 1), "skipped"),
    ]
    assert {file: file.stat().st_mtime_ns for file in runs.rglob("*")} == before


def test_the_same_seed_gives_the_same_run_anywhere(store: Path, runs: Path, tmp_path: Path) -> None:
    copy = planted_store(tmp_path / "store")
    fit_runs([copy], tmp_path / "runs", ["face", "caca-a"], [0, 1], QUICK)
    assert [p.name for p in find_runs(tmp_path / "runs")] == [p.name for p in find_runs(runs)]
    for one, other in zip(find_runs(runs), find_runs(tmp_path / "runs"), strict=True):
        for name in ("predictions.csv", "history.csv", "metrics.json", "weights.safetensors"):
            assert (one / name).read_bytes() == (other / name).read_bytes()


@pytest.mark.parametrize("head", ["face", "caca-a"])
def test_seeds_side_by_side_equal_single_runs(
    head: str, store: Path, runs: Path, tmp_path: Path
) -> None:
    for seed in (0, 1):
        (alone,) = fit_runs([store], tmp_path, [head], [seed], QUICK)
        one, other = read_run(tmp_path / alone.run), read_run(runs / alone.run)
        pd.testing.assert_frame_equal(one.predictions, other.predictions, rtol=1e-3, atol=1e-5)
        pd.testing.assert_frame_equal(one.history, other.history, rtol=1e-3, atol=1e-5)


def test_a_face_head_learns_what_faces_say_and_a_context_head_does_not(
    store: Path, tmp_path: Path
) -> None:
    config = FitConfig(epochs=25, min_updates=0, batch_size=6, lr=1e-3, select="acc")
    face, context = fit_runs([store], tmp_path, ["face", "context"], [0], config)
    assert face.test["acc"] == 1.0
    assert context.test["acc"] < 0.9


def test_the_submitted_preset_trains_on_25088_context_values(store: Path, tmp_path: Path) -> None:
    preset = PRESETS["submitted"]
    config = parse_settings(["epochs=1", "min_updates=0"], preset.config)
    (summary,) = fit_runs([store], tmp_path, ["caca"], [0], config)
    weights = load_file(read_run(tmp_path / summary.run).weights_path)
    assert weights["encode.context.weight"].shape == (128, 25088)


def test_a_head_asking_for_maps_that_the_store_lacks_is_refused_with_the_remedy(
    store: Path, tmp_path: Path
) -> None:
    message = "head conv2d3d reads face maps, .* Run extract with --face-map into a new store"
    with pytest.raises(ConfigError, match=message):
        fit_runs([store], tmp_path, PRESETS["submitted"].heads, [0], QUICK)
    assert not list(tmp_path.iterdir())


def test_a_head_asking_for_a_stream_that_the_store_lacks_is_told_what_it_has(
    store: Path, tmp_path: Path
) -> None:
    config = replace(QUICK, streams="audio,face")
    with pytest.raises(ConfigError, match=r"stream 'audio', .* It has: context, face\."):
        fit_runs([store], tmp_path, ["cascade"], [0], config)


def test_settings_of_other_heads_do_not_rename_a_run(store: Path, runs: Path) -> None:
    before = find_runs(runs)
    config = replace(QUICK, members="face,context")
    fit_runs([store], runs, ["face", "caca-a"], [0, 1], config)
    assert find_runs(runs) == before


def test_patience_ends_a_run_and_the_others_go_on(store: Path, tmp_path: Path) -> None:
    config = FitConfig(epochs=20, min_updates=0, batch_size=4, patience=0.1, lr=1e-3)
    fit_runs([store], tmp_path, ["face"], [0, 1, 2], config)
    for path in find_runs(tmp_path):
        run = read_run(path)
        assert len(run.history) == min(run.summary.best_epoch + 2, 20)


def test_val_is_scored_as_often_as_asked(store: Path, tmp_path: Path) -> None:
    config = FitConfig(epochs=7, min_updates=0, max_scorings=3, patience=1.0)
    fit_runs([store], tmp_path, ["face"], [0], config)
    history = read_run(find_runs(tmp_path)[0]).history
    assert history.loc[history["val_loss"].notna(), "epoch"].tolist() == [3, 6, 7]


def test_stores_of_one_fingerprint_train_together(store: Path, tmp_path: Path) -> None:
    more = planted_store(tmp_path / "more", prefix="d")
    fit_runs([store, more], tmp_path / "runs", ["face"], [0], QUICK)
    run = read_run(find_runs(tmp_path / "runs")[0])
    assert run.config["store"]["splits"]["train"]["n_clips"] == 30
    assert len(run.predictions) == 24


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        pytest.param({"fingerprint": "other", "prefix": "d"}, "fingerprint other", id="made other"),
        pytest.param({"prefix": "c"}, "clip c00: stands in two of the stores", id="clip twice"),
    ],
)
def test_stores_that_do_not_fit_are_refused(
    changed: dict[str, str], message: str, store: Path, tmp_path: Path
) -> None:
    other = planted_store(tmp_path / "other", **changed)
    with pytest.raises(ConfigError, match=message):
        fit_runs([store, other], tmp_path / "runs", ["face"], [0], QUICK)
    assert not (tmp_path / "runs").exists()


def test_a_loss_that_is_not_a_number_ends_in_advice(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_losses(monkeypatch, dropout=QUICK.dropout)
    with pytest.raises(RunError, match=r"loss is nan in epoch 1\. Try a smaller step"):
        fit_runs([store], tmp_path / "runs", ["face"], [0], QUICK)
    assert find_runs(tmp_path / "runs") == []


def test_without_labels_in_test_there_are_predictions_but_no_metrics(tmp_path: Path) -> None:
    clips = [
        clip_features(f"c{i}", label="" if split == "test" else CLASSES[i % 3], split=split)
        for i, split in enumerate(["train"] * 4 + ["val"] * 3 + ["test"] * 2)
    ]
    path = write_store(tmp_path / "store", clips, classes=CLASSES, fingerprint="test")
    (summary,) = fit_runs([path], tmp_path / "runs", ["face"], [0], QUICK)
    assert summary.test == {}
    predictions = read_run(tmp_path / "runs" / summary.run).predictions
    assert predictions.loc[predictions["split"] == "test", "label"].tolist() == ["", ""]


def test_a_store_without_test_clips_gives_no_test_metrics(tmp_path: Path) -> None:
    clips = [
        clip_features(f"c{i}", label=CLASSES[i % 3], split=split)
        for i, split in enumerate(["train"] * 4 + ["val"] * 3)
    ]
    path = write_store(tmp_path / "store", clips, classes=CLASSES, fingerprint="test")
    (summary,) = fit_runs([path], tmp_path / "runs", ["face"], [0], QUICK)
    assert summary.test == {}
    predictions = read_run(tmp_path / "runs" / summary.run).predictions
    assert predictions["split"].tolist() == ["val"] * 3


def test_subjects_in_two_splits_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clips = [
        clip_features(f"{split}{i}", split=split, subject=subject)
        for split in ("train", "val")
        for i, subject in enumerate(["ann", "bo", "", split])
    ]
    check_stores([open_store(write_store(tmp_path, clips, classes=CLASSES, fingerprint="test"))])
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "2 subject(s) stand in more than one split: ann, bo." in record.getMessage()


@pytest.mark.parametrize("head", NETWORKS)
def test_just_the_matrices_that_a_head_reads_are_asked_for(head: str) -> None:
    built = build_head(head, 3, context="7x7")
    matrices = find_matrices([head], FitConfig(context="7x7"))
    assert ("context_7x7" in matrices) == ("context" in built.streams)
    assert matrices == set(choose_streams(head, context="7x7").values())
    assert built.streams == tuple(choose_streams(head))


def test_an_interrupt_leaves_no_half_run_and_training_goes_on_later(
    store: Path, tmp_path: Path
) -> None:
    def interrupt(told: FitProgress) -> None:
        if told.state == "training" and told.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_runs([store], tmp_path, ["face"], [0, 1], QUICK, progress=interrupt)
    assert find_runs(tmp_path) == []
    assert len(fit_runs([store], tmp_path, ["face"], [0, 1], QUICK)) == 2


def test_a_config_that_lacks_a_part_is_named(store: Path, tmp_path: Path) -> None:
    (summary,) = fit_runs([store], tmp_path, ["face"], [0], QUICK)
    file = tmp_path / summary.run / "config.json"
    config = json.loads(file.read_text())
    del config["store"]
    file.write_text(json.dumps(config))
    with pytest.raises(RunError, match=r"config\.json: lacks store\. Copy the folder again"):
        fit_runs([store], tmp_path, ["face"], [0], QUICK)


def test_a_damaged_run_folder_is_named(store: Path, tmp_path: Path) -> None:
    (summary,) = fit_runs([store], tmp_path, ["face"], [0], QUICK)
    (tmp_path / summary.run / "history.csv").unlink()
    with pytest.raises(RunError, match=r"history\.csv missing\. Copy the run again"):
        fit_runs([store], tmp_path, ["face"], [0], QUICK)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        pytest.param("lr", "expected KEY=VALUE", id="no value"),
        pytest.param("rate=1", "Known settings: faces, context, streams", id="unknown key"),
        pytest.param("lr=fast", "expected a number, for example 0.0001", id="wrong type"),
        pytest.param("epochs=0", "out of range. The default is 30", id="out of range"),
        pytest.param("faces=some", "expected all, largest, track", id="not a choice"),
    ],
)
def test_a_wrong_setting_is_explained(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_settings([setting], FitConfig())


def test_settings_change_a_presets_config() -> None:
    config = parse_settings(["lr=3e-4", "faces=track"], PRESETS["table1"].config)
    assert (config.lr, config.faces, config.context) == (3e-4, "track", "2x2")


def test_an_unknown_head_is_explained(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'cacao', expected face, context"):
        fit_runs([store], tmp_path, ["cacao"], [0], QUICK)
