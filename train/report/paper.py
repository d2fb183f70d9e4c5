"""The figures of the paper that stand beside ours: Tables I and II, in percent.

Sun, Hsu, Yang, Chien: Context-aware Cascade Attention-based RNN for Video Emotion Recognition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

PAPER_NOTE = (
    "The paper's figures were measured on CHEAVD 2.0 (MEC 2017), which is licensed; ours on the "
    "data named here. They stand side by side for orientation: on other data, neither is a target "
    "for the other."
)


@dataclass(frozen=True, kw_only=True)
class PaperScore:
    """mAP and accuracy as printed, in percent."""

    map_mec: float
    acc: float


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """A row of Table I."""

    title: str
    parameters: str
    val: PaperScore


TABLE_1: Mapping[str, PaperRow] = MappingProxyType(
    {
        head: PaperRow(title=title, parameters=count, val=PaperScore(map_mec=map_mec, acc=acc))
        for head, title, count, map_mec, acc in (
            ("face", "Face-RNN", "1.58M", 38.87, 52.72),
            ("context", "Context-RNN", "1.19M", 28.74, 37.68),
            ("parallel", "Parallel-RNN", "0.86M", 40.44, 54.30),
            ("concatenated", "Concatenated-RNN", "1.38M", 39.78, 54.15),
            ("caca-a", "CACA-RNN A", "0.79M", 40.73, 53.01),
            ("caca-b", "CACA-RNN B", "0.79M", 39.91, 54.44),
        )
    }
)
"""Head -> row of Table I, on the val split."""


@dataclass(frozen=True, kw_only=True)
class SubmittedRow:
    """A row of Table II."""

    head: str
    """Our head of that name, as the preset ``submitted`` trains it, or empty."""
    title: str
    val: PaperScore
    test: PaperScore


TABLE_2: tuple[SubmittedRow, ...] = (
    SubmittedRow(
        head="caca",
        title="CACA-RNN",
        val=PaperScore(map_mec=41.53, acc=51.34),
        test=PaperScore(map_mec=45.51, acc=47.30),
    ),
    SubmittedRow(
        head="ensemble",
        title="CACA-RNN + 2D-3D-CNN",
        val=PaperScore(map_mec=52.16, acc=56.58),
        test=PaperScore(map_mec=44.74, acc=52.99),
    ),
    SubmittedRow(
        head="",
        title="MEC 2017 baseline",
        val=PaperScore(map_mec=34.1, acc=36.5),
        test=PaperScore(map_mec=21.7, acc=35.3),
    ),
)

TITLES: Mapping[str, str] = MappingProxyType(
    {**{head: row.title for head, row in TABLE_1.items()}}
    | {"caca": "CACA-RNN", "conv2d3d": "2D-3D-CNN"}
)
"""Head -> how the paper calls it; an ensemble is called by its members."""
