"""Clips decoded ahead arrive as if decoded one by one, whatever threads and memory there are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from features.contracts import Clip
from features.errors import ClipError
from pipeline.decode.sampling import DecodedFrame, FrameRecord
from pipeline.workers.prefetch import Prefetcher

FRAME_BYTES = 12

Decode = Callable[[Clip], Generator[DecodedFrame]]


def make_clips(n_clips: int) -> list[Clip]:
    return [
        Clip(clip_id=str(i), path=Path("a"), label="", split="test", line=i) for i in range(n_clips)
    ]


def make_frame(number: int, scale: int = 1) -> DecodedFrame:
    rgb = torch.zeros((2, 2 * scale, 3), dtype=torch.uint8)
    record = FrameRecord(clip=make_clips(1)[0], pts_s=number, phases=(0,), decoder="software:test")
    return DecodedFrame(record=record, rgb=rgb)


def decoder_of(clips: Sequence[tuple[int, bool]]) -> Decode:
    """Clip i has clips[i][0] frames, and breaks off after them if clips[i][1]."""

    def decode(clip: Clip) -> Generator[DecodedFrame]:
        n_frames, breaks_off = clips[clip.line]
        for number in range(n_frames):
            yield make_frame(number, scale=1 + number % 3)
        if breaks_off:
            raise ClipError(f"clip {clip.clip_id} breaks off")

    return decode


def read_all(ahead: Prefetcher) -> list[object]:
    """The clips' ids, what was prepared, times of frames and errors, in the order they come in."""
    seen: list[object] = []
    for clip, frames in ahead:
        seen += [clip.clip_id, frames.prepared]
        try:
            seen.extend(frame.record.pts_s for frame in frames)
        except ClipError as error:
            seen.append(str(error))
    return seen


@settings(deadline=None, max_examples=60)
@given(
    clips=st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=20),
    n_threads=st.integers(1, 4),
    max_bytes=st.integers(0, 8 * FRAME_BYTES),
)
def test_frames_and_errors_come_in_the_order_of_clips(
    clips: list[tuple[int, bool]], n_threads: int, max_bytes: int
) -> None:
    expected: list[object] = []
    for number, (n_frames, breaks_off) in enumerate(clips):
        expected += [str(number), f"hash {number}", *range(n_frames)]
        expected += [f"clip {number} breaks off"] if breaks_off else []
    with closing(
        Prefetcher(
            make_clips(len(clips)),
            lambda clip: f"hash {clip.clip_id}",
            decoder_of(clips),
            n_threads=n_threads,
            max_bytes=max_bytes,
        )
    ) as ahead:
        assert read_all(ahead) == expected


@settings(deadline=None, max_examples=40)
@given(
    wanted=st.lists(st.integers(0, 12), min_size=1, max_size=12),
    n_threads=st.integers(1, 4),
    max_bytes=st.integers(0, 4 * FRAME_BYTES),
    stop_after=st.integers(0, 12),
)
def test_going_on_early_drops_frames_and_ends_their_decoder(
    wanted: list[int], n_threads: int, max_bytes: int, stop_after: int
) -> None:
    ended = []

    def decode(clip: Clip) -> Generator[DecodedFrame]:
        try:
            number = 0
            while True:  # an endless film
                yield make_frame(number)
                number += 1
        finally:
            ended.append(clip.line)

    n_before = threading.active_count()
    with closing(
        Prefetcher(make_clips(len(wanted)), str, decode, n_threads=n_threads, max_bytes=max_bytes)
    ) as ahead:
        for (clip, frames), n_frames in zip(ahead, wanted, strict=False):
            assert [next(frames).record.pts_s for _ in range(n_frames)] == list(range(n_frames))
            if clip.line == stop_after:
                break
    assert threading.active_count() == n_before
    assert len(set(ended)) == len(ended)
    assert {i for i, n in enumerate(wanted[: stop_after + 1]) if n} <= set(ended)


@pytest.mark.parametrize("max_frames", [1, 4, 7])
def test_what_waits_is_bounded(max_frames: int) -> None:
    """Counted when a decoder goes on after a frame, that is, when the frame was let in."""
    lock, n_in, n_out, most = threading.Lock(), 0, 0, 0

    def decode(clip: Clip) -> Generator[DecodedFrame]:
        nonlocal n_in, most
        for number in range(50):
            yield make_frame(number)
            with lock:
                n_in += 1
                most = max(most, n_in - n_out)

    with closing(
        Prefetcher(make_clips(10), str, decode, n_threads=3, max_bytes=max_frames * FRAME_BYTES)
    ) as ahead:
        for _, frames in ahead:
            for _ in frames:
                with lock:
                    n_out += 1
    assert n_in == n_out == 500
    # A frame taken but not yet counted here, and the one that is let in for the waiting reader.
    assert most <= max_frames + 2


def test_the_next_clip_is_decoded_while_this_one_is_read() -> None:
    second_is_there = threading.Event()

    def decode(clip: Clip) -> Generator[DecodedFrame]:
        yield make_frame(0)
        if clip.line == 1:
            second_is_there.set()

    with closing(Prefetcher(make_clips(2), str, decode, n_threads=1, max_bytes=1000)) as ahead:
        (_, frames) = next(iter(ahead))
        assert second_is_there.wait(60)
        assert len(list(frames)) == 1


def test_threads_do_not_run_over_the_whole_manifest() -> None:
    started = []

    def decode(clip: Clip) -> Generator[DecodedFrame]:
        started.append(clip.line)
        yield from ()

    with closing(Prefetcher(make_clips(1000), str, decode, n_threads=2, max_bytes=1000)) as ahead:
        for clip, frames in ahead:
            assert list(frames) == []
            if clip.line == 2:
                break
    assert len(started) < 20


def test_a_clip_that_cannot_be_prepared_disturbs_no_other() -> None:
    def prepare(clip: Clip) -> int:
        if clip.line == 1:
            raise OSError("out of reach")
        return clip.line

    found = []
    decode = decoder_of([(2, False)] * 3)
    with closing(Prefetcher(make_clips(3), prepare, decode, n_threads=2, max_bytes=1000)) as ahead:
        for _, frames in ahead:
            try:
                found.append((frames.prepared, len(list(frames))))
            except OSError as error:
                found.append((-1, str(error)))
    assert found == [(0, 2), (-1, "out of reach"), (2, 2)]


def test_an_error_in_the_reader_stops_the_threads() -> None:
    n_before = threading.active_count()
    decode = decoder_of([(1000, False)] * 3)

    def read() -> None:
        with closing(Prefetcher(make_clips(3), str, decode, n_threads=2, max_bytes=0)) as ahead:
            for _, frames in ahead:
                next(frames)
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read()
    assert threading.active_count() == n_before


def test_frames_of_a_clip_left_behind_are_refused() -> None:
    decode = decoder_of([(3, False)] * 2)
    with closing(Prefetcher(make_clips(2), str, decode, n_threads=1, max_bytes=1000)) as ahead:
        clips = iter(ahead)
        _, first = next(clips)
        next(first)
        _, second = next(clips)
        with pytest.raises(ValueError, match="another clip is being read"):
            next(first)
        next(second)
    with pytest.raises(ValueError, match="dropped"):
        next(second)
