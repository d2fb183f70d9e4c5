"""What a sweep tries is read from texts, and wrong texts are explained."""

from __future__ import annotations

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from features.errors import ConfigError
from tests.train.sweep.sweeps import QUICK
from train.sweep.space import parse_grid, parse_space


def test_spaces_are_read_from_texts() -> None:
    space = parse_space(["lr=1e-5..1e-3", "batch_size=8..16", "faces=all,track"], QUICK)
    assert space == {
        "lr": FloatDistribution(1e-5, 1e-3, log=True),
        "batch_size": IntDistribution(8, 16),
        "faces": CategoricalDistribution(("all", "track")),
    }


BOTH = [
    pytest.param(["lr="], "expected KEY=", id="no value"),
    pytest.param(["lr=1e-4,1e-4"], "a value stands twice", id="value twice"),
    pytest.param(["lr=1e-4,0.0001"], "a value stands twice", id="value written in two ways"),
    pytest.param(["lr=1e-4,1e-3", "lr=1e-2,1e-1"], "lr is given twice", id="key twice"),
    pytest.param(["rate=1,2"], "'rate': unknown. Known settings: faces,", id="unknown key"),
    pytest.param(["lr=1e-4,fast"], "found 'fast', expected a number", id="word for number"),
    pytest.param(["epochs=3,4.5"], "found '4.5', expected a whole number", id="half an epoch"),
    pytest.param(["lr=1e-4,,1e-3"], "found '', expected a number", id="comma twice"),
    pytest.param(["faces=all,some"], "expected all, largest, track", id="not a choice"),
    pytest.param(["dropout=0,1"], "found 1.0, which is out of range", id="out of range"),
    pytest.param(["select=acc,uar"], "trials are compared by, so it cannot", id="select"),
]


@pytest.mark.parametrize(("texts", "message"), BOTH)
def test_a_wrong_grid_is_explained(texts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_grid(texts, QUICK)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        *BOTH,
        pytest.param(["lr"], "expected KEY=LOW..HIGH or KEY=A,B,C", id="key only"),
        pytest.param(["lr=1e-2..1e-4"], "the lower one first", id="ends exchanged"),
        pytest.param(["faces=all..track"], "expected two numbers", id="range of words"),
        pytest.param(["dropout=0..1"], "out of range", id="end out of range"),
        pytest.param(["lr=1e-4.."], "found '', expected a number", id="one end"),
    ],
)
def test_a_wrong_space_is_explained(texts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_space(texts, QUICK)
