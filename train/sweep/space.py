"""What a sweep tries: a grid of settings, or a space that trials are drawn from."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from features.errors import ConfigError
from train.config import FitConfig, name_as_stored, name_setting, parse_settings

_DIGITS = 3
"""Significant digits of a drawn number: enough to choose by, and to type again."""

_LOG_RATIO = 10
"""Where the ends of a range differ by this factor or more, it is drawn over its logarithm."""

Grid = Mapping[str, CategoricalDistribution]
"""Setting -> its values, all of which are tried."""

Space = Mapping[str, BaseDistribution]
"""Setting -> what it may be: a choice of values, or a range of numbers with both ends included."""

DEFAULT_SPACE: Space = MappingProxyType(
    {
        "lr": FloatDistribution(3e-5, 3e-3, log=True),
        "dropout": FloatDistribution(0.0, 0.6),
        "label_smoothing": FloatDistribution(0.0, 0.2),
        "class_weights": CategoricalDistribution(("none", "balanced")),
    }
)
"""What trials vary unless told otherwise. All of it trains together as one batched model."""


def parse_grid(texts: Sequence[str], config: FitConfig) -> dict[str, CategoricalDistribution]:
    """Take ``KEY=A,B,C`` texts apart.

    Raises:
        ConfigError: Not of that form, a key twice or unknown, a value twice, wrong or out of
            range; or ``select``, which trials are compared by.
    """
    grid: dict[str, CategoricalDistribution] = {}
    for text in texts:
        key, listed = _split_text(text, "KEY=A,B,C, for example lr=1e-4,3e-4", grid)
        grid[key] = _parse_choices(key, listed, config)
    return grid


def parse_space(texts: Sequence[str], config: FitConfig) -> dict[str, BaseDistribution]:
    """Take ``KEY=LOW..HIGH`` and ``KEY=A,B,C`` texts apart.

    Raises:
        ConfigError: As ``parse_grid``; or a range of words, or one whose ends are not in order.
    """
    space: dict[str, BaseDistribution] = {}
    for text in texts:
        key, listed = _split_text(text, "KEY=LOW..HIGH or KEY=A,B,C", space)
        low, dots, high = listed.partition("..")
        if not dots:
            space[key] = _parse_choices(key, listed, config)
            continue
        first, last = (_parse_value(key, end, config) for end in (low, high))
        if isinstance(first, str) or first >= last:
            raise ConfigError(
                f"search {text!r}: expected two numbers, the lower one first, for example "
                "lr=1e-5..1e-2; list words instead: KEY=A,B,C."
            )
        kind = IntDistribution if isinstance(first, int) else FloatDistribution
        space[key] = kind(first, last, log=first > 0 and last / first >= _LOG_RATIO)
    return space


def list_points(grid: Grid) -> list[dict[str, Any]]:
    """All combinations of a grid, the last key changing fastest."""
    combinations = itertools.product(*(of_key.choices for of_key in grid.values()))
    return [dict(zip(grid, values, strict=True)) for values in combinations]


def round_settings(space: Space, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """Drawn values with few digits, within the ends of their ranges."""
    rounded = {key: drawn[key] for key in space}
    for key, of_key in space.items():
        if isinstance(of_key, FloatDistribution):
            value = float(f"{drawn[key]:.{_DIGITS}g}")
            rounded[key] = min(max(value, of_key.low), of_key.high)
    return rounded


def describe_space(space: Space) -> dict[str, Any]:
    """A space as it enters the hash that names a sweep: as before Optuna's own form was written."""
    return name_as_stored({key: _describe(of_key) for key, of_key in space.items()})


def _describe(of_key: Any) -> Any:
    if isinstance(of_key, CategoricalDistribution):
        return list(of_key.choices)
    whole = isinstance(of_key, IntDistribution)
    return {"low": of_key.low, "high": of_key.high, "whole": whole}


def _split_text(text: str, expected: str, known: Mapping[str, object]) -> tuple[str, str]:
    key, equals, listed = text.partition("=")
    key = name_setting(key.strip())
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


def _parse_choices(key: str, listed: str, config: FitConfig) -> CategoricalDistribution:
    values = tuple(_parse_value(key, value, config) for value in listed.split(","))
    if len(set(values)) < len(values):
        raise ConfigError(f"{key}={listed}: a value stands twice. List each once.")
    return CategoricalDistribution(values)


def _parse_value(key: str, text: str, config: FitConfig) -> Any:
    return getattr(parse_settings([f"{key}={text}"], config), key)
