"""Who holds which clip, and what becomes of the clips of a worker that died."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.contracts import Clip
from features.errors import WorkerError
from pipeline.workers.assignments import Assignments
from pipeline.workers.messages import Death

CRASH = Death(kind="SIGSEGV", reason="crashed")


def make_clips(names: str) -> list[Clip]:
    return [Clip(clip_id=n, path=Path(n), label="", split="test") for n in names]


def give_all(assignments: Assignments, number: int, *, at_most: int = 9) -> str:
    """What a worker gets that asks until there is nothing."""
    given = ""
    while len(given) < at_most and (clip := assignments.give(number)) is not None:
        given += clip.clip_id
    return given


def end_and_finish(assignments: Assignments, number: int) -> None:
    """A worker's clip ends well, and so does its shard."""
    assignments.end(number, failed=False)
    assignments.finish(number)


def name(clips: list[Clip]) -> str:
    return "".join(clip.clip_id for clip in clips)


def test_clips_of_a_dead_worker_are_tried_one_at_a_time() -> None:
    assignments = Assignments(make_clips("abcde"))
    assert give_all(assignments, 0, at_most=3) == "abc"
    assert assignments.lose(0, CRASH) == []
    for expected in "abc":
        assert give_all(assignments, 0) == expected
        assignments.end(0, failed=False)
    assert give_all(assignments, 0) == "de"


def test_others_go_on_while_suspects_are_tried() -> None:
    assignments = Assignments(make_clips("abcdef"))
    assert give_all(assignments, 0, at_most=2) == "ab"
    assert give_all(assignments, 1, at_most=1) == "c"
    assignments.lose(0, CRASH)
    assert give_all(assignments, 1, at_most=1) == "d"
    assert give_all(assignments, 0) == "a"


def test_a_clip_is_given_up_where_it_ends_a_fresh_worker_alone() -> None:
    assignments = Assignments(make_clips("ab"))
    assert give_all(assignments, 0) == "ab"
    assignments.lose(0, CRASH)
    assert give_all(assignments, 0) == "a"
    end_and_finish(assignments, 0)
    assert give_all(assignments, 0) == "b"
    assert assignments.lose(0, CRASH) == []  # a may have left the worker damaged
    assert give_all(assignments, 0) == "b"
    assert name(assignments.lose(0, CRASH)) == "b"
    assert not assignments.are_waiting
    assert not assignments.holds_any(0)


def die_at(assignments: Assignments, expected: str, *, progressed: bool) -> None:
    """A fresh worker dies at the first that it is given, which is given up and tried again."""
    assert give_all(assignments, 0) == expected
    if progressed:
        assignments.note_progress(0)
    for clip in assignments.lose(0, CRASH):
        assignments.try_again(clip)


def test_workers_that_do_a_clip_of_each_shard_before_they_die_are_not_at_fault() -> None:
    assignments = Assignments(make_clips("abcd"), alone_ids="abcd")
    for _ in range(9):
        die_at(assignments, "a", progressed=True)


def test_workers_that_do_no_clip_of_any_shard_are_at_fault() -> None:
    assignments = Assignments(make_clips("ab"), alone_ids="a")
    assert give_all(assignments, 0) == "b"
    end_and_finish(assignments, 0)
    for _ in range(4):  # the first was not in a fresh worker
        die_at(assignments, "a", progressed=False)
    assert give_all(assignments, 0) == "b"  # it was done before: it tells whose fault it is
    with pytest.raises(WorkerError, match="and so did b, which was extracted before"):
        assignments.lose(0, CRASH)


def test_a_probe_that_gets_on_before_it_dies_is_no_fault() -> None:
    assignments = Assignments(make_clips("ab"), alone_ids="a")
    assert give_all(assignments, 0) == "b"
    end_and_finish(assignments, 0)
    for _ in range(4):  # the first was not in a fresh worker
        die_at(assignments, "a", progressed=False)
    die_at(assignments, "b", progressed=True)
    assert give_all(assignments, 0) == "a"


