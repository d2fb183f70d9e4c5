"""Runs trained side by side: each gets what training it alone gives, with its own settings."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.builders import clip_features
from tests.train.training.losses import spoil_losses
from train.config import FitConfig
from train.data.batches import draw_clips
from train.data.clips import UNLABELLED, ClipTable, TableBuilder
from train.heads.dropout import Noise
from train.metrics import score_predictions
from train.streams import MATRICES
from train.training.loop import Task, TrainedRun, train_runs
from train.training.loss import make_losses, weigh_classes
from train.training.scoring import score_clips
from train.training.specs import RunSpec, group_specs

CLASSES = ("happy", "sad", "angry")
CONFIG = FitConfig(
    epochs=4, min_updates=0, batch_size=4, lr=1e-3, patience=1.0, precision="float32", context="2x2"
)
MIXED = (
    {"lr": 3e-4},
    {"dropout": 0.4},
    {"dropout": 0.2, "label_smoothing": 0.1},
    {"class_weights": "balanced", "sampling": "balanced", "patience": 0.2, "select": "acc"},
)
"""Settings of runs that train together, each different from the others."""


def make_table(n_clips: int, split: str) -> ClipTable:
    """Clips of 2..9 steps and two phases; of the classes 4 : 2 : 1."""
    rng = np.random.default_rng(len(split))
    matrices = {name: MATRICES[name] for name in ("face", "context_2x2")}
    builder = TableBuilder(n_frames=500, n_faces=500, matrices=matrices, dtype=torch.float16)
    for i in range(n_clips):
        n_frames = 2 * int(rng.integers(2, 10))
        phase = np.arange(n_frames, dtype=np.int16) % 2
        clip = clip_features(f"{split}{i:02}", n_frames=n_frames, phase=phase)
        label = (0, 1, 0, 2, 0, 1, 0)[i % 7]
        builder.add(clip, label, faces="all", max_time_steps=0)
    return builder.finish()


TRAIN, VAL = make_table(21, "train"), make_table(14, "val")


def make_task(head: str = "caca-a", config: FitConfig = CONFIG) -> Task:
    return Task(
        head=head,
        classes=CLASSES,
        train=TRAIN,
        val=VAL,
        config=config,
        matrices=MATRICES,
        device="cpu",
    )


def score_val(task: Task, run: TrainedRun) -> np.ndarray:
    head = task.build_head()
    head.load_state_dict(dict(run.state))
    return score_clips(head, task.val, task.streams)


def ignore(epoch: int, runs: Sequence[TrainedRun]) -> None:
    """Of each epoch."""


@pytest.mark.parametrize("head", ["parallel", "caca-a"])
def test_runs_with_their_own_settings_equal_single_runs(head: str) -> None:
    task = make_task(head)
    specs = [RunSpec(seed=i // 2, config=replace(CONFIG, **own)) for i, own in enumerate(MIXED)]
    together = train_runs(task, specs, ignore)
    lengths = {len(run.history) for run in together}
    assert len(lengths) > 1, "no run ended before the others"
    for spec, run in zip(specs, together, strict=True):
        (alone,) = train_runs(task, [spec], ignore)
        assert (alone.best_epoch, len(alone.history)) == (run.best_epoch, len(run.history))
        for one, other in zip(alone.history, run.history, strict=True):
            assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)
        found, expected = score_val(task, run), score_val(task, alone)
        np.testing.assert_allclose(found, expected, atol=1e-4)
        first, second = np.sort(expected, 1)[:, :-3:-1].T
        clear = first - second > 1e-4  # not a tie
        assert clear.any()
        np.testing.assert_array_equal(found.argmax(1)[clear], expected.argmax(1)[clear])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_val_is_scored_in_the_precision_of_training(precision: str) -> None:
    task = make_task("face", replace(CONFIG, precision=precision, epochs=1))
    runs = train_runs(task, [RunSpec(seed=seed, config=task.config) for seed in range(4)], ignore)
    from_float32 = []
    for run in runs:
        head = task.build_head()
        head.load_state_dict(dict(run.state))
        scores = score_clips(head, VAL, task.streams, precision="float32")
        val = run.history[0].val
        assert val is not None
        from_float32.append(abs(score_predictions(VAL.label, scores).loss - val.loss))
    assert max(from_float32) < 0.02
    assert (max(from_float32) > 1e-5) == (precision == "bfloat16")


@pytest.mark.parametrize("own", [{"lr": 3e-3}, *MIXED[1:]], ids=str)
def test_each_setting_changes_what_a_run_learns(own: dict[str, object]) -> None:
    changed = RunSpec(seed=0, config=replace(CONFIG, **own))  # type: ignore[arg-type]
    task = make_task("face")
    plain, other = train_runs(task, [RunSpec(seed=0, config=CONFIG), changed], ignore)
    assert [e.train_loss for e in plain.history] != [e.train_loss for e in other.history]


def test_runs_that_the_callback_returns_end_and_keep_what_they_have() -> None:
    def drop_first(epoch: int, runs: Sequence[TrainedRun]) -> Collection[TrainedRun]:
        return runs[:1] if epoch == 2 else ()

    specs = [RunSpec(seed=seed, config=CONFIG) for seed in (0, 1)]
    dropped, kept = train_runs(make_task("face"), specs, drop_first)
    assert (len(dropped.history), len(kept.history)) == (2, 4)
    assert dropped.state
    assert dropped.best_epoch in (1, 2)


def test_a_loss_that_is_not_a_number_ends_its_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_losses(monkeypatch, dropout=0.0)
    specs = [RunSpec(seed=i, config=replace(CONFIG, dropout=i * 0.2)) for i in (0, 1)]
    bad, good = train_runs(make_task("face"), specs, ignore)
    assert "seed 0: the loss is nan in epoch 1. Try a smaller step" in str(bad.error)
    assert (bad.state, good.error, len(good.history)) == ({}, None, CONFIG.epochs)


def test_settings_that_change_batches_make_groups() -> None:
    specs = [
        RunSpec(seed=0, config=CONFIG),
        RunSpec(seed=0, config=replace(CONFIG, batch_size=8)),
        RunSpec(seed=1, config=replace(CONFIG, lr=1e-4, dropout=0.5)),
        RunSpec(seed=2, config=CONFIG),
    ]
    assert group_specs(specs) == [[specs[0], specs[2], specs[3]], [specs[1]]]
    assert group_specs(specs, most=2) == [[specs[0], specs[2]], [specs[3]], [specs[1]]]
    with pytest.raises(ValueError, match="OWN_SETTINGS"):
        train_runs(make_task("face"), specs, ignore)


def test_losses_are_those_of_pytorch() -> None:
    rng = torch.Generator().manual_seed(0)
    logits, label = torch.randn(2, 6, 3, generator=rng), torch.tensor([[0, 1, 2, 0, 0, 1]] * 2)
    weighted = replace(CONFIG, class_weights="balanced", label_smoothing=0.1)
    found = make_losses([CONFIG, weighted], label[0].numpy(), 3, "cpu").average(logits, label)
    weight = torch.tensor(weigh_classes(label[0].numpy(), 3), dtype=torch.float32)
    expected = (
        cross_entropy(logits[0], label[0]),
        cross_entropy(logits[1], label[1], weight=weight, label_smoothing=0.1),
    )
    torch.testing.assert_close(found, torch.stack(expected))


def test_balanced_weights_make_every_class_count_alike() -> None:
    label = np.array([0, 0, 0, 0, 1, 1, 3])
    weight = weigh_classes(label, 4)
    sums = np.bincount(label, weights=weight[label], minlength=4)
    np.testing.assert_allclose(sums, [7 / 3, 7 / 3, 0, 7 / 3])


def test_balanced_sampling_shows_every_class_as_often() -> None:
    label = np.array([0] * 20 + [1] * 3 + [2] * 7 + [UNLABELLED])
    drawn = draw_clips(label, "balanced", seed=0, epoch=1)
    assert len(drawn) == 30
    assert np.bincount(label[drawn]).tolist() == [10, 10, 10]
    assert set(np.flatnonzero(label == 1)) <= set(drawn)  # a rare class's clips take turns
    assert len(set(drawn[label[drawn] == 0])) == 10  # and none repeats before its turn
    assert drawn.tolist() == draw_clips(label, "balanced", seed=0, epoch=1).tolist()
    assert drawn.tolist() != draw_clips(label, "balanced", seed=0, epoch=2).tolist()


def test_noise_of_real_steps_ignores_padding_and_neighbours() -> None:
    short = Noise([0.5], [7], 3, 2).drop(torch.ones(1, 4, 2, 8))
    long = Noise([0.1, 0.5], [1, 7], 3, 2).drop(torch.ones(2, 6, 2, 8))
    assert torch.equal(short[0], long[1, :4])
    assert set(short.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(short, Noise([0.5], [7], 3, 1).drop(torch.ones(1, 4, 2, 8)))


def test_noise_zeroes_at_its_rate_and_keeps_the_mean() -> None:
    dropped = Noise([0.3], [0], 1, 0).drop(torch.ones(1, 100, 1000))
    assert (dropped == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.01)
