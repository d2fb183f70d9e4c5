"""Settings that a user changes by ``--set KEY=VALUE``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, TypeVar

from features.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")

_KINDS: Mapping[type, str] = {str: "a word", int: "a whole number", float: "a number"}


def change_settings(
    settings: Sequence[str], config: Config, find_name: Callable[[str], str] = lambda key: key
) -> Config:
    """Change a config by ``KEY=VALUE`` texts, where its values are words or numbers.

    find_name: the name of a setting, whichever a user writes.

    Raises:
        ConfigError: Not of that form, an unknown key, or a value of the wrong type or range.
    """
    known = {name: value for name, value in asdict(config).items() if type(value) in _KINDS}
    changed: dict[str, object] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        key = find_name(key.strip())
        if not equals:
            raise ConfigError(f"setting {setting!r}: expected KEY=VALUE, for example lr=0.0003.")
        if key not in known:
            raise ConfigError(f"setting {key!r}: unknown. Known settings: {', '.join(known)}.")
        kind = type(known[key])
        try:
            changed[key] = kind(text.strip())
        except ValueError as error:
            example = known[key]
            raise ConfigError(
                f"setting {key}: found {text!r}, expected {_KINDS[kind]}, for example {example}."
            ) from error
    return replace(config, **changed)