def test_the_clip_at_which_a_worker_stood_still_is_tried_at_once() -> None:
    assignments = Assignments(make_clips("abcd"))
    assert give_all(assignments, 0) == "abcd"
    assignments.lose(0, CRASH, suspect_id="b")
    assert give_all(assignments, 0) == "b"
    assert name(assignments.lose(0, CRASH, suspect_id="b")) == "b"
    assert give_all(assignments, 0) == "a"  # its last frames may have been under way
    assignments.end(0, failed=False)
    assert give_all(assignments, 0) == "cd"


def test_what_ended_its_worker_in_an_earlier_run_comes_last_and_alone() -> None:
    assignments = Assignments(make_clips("abcd"), alone_ids={"a", "c"})
    assert give_all(assignments, 0) == "bd"
    for _ in range(2):
        assignments.end(0, failed=False)
    assert give_all(assignments, 0) == "a"


def lose_alone(assignments: Assignments, number: int) -> str:
    """A worker gets one clip that waits for a fresh one, and dies of it."""
    given = give_all(assignments, number)
    assert name(assignments.lose(number, CRASH)) == given
    return given


def test_where_several_fail_a_clip_that_was_done_is_tried_again() -> None:
    assignments = Assignments(make_clips("abcdef"), alone_ids="bcdef")
    assert give_all(assignments, 0) == "a"
    end_and_finish(assignments, 0)
    assert give_all(assignments, 0) == "b"
    assignments.lose(0, CRASH)
    assert [lose_alone(assignments, 0) for _ in range(3)] == ["b", "c", "d"]
    assert give_all(assignments, 0) == "a"
    probe = assignments.find(0, "a")
    assert probe is not None
    assert probe.was_done
    with pytest.raises(WorkerError, match=r"so did a, which was extracted before: .* crashed"):
        assignments.lose(0, CRASH)


def test_where_that_clip_works_the_others_are_to_blame() -> None:
    assignments = Assignments(make_clips("abcde"), alone_ids="bcde")
    assert give_all(assignments, 0) == "a"
    end_and_finish(assignments, 0)
    assert give_all(assignments, 0) == "b"
    assignments.lose(0, CRASH)
    assert [lose_alone(assignments, 0) for _ in range(3)] == ["b", "c", "d"]
    assert give_all(assignments, 0) == "a"
    assignments.end(0, failed=False)
    assert give_all(assignments, 0) == "e"


def test_where_none_was_done_the_farthest_clip_is_tried() -> None:
    assignments = Assignments(make_clips("abcxyz"))
    assert give_all(assignments, 0, at_most=3) == "abc"
    assignments.lose(0, CRASH)
    assert [lose_alone(assignments, 0) for _ in range(3)] == ["a", "b", "c"]
    assert give_all(assignments, 0) == "z"
    with pytest.raises(WorkerError, match="so did z, "):
        assignments.lose(0, CRASH)


def test_failures_of_several_kinds_are_not_one_fault() -> None:
    assignments = Assignments(make_clips("abcd"), alone_ids="abcd")
    for number, expected in enumerate("abcd"):
        assert give_all(assignments, 0) == expected
        death = Death(kind=str(number % 2), reason="ended")
        assert name(assignments.lose(0, death)) == expected


def test_workers_that_die_without_a_clip_end_the_run() -> None:
    assignments = Assignments(make_clips("a"))
    for _ in range(2):
        assert assignments.lose(0, CRASH) == []
    with pytest.raises(WorkerError, match="3 workers in a row ended while they held no clip"):
        assignments.lose(0, CRASH)


def test_a_worker_that_dies_without_a_clip_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    assignments = Assignments(make_clips("ab"))
    assert give_all(assignments, 0) == "ab"
    for _ in "ab":
        assignments.end(0, failed=False)
    assignments.lose(0, CRASH)
    assert caplog.messages == [
        "worker 0 crashed; clips of its unfinished shard, to be extracted again: 2"
    ]


