"""What mattered in a sweep: settings that decide come first, settings that do not get nothing."""

from __future__ import annotations

import numpy as np
import pytest

from train.config import FitConfig
from train.sweep.space import list_points, parse_grid, parse_space
from train.sweep.storage import Trial
from train.sweep.tables import find_best, tabulate_importance, tabulate_trials


def finished(slot: int, value: float, **changed: object) -> Trial:
    values = {
        "slot": slot,
        "settings": {},
        "state": "complete",
        "by_epoch": {1: value},
        "result": {"acc": 0.5, "loss": 1.0, "best_epoch": 1, "n_epochs": 1},
    }
    return Trial(**(values | changed))  # type: ignore[arg-type]


def test_a_grid_shares_the_variance_that_its_means_explain() -> None:
    grid = parse_grid(["lr=1e-4,1e-3", "dropout=0,0.3", "faces=all,track"], FitConfig())
    worth = {1e-4: 0.0, 1e-3: 0.4, 0.0: 0.0, 0.3: 0.2, "all": 0.1, "track": 0.1}
    trials = [
        finished(i, sum(worth[v] for v in point.values()), settings=point)
        for i, point in enumerate(list_points(grid))
    ]
    table = tabulate_importance(trials, grid, drawn=False)
    assert table["setting"].unique().tolist() == ["lr", "dropout", "faces"]
    assert table.groupby("setting")["importance"].first().to_dict() == pytest.approx(
        {"lr": 0.8, "dropout": 0.2, "faces": 0.0}  # squared differences of means, 16 : 4 : 0
    )
    rows = table.set_index(["setting", "value"])
    assert rows.loc[("lr", "0.001"), "mean"] == pytest.approx(0.6)
    assert rows.loc[("dropout", "0.0"), "best"] == pytest.approx(0.5)
    assert (table["complete"] == 4).all()


def test_of_drawn_trials_the_setting_that_decides_is_told_first() -> None:
    space = parse_space(["lr=1e-5..1e-2", "dropout=0..0.6"], FitConfig())
    rng = np.random.default_rng(0)
    trials = []
    for slot in range(60):
        settings = {"lr": 10 ** rng.uniform(-5, -2), "dropout": rng.uniform(0, 0.6)}
        value = 1 - abs(np.log10(settings["lr"]) + 3) / 3
        trials.append(finished(slot, float(value), settings=settings))
    table = tabulate_importance(trials, space, drawn=True)
    assert table["setting"].tolist() == ["lr"] * 3 + ["dropout"] * 3
    assert table["importance"].iloc[0] > 0.9
    assert table["value"].tolist()[:3] == ["1e-05..0.0001", "0.0001..0.001", "0.001..0.01"]
    assert table["mean"].iloc[0] < table["mean"].iloc[1]
    assert table["complete"].sum() == 2 * 60


@pytest.mark.parametrize("drawn", [False, True])
def test_where_all_is_equal_nothing_mattered(drawn: bool) -> None:
    grid = parse_grid(["lr=1e-4,1e-3"], FitConfig())
    trials = [finished(i, 0.5, settings=point) for i, point in enumerate(list_points(grid))]
    assert (tabulate_importance(trials, grid, drawn=drawn)["importance"] == 0).all()


def test_the_best_trial_is_complete_and_ties_go_to_accuracy_then_the_earlier() -> None:
    result = {"acc": 0.6, "loss": 1.0, "best_epoch": 1, "n_epochs": 1}
    trials = [
        finished(0, 0.5),
        finished(1, 0.5, result=result),
        finished(2, 0.5, result=result),
        finished(3, 0.9, state="pruned"),
        finished(4, 0.9, state="failed", by_epoch={}, result={"reason": "nan"}),
    ]
    best = find_best(trials)
    assert best is not None
    assert best.slot == 1
    assert find_best(trials[3:]) is None


def test_a_failed_trial_stands_in_the_table_with_its_reason() -> None:
    grid = parse_grid(["lr=1e-4,1e-3"], FitConfig())
    trials = [
        finished(0, 0.5, settings={"lr": 1e-4}),
        finished(
            1, 0, settings={"lr": 1e-3}, state="failed", by_epoch={}, result={"reason": "nan"}
        ),
    ]
    row = tabulate_trials(trials, grid, "map_mec").iloc[1]
    assert (row["state"], row["reason"]) == ("failed", "nan")
    assert np.isnan(row["val_map_mec"])
