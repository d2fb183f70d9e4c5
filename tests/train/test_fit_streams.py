"""fit and sweep on any streams of a store, standardised or not, from the store to the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from sklearn.preprocessing import StandardScaler

from cli import cli
from features.contracts import ClipFeatures
from features.errors import ConfigError
from features.store.reader import open_store
from features.store.shard_format import StreamHeader
from tests.fits import fit_folds, fit_runs
from tests.train.streams import (
    AUDIO,
    DINO,
    make_clip,
    write_neither,
    write_other_context,
    write_streams,
)
from train.config import FitConfig
from train.data.store_streams import choose_matrices
from train.data.stores import read_tables
from train.report.report import run_report
from train.runs.folder import DamagedRunError, find_runs, read_run
from train.runs.weights import read_head
from train.streams import NETWORKS
from train.sweep.batches import Sweep
from train.sweep.space import parse_grid
from train.sweep.sweep import run_sweep
from train.training.scoring import score_clips

POSE = StreamHeader(name="pose", rows="frame", size=384, fingerprint="b" * 64, encoder={})
QUICK = FitConfig(epochs=2, min_updates=0, batch_size=4, patience=1.0, precision="float32")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Streams of 3 and 384 values a frame, and of 5 a face; a fourth of the clips has no face."""
    return write_streams(tmp_path_factory.mktemp("streams") / "store", AUDIO, DINO, POSE)


def fit_one(store: Path, runs: Path, head: str, **settings: object) -> Path:
    (summary,) = fit_runs([store], runs, [head], [0], replace(QUICK, **settings))
    return runs / summary.run


@pytest.mark.parametrize(
    ("head", "streams"),
    [
        pytest.param(head, streams, id=f"{head} {streams}")
        for head in NETWORKS
        for streams in {
            "face": ["audio", "dino", "pose"],
            "context": ["dino"],
            "conv2d3d": ["context"],
        }.get(head, ["audio,dino", "pose,dino,audio"])
    ],
)
def test_every_head_trains_on_the_streams_it_is_told(
    head: str, streams: str, store: Path, tmp_path: Path
) -> None:
    run = read_run(fit_one(store, tmp_path, head, streams=streams, context="2x2"))
    assert ",".join(run.config["streams"]) == streams
    assert run.config["settings"]["streams"] == streams
    assert len(run.predictions) == 12  # val and test, clips without a face among them
    assert np.isfinite(run.predictions.filter(regex="^p_").to_numpy()).all()
    assert run.history["train_loss"].notna().all()


def test_a_run_tells_its_streams_with_their_fingerprints(store: Path, tmp_path: Path) -> None:
    run = read_run(fit_one(store, tmp_path, "cascade", streams="context,audio,dino"))
    assert run.config["streams"] == {
        "context": {"matrix": "context_2x2", "shape": [512, 2, 2]},
        "audio": {"matrix": "audio", "shape": [3], "rows": "frame", "fingerprint": "a" * 64},
        "dino": {"matrix": "dino", "shape": [5], "rows": "face", "fingerprint": "d" * 64},
    }


def test_a_label_in_an_added_stream_is_found_there_and_nowhere_else(tmp_path: Path) -> None:
    clips: list[ClipFeatures] = []
    for number in range(140):
        clip = make_clip(number, DINO)
        if number % 3 == 0 or clip.n_faces == 0:
            continue  # a phase without a face tells nothing
        sign = np.float16(1 if clip.label == "happy" else -1)
        split = ("train", "train", "val", "test")[len(clips) % 4]
        dino = {"dino": clip.face_streams["dino"] * sign}
        clips.append(replace(clip, split=split, face_streams=dino))
    path = write_streams(tmp_path / "s", DINO, clips=clips)
    settings = {"epochs": 20, "lr": 3e-3}
    told = read_run(fit_one(path, tmp_path / "runs", "face", streams="dino", **settings))
    assert told.summary.test["acc"] == 1.0
    own = read_run(fit_one(path, tmp_path / "runs", "face", **settings))
    assert own.summary.test["acc"] < 0.9


