"""Reads JSON that others wrote: whatever it holds, a value of the expected kind or ValueError."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

MOST_JSON_BYTES = 1 << 26
"""Of a text that is parsed: store.json lists some 300,000 shards in as much."""


def parse_object(text: str | bytes, keys: Mapping[str, type] | None = None) -> dict[str, Any]:
    """Parse a JSON object.

    Args:
        text: UTF-8.
        keys: Keys that it must have -> the type of their values.

    Raises:
        ValueError: Too long or too deep, not JSON, not an object, a key is missing or of another
            type, a number that is not finite, or text that is not Unicode.
    """
    if len(text) > MOST_JSON_BYTES:
        raise ValueError(f"{len(text)} bytes of JSON, expected {MOST_JSON_BYTES} at most")
    try:
        value = json.loads(text)
        # What Python parses beyond the standard, it cannot write back: NaN, half a surrogate pair.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    return check_object(value, keys or {})


def check_object(value: object, keys: Mapping[str, type]) -> dict[str, Any]:
    """The value, which is a JSON object that has some keys. Raises ValueError where it is not."""
    if not isinstance(value, dict):
        raise ValueError("not an object")
    for key, kind in keys.items():
        if key not in value:
            raise ValueError(f"{key!r} is missing")
        if type(value[key]) is not kind:
            raise ValueError(f"{key!r} is {type(value[key]).__name__}, expected {kind.__name__}")
    return value


def check_texts(value: object, what: str) -> dict[str, str]:
    """The value, which is an object of texts. Raises ValueError where it is not."""
    if not isinstance(value, dict) or not all(type(text) is str for text in value.values()):
        raise ValueError(f"{what} is not an object of texts")
    return value


def check_amounts(value: object, what: str) -> dict[str, float]:
    """The value, which is an object of numbers. Raises ValueError where it is not."""
    if not isinstance(value, dict) or not all(type(n) in (int, float) for n in value.values()):
        raise ValueError(f"{what} is not an object of numbers")
    return value
