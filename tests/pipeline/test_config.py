"""Settings of stage one: what they mean, and what is refused with a word on what to do."""

from __future__ import annotations

import pytest

from features.errors import ConfigError
from pipeline.config import ExtractConfig


@pytest.mark.parametrize(
    ("min_face", "height", "expected"),
    [("20", 720, 20), ("20", 100, 20), ("5%", 720, 36), ("2.5%", 720, 18), ("1%", 100, 12)],
)
def test_the_least_face_is_pixels_or_a_share_of_the_height(
    min_face: str, height: int, expected: int
) -> None:
    assert ExtractConfig(min_face=min_face).min_face_px(height) == expected


@pytest.mark.parametrize("min_face", ["11", "", "five", "0%", "101%", "-20", "20.5", "20 px"])
def test_a_least_face_that_means_nothing_is_refused(min_face: str) -> None:
    with pytest.raises(ConfigError, match="expected whole pixels, at least 12"):
        ExtractConfig(min_face=min_face)


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("detect", "fast", "exact or tracked"),
        ("precision", "float16", "auto, float32 or bfloat16"),
        ("phases", 0, r"1\.\.60"),
        ("thresholds", (0.6, 0.7, 1.5), r"0\.\.1"),
    ],
)
def test_other_settings_are_refused_with_what_is_expected(
    setting: str, value: object, expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        ExtractConfig(**{setting: value})  # type: ignore[arg-type]


def test_only_the_train_split_has_phases() -> None:
    assert [ExtractConfig(phases=3).n_phases(s) for s in ("train", "val", "test")] == [3, 1, 1]