@pytest.mark.parametrize("head", ["face", "concatenated", "caca-a"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_standardised_run_scores_the_same_when_it_is_loaded_again(
    head: str, precision: str, store: Path, tmp_path: Path
) -> None:
    streams = "pose" if head == "face" else "pose,dino"
    settings = {"streams": streams, "precision": precision, "standardise": "on"}
    run = read_run(fit_one(store, tmp_path, head, **settings))
    config = replace(QUICK, **settings)
    opened = open_store(store)
    tables = read_tables([opened], config, choose_matrices([head], config, [opened]))
    found = score_clips(read_head(run), tables["val"], config.choose_streams(head))
    expected = run.predictions[run.predictions["split"] == "val"].filter(regex="^p_")
    np.testing.assert_allclose(found, expected.to_numpy(), atol=1e-6)
    weights = load_file(run.weights_path)
    train = [clip for clip in opened if clip.split == "train"]
    scaler = StandardScaler().fit(np.concatenate([c.streams["pose"] for c in train]).astype(float))
    np.testing.assert_allclose(weights["standardise.pose.mean"], scaler.mean_, rtol=1e-6)
    np.testing.assert_allclose(weights["standardise.pose.deviation"], scaler.scale_, rtol=1e-6)


def test_a_standardised_run_is_what_standardised_features_give(store: Path, tmp_path: Path) -> None:
    """From values on any scale the same run as from those that a user has put on one."""
    train = [clip.streams["pose"] for clip in open_store(store) if clip.split == "train"]
    scaler = StandardScaler().fit(np.concatenate(train).astype(float))
    scaled = [
        replace(
            clip,
            streams={"pose": scaler.transform(clip.streams["pose"].astype(float)).astype("f2")},
            face_streams={},
        )
        for clip in open_store(store).iter_clips(context_7x7=True)
    ]
    other = write_streams(tmp_path / "scaled", POSE, clips=scaled)
    runs = [
        read_run(fit_one(store, tmp_path / "a", "context", streams="pose", standardise="on")),
        read_run(fit_one(other, tmp_path / "b", "context", streams="pose")),
    ]
    one, two = (run.predictions.filter(regex="^p_").to_numpy() for run in runs)
    np.testing.assert_allclose(one, two, atol=2e-3)  # float16's rounding of what was stored
    plain = read_run(fit_one(store, tmp_path / "c", "context", streams="pose"))
    assert np.abs(plain.predictions.filter(regex="^p_").to_numpy() - two).max() > 0.01


def test_standardised_seeds_side_by_side_equal_single_runs(store: Path, tmp_path: Path) -> None:
    config = replace(QUICK, standardise="on", streams="dino,audio")
    fit_runs([store], tmp_path / "both", ["parallel"], [0, 1], config)
    for path in find_runs(tmp_path / "both"):
        run = read_run(path)
        fit_runs([store], tmp_path / "one", ["parallel"], [run.summary.seed], config)
        alone = read_run(tmp_path / "one" / path.name)
        pd.testing.assert_frame_equal(alone.predictions, run.predictions, rtol=1e-3, atol=1e-5)


def test_a_standardised_run_is_scored_again_with_the_statistics_it_learned_with(
    store: Path, tmp_path: Path
) -> None:
    settings = {"streams": "pose", "standardise": "on"}
    path = fit_one(store, tmp_path / "runs", "face", **settings)
    before = load_file(path / "weights.safetensors")
    clips = [
        replace(clip, source="film") for clip in open_store(store).iter_clips(context_7x7=True)
    ]
    other = write_streams(tmp_path / "other", AUDIO, DINO, POSE, clips=clips)
    states = []
    fit_runs(
        [other],
        tmp_path / "runs",
        ["face"],
        [0],
        replace(QUICK, **settings),
        progress=lambda told: states.append(told.state),
    )
    assert states == ["scored"]
    after = load_file(path / "weights.safetensors")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    fresh = read_run(fit_one(other, tmp_path / "fresh", "face", **settings))
    assert read_run(path).summary == fresh.summary


def test_folds_measure_their_own_train_clips(store: Path, tmp_path: Path) -> None:
    config = replace(QUICK, standardise="on", streams="audio")
    result = fit_folds([store], tmp_path, ["face"], [0], config, folds="2")
    means = [
        load_file(tmp_path / run.run / "weights.safetensors")["standardise.audio.mean"]
        for run in result.runs
    ]
    assert len(means) == 2
    assert not torch.equal(*means)
    assert result.pooled[0].test["n_clips"] == 24


def test_weights_of_other_streams_are_refused_by_name(store: Path, tmp_path: Path) -> None:
    path = fit_one(store, tmp_path, "face", streams="audio")
    config = json.loads((path / "config.json").read_text())
    config["streams"]["audio"]["shape"] = [4]
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DamagedRunError, match=r"weights\.safetensors: not the weights that config"):
        read_head(read_run(path))


def test_the_same_run_from_disk_as_from_memory(store: Path, tmp_path: Path) -> None:
    config = replace(QUICK, standardise="on", streams="dino,pose", precision="bfloat16")
    for name, memory_gb in (("memory", 1.0), ("disk", 0.0)):
        fit_runs([store], tmp_path / name, ["caca-a"], [0, 1], config, memory_gb=memory_gb)
    for path in find_runs(tmp_path / "memory"):
        for file in ("weights.safetensors", "predictions.csv", "history.csv"):
            assert (path / file).read_bytes() == (tmp_path / "disk" / path.name / file).read_bytes()


def test_stores_train_together_where_what_is_read_is_the_same(store: Path, tmp_path: Path) -> None:
    headers = [AUDIO, replace(DINO, fingerprint="o" * 64)]  # and no pose
    clips = [make_clip(number, *headers, prefix="d") for number in range(12)]
    other = write_streams(tmp_path / "other", *headers, clips=clips)
    config = replace(QUICK, streams="context,audio")
    (summary,) = fit_runs([store, other], tmp_path / "runs", ["caca-a"], [0], config)
    assert len(read_run(tmp_path / "runs" / summary.run).predictions) == 18
    for streams, message in (
        ("context,dino", "the stream dino has the fingerprint oooooooooooo"),
        ("context,pose", "other: head caca-a reads the stream 'pose', which the store does not"),
    ):
        with pytest.raises(ConfigError, match=message):
            fit_runs(
                [store, other], tmp_path / "no", ["caca-a"], [0], replace(QUICK, streams=streams)
            )
    assert not (tmp_path / "no").exists()


def test_another_version_of_a_stream_is_another_run_and_another_sweep(
    store: Path, tmp_path: Path
) -> None:
    clips = list(open_store(store).iter_clips(context_7x7=True))
    headers = [replace(AUDIO, fingerprint="o" * 64), DINO, POSE]
    other = write_streams(tmp_path / "other", *headers, clips=clips)
    runs = tmp_path / "runs"
    for path in (store, other):
        for streams in ("audio", "dino"):
            config = replace(QUICK, streams=streams)
            fit_runs([path], runs, ["face"], [0], config)
            sweep = Sweep(head="face", config=config, space=parse_grid(["lr=1e-3"], config))
            run_sweep([path], runs, sweep, [])
    assert len(find_runs(runs)) == 3
    assert len(list(runs.glob("sweep-*"))) == 3


def call(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(cli, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


SMALL = ("--set", "epochs=1", "--set", "min_updates=0", "--seeds", "1")


def test_the_preset_of_table_1_takes_streams_for_the_heads_that_read_several(
    store: Path, tmp_path: Path
) -> None:
    fit = ("fit", "--store", store, "--runs", tmp_path, "--streams", "context,audio,dino", *SMALL)
    assert "not read by face, context (expected one stream)" in call(*fit).stderr
    read = {run.name.rsplit("-", 2)[0]: list(read_run(run).config["streams"])
            for run in find_runs(tmp_path)}  # fmt: skip
    three = ["context", "audio", "dino"]
    assert read == {"face": ["face"], "context": ["context"]} | dict.fromkeys(
        ("parallel", "concatenated", "caca-a", "caca-b"), three
    )


def test_the_option_and_the_setting_are_one(store: Path, tmp_path: Path) -> None:
    fit = ("fit", "--store", store, "--runs", tmp_path, "--head", "cascade", *SMALL)
    call(*fit, "--streams", "context,audio")
    call(*fit, "--set", "streams=context,audio")
    assert len(find_runs(tmp_path)) == 1


def test_a_sweep_takes_streams_and_tries_them(store: Path, tmp_path: Path) -> None:
    sweep = ("sweep", "--store", store, "--runs", tmp_path, *SMALL, "--json")
    told = json.loads(
        call(
            *sweep, "--head", "caca-b", "--streams", "dino,audio", "--grid", "standardise=off,on"
        ).stdout
    )
    assert sorted(trial["standardise"] for trial in told["trials"]) == ["off", "on"]
    assert list(read_run(tmp_path / told["runs"][0]["run"]).config["streams"]) == ["dino", "audio"]
    told = json.loads(
        call(*sweep, "--head", "context", "--grid", "streams=context,audio,dino").stdout
    )
    assert [trial["streams"] for trial in told["trials"]] == ["context", "audio", "dino"]


@pytest.mark.parametrize(
    ("grid", "streams", "message"),
    [
        ("streams=audio,pose2", "own", "reads the stream 'pose2'"),
        ("lr=1e-3", "audio,dino", "expected one stream, for face"),
    ],
)
def test_a_sweep_of_streams_that_are_not_there_is_refused_before_the_first_trial(
    grid: str, streams: str, message: str, store: Path, tmp_path: Path
) -> None:
    config = replace(QUICK, streams=streams)
    with pytest.raises(ConfigError, match=message):
        run_sweep(
            [store],
            tmp_path / "runs",
            Sweep(head="face", config=config, space=parse_grid([grid], config)),
            [],
        )
    assert not (tmp_path / "runs").exists()


def read_table(out: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(out / "tables" / f"{name}.csv", dtype=str, keep_default_na=False)


def fit_for_report(store: Path, runs: Path, heads: Sequence[str], **settings: object) -> None:
    fit_runs([store], runs, heads, [0], replace(QUICK, epochs=1, **settings))


def test_the_report_tells_streams_that_are_not_the_heads_own(store: Path, tmp_path: Path) -> None:
    runs, out = tmp_path / "runs", tmp_path / "out"
    fit_for_report(store, runs, ["face", "caca-a"])
    fit_for_report(store, runs, ["face"], streams="dino", standardise="on")
    fit_for_report(store, runs, ["cascade", "caca-a"], streams="context,audio,dino")
    run_report(runs, out)
    table = read_table(out, "table1")
    assert table[["Model", "mAP (paper)"]].to_numpy().tolist() == [
        ["Face-RNN", "38.87"],
        ["Face-RNN (dino)-2", "–"],
        ["CACA-RNN A", "40.73"],
        ["CACA-RNN A (context, audio, dino)-2", "–"],
        ["Cascade (context, audio, dino)", "–"],
    ]
    settings = read_table(out, "settings").set_index("Setting")
    assert settings.loc["streams", "face-2"] == "dino"
    assert settings.loc["standardise", "face-2"] == "on"
    text = (out / "report.md").read_text()
    assert "--head face --streams dino --set standardise=on" in text.replace(
        "--set precision=float32 ", ""
    ).replace("--set epochs=1 ", "").replace("--set batch_size=4 ", "").replace(
        "--set min_updates=0 ", ""
    ).replace("--set patience=1.0 ", "")


def test_the_reports_command_for_an_ensemble_names_streams_only_where_some_were(
    store: Path, tmp_path: Path
) -> None:
    for streams in ("own", "audio,dino"):
        runs, out = tmp_path / f"runs {streams}", tmp_path / f"out {streams}"
        fit_for_report(store, runs, ["ensemble"], members="face,caca-b", streams=streams)
        run_report(runs, out)
        (command,) = [
            line
            for line in (out / "report.md").read_text().splitlines()
            if line.startswith("python cli.py fit") and "--head ensemble" in line
        ]
        assert ("--streams audio,dino" in command) == (streams != "own")
        title = "CACA-RNN B" if streams == "own" else "CACA-RNN B (audio, dino)"
        assert read_table(out, "table1")["Model"].tolist()[-1] == f"Face-RNN + {title}"


def test_the_submitted_head_trains_on_another_encoders_context(tmp_path: Path) -> None:
    path = write_other_context(tmp_path / "s", 12)
    run = read_run(fit_one(path, tmp_path / "runs", "caca"))
    assert load_file(run.weights_path)["encode.context.weight"].shape == (128, 6)
    assert run.config["streams"]["context"]["fingerprint"] == "c" * 64
    assert read_head(run).streams == ("context", "face")


def test_the_submitted_head_trains_where_encoders_took_the_place_of_both_cnns(
    tmp_path: Path,
) -> None:
    run = read_run(fit_one(write_neither(tmp_path / "s", 12), tmp_path / "runs", "caca"))
    weights = load_file(run.weights_path)
    assert weights["encode.context.weight"].shape == (128, 6)
    assert weights["encode.face.weight"].shape == (128, 7)
    assert run.config["streams"]["face"]["fingerprint"] == "f" * 64
