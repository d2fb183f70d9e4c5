"""The random streams of training: each purpose has its own, and none is another's.

A stream is a function of its purpose and of the place where it is used (seed, epoch ...). numpy's
SeedSequence ignores zeros at the end of a short list, so that ``[epoch, 2]`` and ``[epoch, 2, 0]``
are one stream; here the purpose stands first and is never 0, and the rest has a fixed length.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

PURPOSES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "weights": ("seed",),
        "phases": ("seed", "epoch"),
        "clips": ("seed", "epoch"),
        "order": ("seed", "epoch"),
        "shared order": ("epoch",),
        "dropout": ("seed", "epoch", "batch", "mask"),
        "bootstrap": ("seed",),
    }
)
"""Purpose -> what else decides the stream. A new one stands last: the others then stay."""


def make_sequence(purpose: str, *place: int) -> np.random.SeedSequence:
    """The seeds of a stream.

    Args:
        purpose: One of ``PURPOSES``.
        place: The numbers that it names, 0 to 2**64 - 1 each.
    """
    if len(place) != len(PURPOSES[purpose]) or not all(0 <= n < 1 << 64 for n in place):
        raise ValueError(f"{purpose}: found {place}, expected {', '.join(PURPOSES[purpose])}")
    words = [1 + list(PURPOSES).index(purpose)]
    for number in place:
        words += [number & 0xFFFFFFFF, number >> 32]
    return np.random.SeedSequence(words)


def make_rng(purpose: str, *place: int) -> np.random.Generator:
    """The stream itself; see ``make_sequence``."""
    return np.random.default_rng(make_sequence(purpose, *place))


def make_torch_seed(purpose: str, *place: int) -> int:
    """A seed for ``torch.Generator``; see ``make_sequence``."""
    return int(make_sequence(purpose, *place).generate_state(1, np.uint64)[0])
