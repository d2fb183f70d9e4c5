"""Which steps a head reads of a clip, and how clips become batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from features.contracts import ClipFeatures
from features.errors import ConfigError, ShardError
from tests.builders import clip_features
from train.data.batches import draw_phases, gather_batch, order_batches
from train.data.clips import (
    UNLABELLED,
    ClipTable,
    TableBuilder,
    check_train_table,
    check_val_table,
    choose_steps,
    number_label,
)
from train.streams import MATRICES

CLASSES = ("happy", "sad")
STREAMS = {"context": "context_2x2", "face": "face"}


def clip_with_faces(face_frame: list[int], track: list[int], n_frames: int = 3) -> ClipFeatures:
    return clip_features(
        n_frames=n_frames,
        n_faces=len(face_frame),
        face_frame=np.array(face_frame, np.int32),
        track=np.array(track, np.int32),
    )


def make_table(
    clips: list[ClipFeatures], *, faces: str = "all", max_time_steps: int = 0
) -> ClipTable:
    builder = TableBuilder(
        n_frames=sum(clip.n_frames for clip in clips),
        n_faces=sum(clip.n_faces for clip in clips),
        matrices={name: MATRICES[name] for name in ("context_2x2", "face")},
        dtype=torch.float16,
    )
    for clip in clips:
        builder.add(
            clip,
            number_label(clip.label, CLASSES, "test"),
            faces=faces,
            max_time_steps=max_time_steps,
        )
    return builder.finish()


@pytest.mark.parametrize(
    ("faces", "track", "context", "face"),
    [
        pytest.param("all", [0, 1, 1], [0, 0, 2], [0, 1, 2], id="all pairs each with its frame"),
        pytest.param("largest", [0, 1, 1], [0, 2], [0, 2], id="largest takes a frame's first"),
        pytest.param("track", [0, 1, 1], [0, 2], [1, 2], id="track follows the most seen"),
        pytest.param("track", [0, 1, 2], [0], [0], id="the earlier track among equals"),
        pytest.param("track", [-1, -1, -1], [0, 2], [0, 2], id="without tracks, largest"),
    ],
)
def test_faces_are_chosen_and_paired(
    faces: str, track: list[int], context: list[int], face: list[int]
) -> None:
    chosen_frame, chosen_face = choose_steps(clip_with_faces([0, 0, 2], track), 0, faces)
    assert (chosen_frame.tolist(), chosen_face.tolist()) == (context, face)


def test_a_clip_without_a_face_gives_one_zero_face_a_frame() -> None:
    table = make_table([clip_features(n_frames=3, n_faces=0)])
    batch = gather_batch(table, np.array([0]), np.array([0]), STREAMS)
    assert batch.n_steps.tolist() == [3]
    assert torch.all(batch.streams["face"] == 0)
    assert torch.all(batch.streams["context"].sum(-1) > 0)


def test_a_phase_without_a_face_gives_zero_faces_though_the_clip_has_some() -> None:
    clip = clip_features(n_frames=2, n_faces=1, phase=np.array([0, 1], np.int16))
    frame, face = choose_steps(clip, 1, "all")
    assert (frame.tolist(), face.tolist()) == ([1], [-1])


def test_each_phase_has_its_own_frames_and_evaluation_reads_the_first() -> None:
    clip = clip_features(n_frames=4, phase=np.array([0, 1, 0, 1], np.int16))
    table = make_table([clip])
    batch = gather_batch(table, np.array([0]), np.array([0]), STREAMS)
    expected = clip.context_2x2.reshape(4, -1)[[0, 2]]
    assert np.array_equal(batch.streams["context"][0].numpy(), expected)


def test_batches_are_padded_with_zeros_to_the_longest() -> None:
    table = make_table([clip_features("a", n_frames=2), clip_features("b", n_frames=4)])
    batch = gather_batch(table, np.array([0, 1]), np.array([0, 0]), STREAMS)
    assert batch.streams["context"].shape == (2, 4, 2048)
    assert batch.n_steps.tolist() == [2, 4]
    assert torch.all(batch.streams["context"][0, 2:] == 0)
    assert torch.all(batch.streams["face"][0, 2:] == 0)


def test_runs_side_by_side_get_their_own_clips() -> None:
    clips = [clip_features("a", label="happy"), clip_features("b", label="sad")]
    batch = gather_batch(
        make_table(clips), np.array([[0, 1], [1, 0]]), np.zeros((2, 2), int), STREAMS
    )
    assert batch.streams["face"].shape == (2, 2, 3, 512)
    assert torch.equal(batch.streams["face"][0, 0], batch.streams["face"][1, 1])
    assert batch.label.tolist() == [[0, 1], [1, 0]]


def test_the_table_does_not_depend_on_the_order_of_arrival() -> None:
    clips = [clip_features(name) for name in "abc"]
    one, other = make_table(clips), make_table(clips[::-1])
    assert one.clip_id == other.clip_id == ("a", "b", "c")
    for i in range(3):
        of_one, of_other = (
            gather_batch(t, np.array([i]), np.array([0]), STREAMS) for t in (one, other)
        )
        assert torch.equal(of_one.streams["face"], of_other.streams["face"])


def test_long_clips_are_cut_at_max_steps_from_the_start() -> None:
    table = make_table([clip_features(n_frames=5)], max_time_steps=2)
    batch = gather_batch(table, np.array([0]), np.array([0]), STREAMS)
    assert batch.n_steps.tolist() == [2]


def test_phases_change_from_epoch_to_epoch_and_repeat_with_the_seed() -> None:
    clips = [
        clip_features(f"c{i:02}", n_frames=5, phase=np.arange(5, dtype=np.int16)) for i in range(20)
    ]
    table = make_table(clips)
    first = draw_phases(table, seed=1, epoch=1)
    assert first.tolist() == draw_phases(table, seed=1, epoch=1).tolist()
    assert first.tolist() != draw_phases(table, seed=1, epoch=2).tolist()
    assert first.tolist() != draw_phases(table, seed=2, epoch=1).tolist()
    assert set(first) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("n_clips", [5, 32, 70, 4 * 16 * 3 + 7])
def test_every_clip_is_in_one_batch_of_every_epoch(n_clips: int) -> None:
    n_steps = np.random.default_rng(0).integers(1, 90, n_clips)
    batches = order_batches(n_steps, 4, seed=3, epoch=2)
    assert sorted(np.concatenate(batches)) == list(range(n_clips))
    assert {len(batch) for batch in batches[:-1]} <= {4}
    again = order_batches(n_steps, 4, seed=3, epoch=2)
    assert [b.tolist() for b in batches] == [b.tolist() for b in again]


def test_order_depends_on_seed_and_epoch() -> None:
    orders = {
        tuple(np.concatenate(order_batches(np.ones(20, int), 4, seed=seed, epoch=epoch)))
        for seed in (0, 1)
        for epoch in (1, 2)
    }
    assert len(orders) == 4


def test_in_a_large_set_clips_of_like_length_meet() -> None:
    n_steps = np.random.default_rng(0).integers(1, 200, 32 * 16)
    padded = sum(int(n_steps[b].max()) * len(b) for b in order_batches(n_steps, 32, 0, 1))
    assert padded < 1.15 * n_steps.sum()


def test_what_is_left_of_a_large_set_is_sorted_too() -> None:
    n_steps = np.random.default_rng(0).integers(1, 200, 32 * 20)
    left = order_batches(n_steps, 32, 0, 1)[16:]
    padded = sum(int(n_steps[b].max()) * len(b) for b in left)
    assert padded < 1.4 * n_steps[np.concatenate(left)].sum()


def test_the_smaller_batch_at_the_end_of_an_epoch_has_clips_of_any_length() -> None:
    n_steps = np.random.default_rng(0).integers(1, 200, 32 * 22 + 8)
    last = [order_batches(n_steps, 32, 0, epoch)[-1] for epoch in range(1, 41)]
    assert {len(batch) for batch in last} == {8}
    assert n_steps[np.concatenate(last)].mean() == pytest.approx(n_steps.mean(), rel=0.15)


@pytest.mark.parametrize("n_clips", [30, 32 * 16])
def test_the_longest_clip_of_a_batch_is_its_first(n_clips: int) -> None:
    n_steps = np.random.default_rng(0).integers(1, 200, n_clips)
    for batch in order_batches(n_steps, 8, 0, 1):
        assert (np.diff(n_steps[batch]) <= 0).all()


def test_a_label_that_the_store_does_not_declare_is_named() -> None:
    with pytest.raises(ConfigError, match=r"store: clip x: label 'hapy'.*happy, sad"):
        number_label("hapy", CLASSES, "store: clip x")


def test_a_clip_without_a_label_takes_no_part_in_scoring() -> None:
    table = make_table([clip_features("a"), clip_features("b", label="")])
    assert table.label.tolist() == [0, UNLABELLED]
    assert table.labelled.tolist() == [0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        pytest.param([], "no clip with a label", id="empty split"),
        pytest.param([""], "no clip with a label", id="only clips to predict"),
        pytest.param(["sad", "sad"], "every clip is 'sad'", id="one class"),
    ],
)
def test_a_train_split_that_teaches_nothing_is_refused(labels: list[str], message: str) -> None:
    table = make_table([clip_features(f"c{i}", label=label) for i, label in enumerate(labels)])
    with pytest.raises(ShardError, match=message):
        check_train_table(table, CLASSES)


def test_a_val_split_without_labels_is_refused() -> None:
    with pytest.raises(ShardError, match="no epoch can be chosen"):
        check_val_table(make_table([clip_features(label="")]))


def test_a_clip_without_frames_is_refused() -> None:
    with pytest.raises(ShardError, match="clip a: no frame"):
        make_table([clip_features(n_frames=0, n_faces=0)])