def test_clips_of_an_unfinished_shard_come_again_and_are_not_to_blame() -> None:
    assignments = Assignments(make_clips("abcdef"))
    assert give_all(assignments, 0, at_most=4) == "abcd"
    end_and_finish(assignments, 0)
    for _ in "bc":
        assignments.end(0, failed=False)
    assert give_all(assignments, 1, at_most=1) == "e"
    assignments.lose(0, CRASH)
    assert give_all(assignments, 1) == "bcf"  # at once, beside another
    assert give_all(assignments, 0) == "d"


def test_a_clip_that_was_done_and_only_shows_whether_workers_work_is_not_done_again() -> None:
    assignments = Assignments(make_clips("abcd"), alone_ids="bcd")
    assert give_all(assignments, 0) == "a"
    end_and_finish(assignments, 0)
    assert give_all(assignments, 0) == "b"
    assignments.lose(0, CRASH)
    assert [lose_alone(assignments, 0) for _ in range(3)] == ["b", "c", "d"]
    assert give_all(assignments, 0) == "a"
    assignments.end(0, failed=False)
    assignments.lose(0, CRASH)
    assert not assignments.are_waiting


def test_workers_that_die_at_the_end_of_each_shard_end_the_run() -> None:
    assignments = Assignments(make_clips("a"))
    for _ in range(2):
        assert give_all(assignments, 0) == "a"
        assignments.end(0, failed=False)
        assert assignments.lose(0, CRASH) == []
    assert give_all(assignments, 0) == "a"
    assignments.end(0, failed=False)
    with pytest.raises(WorkerError, match="3 workers in a row ended while they held no clip"):
        assignments.lose(0, CRASH)


@settings(deadline=None, max_examples=200)
@given(st.text("gp", max_size=20), st.integers(1, 4), st.integers(0, 2**32))
def test_every_good_clip_is_done_once_and_every_other_given_up_once(
    kinds: str, n_workers: int, seed: int
) -> None:
    """Whatever the order: g is good, p ends its worker (each in a way of its own)."""
    random = Random(seed)
    clips = [
        Clip(clip_id=f"{kind}{i}", path=Path(kind), label="", split="test")
        for i, kind in enumerate(kinds)
    ]
    assignments = Assignments(clips, {c.clip_id for c in clips if random.random() < 0.2})
    held: dict[int, list[Clip]] = {number: [] for number in range(n_workers)}
    unfinished: dict[int, list[str]] = {number: [] for number in range(n_workers)}
    done: list[str] = []
    given_up: list[str] = []
    while assignments.are_waiting or any(held.values()) or any(unfinished.values()):
        number = random.randrange(n_workers)
        clip = assignments.give(number) if len(held[number]) < 3 else None
        if clip is not None:
            held[number].append(clip)
        bad = [c for c in held[number] if c.clip_id.startswith("p")]
        first = held[number][0] if held[number] else None
        if bad and (first in bad or random.random() < 0.3):
            death = Death(kind=bad[0].clip_id, reason="ended")
            suspect_id = random.choice([None, bad[0].clip_id])
            given_up += [c.clip_id for c in assignments.lose(number, death, suspect_id)]
            held[number], unfinished[number] = [], []
        elif first is not None and (clip is None or random.random() < 0.5):
            assignments.end(number, failed=False)
            unfinished[number].append(held[number].pop(0).clip_id)
        elif random.random() < 0.2:
            assignments.finish(number)
            done += unfinished[number]
            unfinished[number] = []
    assert sorted(done) == sorted(c.clip_id for c in clips if c.clip_id.startswith("g"))
    assert sorted(given_up) == sorted(c.clip_id for c in clips if c.clip_id.startswith("p"))
