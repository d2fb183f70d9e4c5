"""Which pictures come into a batch: sets and classes more evenly than there are pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.face_cnn.pictures.sources import FaceSource


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassPrior:
    """How often the classes of one set come."""

    natural: Tensor
    """[K] Share of each class among the set's training pictures, by their votes."""
    drawn: Tensor
    """[K] The same among the pictures drawn."""
    joined: Tensor
    """[J] The same over the classes of all sets; 0 for those that this set lacks."""
    columns: list[int]
    """[K] Where the set's classes stand among those of all sets."""


class PictureDraws:
    """Draws pictures of several sets, with replacement."""

    def __init__(
        self, sources: Sequence[FaceSource], classes: Sequence[str], balance: float
    ) -> None:
        """
        Args:
            sources: The sets, each with at least one picture.
            classes: Those of all sets.
            balance: 0: as the pictures are; 1: all sets, and all classes of a set, equally often.
        """
        power = 1 - balance
        self._sources = sources
        n_pictures = torch.tensor([float(len(source.rows)) for source in sources])
        self._shares = n_pictures**power
        self._chances: list[Tensor] = []
        self.priors: dict[str, ClassPrior] = {}
        for source in sources:
            target = torch.from_numpy(source.images.target[source.rows])
            label = target.argmax(1)
            count = torch.bincount(label, minlength=target.shape[1]).clamp(min=1).float()
            chance = count[label] ** (power - 1)
            chance = chance / chance.sum()
            self._chances.append(chance)
            drawn = chance @ target
            columns = [classes.index(name) for name in source.images.classes]
            joined = torch.zeros(len(classes))
            joined[columns] = drawn
            self.priors[source.name] = ClassPrior(
                natural=target.mean(0), drawn=drawn, joined=joined, columns=columns
            )

    def take(self, n: int, draw: torch.Generator) -> list[NDArray[np.intp]]:
        """The rows of ``n`` pictures of each set, together; some may have none."""
        device = draw.device
        of_source = torch.multinomial(self._shares.to(device), n, replacement=True, generator=draw)
        rows = []
        for i, (source, chance) in enumerate(zip(self._sources, self._chances, strict=True)):
            n_rows = int((of_source == i).sum())
            if not n_rows:
                rows.append(source.rows[:0])
                continue
            chosen = torch.multinomial(chance.to(device), n_rows, replacement=True, generator=draw)
            rows.append(source.rows[chosen.cpu().numpy()])
        return rows
