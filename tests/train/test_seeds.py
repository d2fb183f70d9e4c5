"""No two random streams of training are one."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from train.data.batches import draw_clips, order_batches
from train.seeds import PURPOSES, make_rng, make_sequence, make_torch_seed

NUMBERS = (0, 1, 2, 3, 4, 7, 2**32, 2**32 + 1)


def test_all_streams_differ_pairwise() -> None:
    first: dict[bytes, tuple[object, ...]] = {}
    for purpose, place in PURPOSES.items():
        for numbers in product(NUMBERS, repeat=len(place)):
            state = make_sequence(purpose, *numbers).generate_state(4).tobytes()
            assert first.setdefault(state, (purpose, numbers)) == (purpose, numbers)
    assert len(first) == sum(len(NUMBERS) ** len(place) for place in PURPOSES.values())


def test_the_streams_that_were_one_are_two() -> None:
    """Seed e of the phases and epoch e of the order once drew the same numbers."""
    for e in (1, 2, 3):
        phases = make_rng("phases", e, 2).random(8)
        shared = make_rng("shared order", e).random(8)
        assert not np.array_equal(phases, shared)


def test_weights_of_neighbouring_seeds_differ_and_repeat() -> None:
    seeds = [make_torch_seed("weights", seed) for seed in range(100)]
    assert len(set(seeds)) == 100
    assert seeds == [make_torch_seed("weights", seed) for seed in range(100)]


@pytest.mark.parametrize("place", [(1,), (1, 2, 3), (-1, 2), (2**64, 2)])
def test_a_stream_needs_its_whole_place(place: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected seed, epoch"):
        make_sequence("phases", *place)


def test_the_order_of_batches_of_other_seeds_differs() -> None:
    n_steps = np.arange(40)
    orders = [np.concatenate(order_batches(n_steps, 4, seed, 1)).tolist() for seed in range(20)]
    drawn = [draw_clips(n_steps % 3, "balanced", seed, 1).tolist() for seed in range(20)]
    assert len({tuple(order) for order in orders}) == len({tuple(d) for d in drawn}) == 20
