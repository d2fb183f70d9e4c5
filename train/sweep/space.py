"""What a sweep tries: a grid of settings, or a space that trials are drawn from."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from features.errors import ConfigError
from train.config import FitConfig, parse_settings

_DIGITS = 3
"""Significant digits of a drawn number: enough to choose by, and to type again."""

_LOG_RATIO = 10


@dataclass(frozen=True, kw_only=True)
class Choices:
    """A setting that takes one of some values."""

    values: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Range:
    """A number between two others, both included."""

    low: float
    high: float
    whole: bool = False
    """Whole numbers only."""

    @property
    def log(self) -> bool:
        """Drawn evenly over its logarithm: where the ends differ by a factor of 10 or more."""
        return self.low > 0 and self.high / self.low >= _LOG_RATIO

    def round(self, value: float) -> float:
        """A value of the range with few digits, within its ends."""
        if self.whole:
            return round(value)
        return min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)


Space = Mapping[str, Choices | Range]
"""Setting -> what it may be."""

DEFAULT_SPACE: Space = MappingProxyType(
    {
        "lr": Range(low=3e-5, high=3e-3),
        "dropout": Range(low=0.0, high=0.6),
        "label_smoothing": Range(low=0.0, high=0.2),
        "class_weights": Choices(values=("none", "balanced")),
    }
)
"""What trials vary unless told otherwise. All of it trains together as one batched model."""


def parse_grid(texts: Sequence[str], config: FitConfig) -> dict[str, Choices]:
    """Take ``KEY=A,B,C`` texts apart.

    Raises:
        ConfigError: Not of that form, a key twice or unknown, a value twice, wrong or out of
            range; or ``select``, which trials are compared by.
    """
    grid: dict[str, Choices] = {}
    for text in texts:
        key, listed = _split_text(text, "KEY=A,B,C, for example lr=1e-4,3e-4", grid)
        grid[key] = _parse_choices(key, listed, config)
    return grid


def parse_space(texts: Sequence[str], config: FitConfig) -> dict[str, Choices | Range]:
    """Take ``KEY=LOW..HIGH`` and ``KEY=A,B,C`` texts apart.

    Raises:
        ConfigError: As ``parse_grid``; or a range of words, or one whose ends are not in order.
    """
    space: dict[str, Choices | Range] = {}
    for text in texts:
        key, listed = _split_text(text, "KEY=LOW..HIGH or KEY=A,B,C", space)
        low, dots, high = listed.partition("..")
        if not dots:
            space[key] = _parse_choices(key, listed, config)
            continue
        ends = [_parse_value(key, end, config) for end in (low, high)]
        if isinstance(ends[0], str) or ends[0] >= ends[1]:
            raise ConfigError(
                f"search {text!r}: expected two numbers, the lower one first, for example "
                "lr=1e-5..1e-2; list words instead: KEY=A,B,C."
            )
        space[key] = Range(low=ends[0], high=ends[1], whole=isinstance(ends[0], int))
    return space


def list_points(grid: Mapping[str, Choices]) -> list[dict[str, Any]]:
    """All combinations of a grid, the last key changing fastest."""
    combinations = itertools.product(*(choices.values for choices in grid.values()))
    return [dict(zip(grid, values, strict=True)) for values in combinations]


def round_settings(space: Space, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """Drawn values with few digits."""
    return {
        key: of_key.round(drawn[key]) if isinstance(of_key, Range) else drawn[key]
        for key, of_key in space.items()
    }


def describe_space(space: Space) -> dict[str, Any]:
    """A space as plain JSON values."""
    return {
        key: list(of_key.values) if isinstance(of_key, Choices) else asdict(of_key)
        for key, of_key in space.items()
    }


def _split_text(text: str, expected: str, known: Mapping[str, object]) -> tuple[str, str]:
    key, equals, listed = text.partition("=")
    key = key.strip()
    if not equals or not listed.strip():
        raise ConfigError(f"{text!r}: expected {expected}.")
    if key in known:
        raise ConfigError(f"{text!r}: {key} is given twice. List all its values once.")
    if key == "select":
        raise ConfigError(
            f"{text!r}: select is the metric that trials are compared by, so it cannot be varied. "
            "Choose one, for example --set select=acc."
        )
    return key, listed


def _parse_choices(key: str, listed: str, config: FitConfig) -> Choices:
    values = tuple(_parse_value(key, value, config) for value in listed.split(","))
    if len(set(values)) < len(values):
        raise ConfigError(f"{key}={listed}: a value stands twice. List each once.")
    return Choices(values=values)


def _parse_value(key: str, text: str, config: FitConfig) -> Any:
    return getattr(parse_settings([f"{key}={text}"], config), key)
