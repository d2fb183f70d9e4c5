"""Hashes: of files, and of all that decides the features (the fingerprint)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content, as hex. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(value: Any) -> str:
    """SHA-256 of a value written as JSON in one fixed way (``dump_json``), as hex."""
    return hash_text(dump_json(value))


def dump_json(value: Any) -> str:
    """A value as JSON without blanks, keys sorted, in ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def hash_text(text: str) -> str:
    """SHA-256 of a text in UTF-8, as hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint(
    *, config: Mapping[str, Any], weights: Mapping[str, str], format_version: int, decoder: str
) -> str:
    """The hash of all that decides the features: two stores that share it may be mixed.

    Args:
        config: The extract config's fields.
        weights: Network -> SHA-256 of its weights.
        format_version: Of the shards.
        decoder: Name and version.
    """
    return hash_json(
        {
            "config": dict(config),
            "weights": dict(weights),
            "format_version": format_version,
            "decoder": decoder,
        }
    )
