"""The figures of the paper that stand beside ours: Tables I and II, in percent.

Sun, Hsu, Yang, Chien: Context-aware Cascade Attention-based RNN for Video Emotion Recognition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

PAPER_NOTE = (
    "The paper's figures were measured on CHEAVD 2.0 (MEC 2017), which is licensed; ours on the "
    "data named here. They stand side by side for orientation: on other data, neither is a target "
    "for the other."
)


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """A row of Table I or II; scores as printed, in percent, ``map_mec`` and ``acc``."""

    title: str
    val: Mapping[str, float]
    test: Mapping[str, float] = field(default_factory=dict)
    """Of Table II."""
    parameters: str = ""
    """Of Table I."""


TABLE_1: Mapping[str, PaperRow] = MappingProxyType(
    {
        head: PaperRow(title=title, parameters=count, val={"map_mec": map_mec, "acc": acc})
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


TABLE_2: Mapping[str, PaperRow] = MappingProxyType(
    {
        head: PaperRow(
            title=title,
            val={"map_mec": val[0], "acc": val[1]},
            test={"map_mec": test[0], "acc": test[1]},
        )
        for head, title, val, test in (
            ("caca", "CACA-RNN", (41.53, 51.34), (45.51, 47.30)),
            ("ensemble", "CACA-RNN + 2D-3D-CNN", (52.16, 56.58), (44.74, 52.99)),
            ("", "MEC 2017 baseline", (34.1, 36.5), (21.7, 35.3)),
        )
    }
)
"""Our head, as the preset ``submitted`` trains it, or nothing -> row of Table II."""

TITLES: Mapping[str, str] = MappingProxyType(
    {head: row.title for head, row in TABLE_1.items()}
    | {"caca": "CACA-RNN", "conv2d3d": "2D-3D-CNN", "cascade": "Cascade"}
)
"""Head -> how the paper calls it; an ensemble is called by its members."""
