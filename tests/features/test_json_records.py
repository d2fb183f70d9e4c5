"""JSON of any content becomes a right record or one error that says file, field and both kinds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.errors import RunError, ShardError
from features.json_records import MOST_JSON_BYTES, JsonFormat, build_record, parse_object


@dataclass(frozen=True, kw_only=True)
class Part:
    name: str
    size: int

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError("size is below 0")


@dataclass(frozen=True, kw_only=True)
class Whole:
    parts: tuple[Part, ...]
    shape: tuple[int, float]
    counts: Mapping[str, float]
    done: bool
    comment: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


THINGS = JsonFormat(
    name="thing", version=3, damaged=ShardError, other_version=RunError, remedy="Mend it."
)
MARKS = {"format": "thing", "version": 3}
VALUES: dict[str, Any] = {
    "parts": [{"name": "a", "size": 1}],
    "shape": [2, 0.5],
    "counts": {"x": 1},
    "done": True,
}
texts = st.text(st.characters(exclude_categories=["Cs"]))
numbers = st.floats(allow_nan=False, allow_infinity=False)
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=20,
)
wholes = st.builds(
    Whole,
    parts=st.lists(st.builds(Part, name=texts, size=st.integers(0))).map(tuple),
    shape=st.tuples(st.integers(), numbers),
    counts=st.dictionaries(texts, numbers | st.integers()),
    done=st.booleans(),
    comment=st.none() | texts,
    more=st.dictionaries(texts, any_json),
)


def read(**changed: Any) -> Whole:
    return THINGS.read(Whole, json.dumps(MARKS | VALUES | changed), "a.json")


@given(wholes)
def test_what_was_written_is_read(whole: Whole) -> None:
    assert THINGS.read(Whole, THINGS.dump(whole), "a.json") == whole


@given(st.dictionaries(st.sampled_from([*VALUES, "comment", "more", "other"]), any_json))
def test_any_object_is_a_right_record_or_one_error(changed: dict[str, Any]) -> None:
    try:
        whole = read(**changed)
    except ShardError:
        return
    assert all(type(part.name) is str and type(part.size) is int for part in whole.parts)
    assert [type(whole.shape[0]), type(whole.done)] == [int, bool]
    assert all(type(n) in (int, float) for n in (whole.shape[1], *whole.counts.values()))
    assert whole.comment is None or type(whole.comment) is str


@given(st.binary() | st.text() | any_json.map(json.dumps))
def test_any_text_is_an_object_or_a_value_error(text: str | bytes) -> None:
    try:
        assert type(parse_object(text)) is dict
    except ValueError:
        return


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"done": 1}, "done is 1, expected true or false"),
        ({"shape": [2, True]}, r"shape\[1\] is True, expected a number"),
        ({"shape": [2]}, "shape has 1 values, expected 2"),
        ({"parts": {}}, "parts is {}, expected a list"),
        ({"parts": [{"name": "a", "size": 1.0}]}, r"parts\[0\].size is 1.0, expected a whole .*"),
        ({"parts": [{"size": 1}]}, r"parts\[0\].name is missing"),
        ({"parts": [{"name": "a", "size": -1}]}, "size is below 0"),
        ({"counts": {"x": "1"}}, "counts.x is '1', expected a number"),
        ({"comment": 3}, "comment is 3, expected a text"),
    ],
)  # fmt: skip
def test_an_error_names_file_field_found_and_expected(
    changed: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ShardError, match=rf"^a\.json: damaged \({problem}\)\. Mend it\.$"):
        read(**changed)


@pytest.mark.parametrize("text", [
    "", "[]", "{", "7", '{"a": NaN}', '{"a": 1e999}', '{"a": "\\ud800"}', "[" * 10**5, b"\xff",
    " " * (MOST_JSON_BYTES + 1),
])  # fmt: skip
def test_damaged_json_is_one_error(text: str | bytes) -> None:
    with pytest.raises(ShardError, match=r"^a\.json: damaged \(.*\)\. Mend it\.$"):
        THINGS.parse(text, "a.json")


def test_another_version_is_an_error_of_its_own() -> None:
    with pytest.raises(RunError, match="format 'thing' version 4, but this code reads 'thing' ver"):
        read(version=4)


def test_a_key_that_is_not_known_is_ignored_unless_the_format_is_strict() -> None:
    assert read(new=1) == read()
    strict = JsonFormat(name="thing", version=3, damaged=ShardError, remedy="", strict=True)
    with pytest.raises(ShardError, match="new is not a known field"):
        strict.read(Whole, json.dumps(MARKS | VALUES | {"new": 1}), "a.json")


def test_a_file_is_named_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(RunError, match=r"x\.json: format None version None"):
        THINGS.read(Whole, tmp_path / "x.json")


def test_a_record_without_marks_is_built_from_an_object() -> None:
    assert build_record(Part, {"name": "a", "size": 1}) == Part(name="a", size=1)
