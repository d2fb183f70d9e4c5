"""Reads JSON that others wrote into dataclasses: whatever it holds, a right record or one error.

Annotations say what JSON must be: ``str``, ``int``, ``float`` (any number), ``bool``, ``X | None``,
``tuple[X, ...]``, ``tuple[X, Y]``, ``Mapping[str, X]``, dataclasses (fields with a default may be
missing), ``Any``.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from features.errors import UserError

MOST_JSON_BYTES = 1 << 26
"""Of a text that is parsed: store.json lists some 300,000 shards in as much."""

T = TypeVar("T")

_SCALARS: dict[Any, tuple[tuple[type, ...], str]] = {
    str: ((str,), "a text"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    bool: ((bool,), "true or false"),
}


@dataclass(frozen=True, kw_only=True)
class JsonFormat:
    """A kind of JSON file: its name and version, and what is raised where a file is not of it."""

    name: str | None
    """Value of its key ``format``, beside ``version``; None: the file has neither."""
    version: int = 1
    damaged: type[UserError]
    """Raised where it is not JSON, or a field is missing or of another type."""
    other_version: type[UserError] = UserError
    """Raised where it is of another format or version."""
    remedy: str
    """What to do about a damaged file."""
    strict: bool = False
    """A key that the dataclass lacks is an error; else it is ignored."""

    def parse(self, source: Path | bytes | str, where: str = "") -> dict[str, Any]:
        """The object in a file (its path, or its content and ``where`` it was, for messages).

        Raises:
            UserError: ``damaged`` or ``other_version``. OSError: it cannot be read.
        """
        if isinstance(source, Path):
            where = str(source)
            with source.open("rb") as file:
                source = file.read(MOST_JSON_BYTES + 1)
        try:
            value = parse_object(source)
        except ValueError as error:
            raise self.damaged(f"{where}: damaged ({error}). {self.remedy}") from error
        found = (value.get("format"), value.get("version"))
        if self.name is not None and found != (self.name, self.version):
            raise self.other_version(
                f"{where}: format {reprlib.repr(found[0])} version {reprlib.repr(found[1])}, but "
                f"this code reads {self.name!r} version {self.version}. Update the code if the "
                "file is newer; make it again if it is older."
            )
        return value

    def build(self, kind: type[T], value: Mapping[str, Any], where: str) -> T:
        """A dataclass from what ``parse`` returned. Raises ``damaged``."""
        try:
            known = {"format", "version", *(f.name for f in fields(cast(Any, kind)))}
            if self.strict and (unknown := value.keys() - known):
                raise ValueError(f"{min(unknown)} is not a known field")
            return cast(T, build_record(kind, value))
        except ValueError as error:
            raise self.damaged(f"{where}: damaged ({error}). {self.remedy}") from error

    def read(self, kind: type[T], source: Path | bytes | str, where: str = "") -> T:
        """``parse`` and ``build``."""
        return self.build(kind, self.parse(source, where), where or str(source))

    def dump(self, record: Any) -> str:
        """The content of a file: format, version and a dataclass's fields."""
        described = {"format": self.name, "version": self.version, **asdict(record)}
        return json.dumps(described, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Parse a JSON object. Raises ValueError where it is too long or too deep, not JSON, not an
    object, or holds a number that is not finite or text that is not Unicode."""
    if len(text) > MOST_JSON_BYTES:
        raise ValueError(f"{len(text)} bytes of JSON, expected {MOST_JSON_BYTES} at most")
    try:
        value = json.loads(text)
        # What Python parses beyond the standard, it cannot write back: NaN, half a surrogate pair.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    found: dict[str, Any] = _check(value, (dict,), "an object", "it")
    return found


def build_record(kind: Any, value: Any, name: str = "it") -> Any:
    """Parsed JSON as a value of a type. Raises ValueError where it is of another, or a dataclass
    refuses it; name: of the value, for that message."""
    arguments = get_args(kind)
    if kind is Any or (value is None and NoneType in arguments):
        return value
    if isinstance(kind, UnionType):
        (kind,) = set(arguments) - {NoneType}
        return build_record(kind, value, name)
    if kind in _SCALARS:
        return _check(value, *_SCALARS[kind], name)
    if get_origin(kind) is tuple:
        items = _check(value, (list,), "a list", name)
        kinds = [arguments[0]] * len(items) if arguments[-1] is ... else arguments
        if len(items) != len(kinds):
            raise ValueError(f"{name} has {len(items)} values, expected {len(kinds)}")
        return tuple(build_record(kinds[i], item, f"{name}[{i}]") for i, item in enumerate(items))
    found = _check(value, (dict,), "an object", name)
    within = "" if name == "it" else f"{name}."
    if not is_dataclass(kind):
        return {key: build_record(arguments[1], v, f"{within}{key}") for key, v in found.items()}
    values = {}
    for field, field_kind, has_default in _list_fields(cast(Any, kind)):
        if field in found:
            values[field] = build_record(field_kind, found[field], f"{within}{field}")
        elif not has_default:
            raise ValueError(f"{within}{field} is missing")
    return kind(**values)  # type: ignore[operator]


@cache
def _list_fields(kind: Any) -> tuple[tuple[str, Any, bool], ...]:
    """Name and type of each field of a dataclass, and whether it has a default."""
    types = get_type_hints(kind)
    return tuple(
        (f.name, types[f.name], not f.default is f.default_factory is MISSING) for f in fields(kind)
    )


def _check(value: Any, kinds: tuple[type, ...], expected: str, name: str) -> Any:
    if type(value) not in kinds:
        raise ValueError(f"{name} is {reprlib.repr(value)}, expected {expected}")
    return value
