"""What is asked of ``fit``: the stores, the heads and settings, and where the runs go.

Knows no torch: a program may ask for much before anything heavy is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from train.config import FitConfig, check_heads


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """The runs that are wanted: each head with each seed.

    Raises:
        ConfigError: No such head, one named twice, or none.
    """

    stores: Sequence[Path]
    """Folders; all of one fingerprint and of the same classes."""
    runs: Path
    """Folder of run folders; made where it is missing."""
    heads: Sequence[str]
    """Names of ``train.streams.HEADS``; an ensemble's members are added to them."""
    seeds: Sequence[int]
    """One run each."""
    config: FitConfig
    """Settings that all heads share."""
    test_stores: Sequence[Path] = ()
    """If there are some, test is theirs, and train and val are of ``stores``."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    memory_gb: float | None = None
    """What features may take of the memory; the rest is read from a scratch file in ``runs``, to
    the same numbers. None: three quarters of what is free."""
    verify: bool = True
    """As of ``features.store.reader.open_store``: hash each shard before it is read."""

    def __post_init__(self) -> None:
        check_heads(self.heads)
