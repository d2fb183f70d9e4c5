"""The storage of trials: claimed once, written once, lost to nobody; what ends a trial early."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch

import train.sweep.batches
from features.errors import ConfigError
from features.store.reader import open_store
from tests.train.sweep.sweeps import QUICK, SPACE, batches_of_three, draw, hard_store
from train.data.splits import keep_splits
from train.sweep.storage import Trial, TrialStorage
from train.sweep.trainer import TrialTrainer

SETTINGS = {"lr": 1e-3, "class_weights": "none"}
RESULT = {"acc": 0.5, "loss": 1.0, "best_epoch": 2, "n_epochs": 2}
FINISHED = {
    "complete": Trial(
        slot=0, settings=SETTINGS, state="complete", by_epoch={1: 0.25, 2: 0.5}, result=RESULT
    ),
    "pruned": Trial(slot=0, settings=SETTINGS, state="pruned", by_epoch={1: 0.25}, result=RESULT),
    "failed": Trial(
        slot=0, settings=SETTINGS, state="failed", by_epoch={}, result={"reason": "loss is nan"}
    ),
}


@pytest.mark.parametrize("kind", ["sqlite:///{}/x.db", "journal:{}/x.log"])
@pytest.mark.parametrize("state", FINISHED)
def test_a_trial_is_read_as_it_was_written(state: str, kind: str, tmp_path: Path) -> None:
    url = kind.format(tmp_path)
    one, other = TrialStorage(url, "s", SPACE), TrialStorage(url, "s", SPACE)
    ids = one.claim({0: SETTINGS})
    assert (other.list_claimed(), other.read()) == ({0}, {})
    one.write(ids[0], FINISHED[state])
    assert (other.list_claimed(), other.read()) == (set(), {0: FINISHED[state]})
    assert TrialStorage(url, "another sweep", SPACE).read() == {}


def test_a_slot_is_claimed_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/x.db"
    one, other = TrialStorage(url, "s", SPACE), TrialStorage(url, "s", SPACE)
    one.claim({0: SETTINGS})
    assert other.claim({0: SETTINGS, 1: SETTINGS}) == {}
    assert one.list_claimed() == {0}


def test_a_claim_that_nobody_renews_is_given_up(tmp_path: Path) -> None:
    storage = TrialStorage(f"sqlite:///{tmp_path}/x.db", "s", SPACE)
    storage.claim({0: SETTINGS})
    storage.give_up_dead(60.0)
    assert storage.list_claimed() == {0}
    storage.give_up_dead(0.0)
    assert (storage.list_claimed(), storage.read()) == (set(), {})


@pytest.mark.parametrize("kind", ["sqlite:///{}/x.db", "journal:{}/x.log"])
def test_a_machine_that_slept_drops_what_another_took_over(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = kind.format(tmp_path)
    slept, other = TrialStorage(url, "s", SPACE), TrialStorage(url, "s", SPACE)
    ids = slept.claim({0: SETTINGS})
    other.give_up_dead(0.0)
    theirs = other.claim({0: SETTINGS})
    slept.renew(ids.values())
    slept.give_up(ids.values())
    with caplog.at_level(logging.WARNING):
        slept.write(ids[0], replace(FINISHED["complete"], by_epoch={1: 0.1}))
    assert "trial 0: this machine was silent for more than 10 minutes" in caplog.text
    assert (slept.list_claimed(), slept.read()) == ({0}, {})
    other.write(theirs[0], FINISHED["complete"])
    assert slept.read() == {0: FINISHED["complete"]}


def test_any_url_is_passed_on_to_optuna(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Noted(optuna.storages.RDBStorage):
        def __init__(self, url: str) -> None:
            asked.append(url)
            super().__init__(f"sqlite:///{tmp_path}/x.db")

    monkeypatch.setattr(optuna.storages, "RDBStorage", Noted)
    url = "postgresql+psycopg2://user@host:5432/base?connect_timeout=3"
    assert TrialStorage(url, "s", SPACE).read() == {}
    assert asked == [url]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nowhere", "storage nowhere: cannot be opened"),
        ("nosuch://me:secret@host/base", r"storage nosuch://me:\*\*\*@host/base: cannot be opened"),
        ("sqlite:///{}/no/such/x.db", "unable to open database file"),
        ("sqlite:///{}/damaged", "file is not a database.* delete a damaged file"),
        ("journal:{}/damaged", "cannot be opened"),
        ("journal:{}/damaged/x.log", "cannot be opened"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_told(url: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "damaged").write_bytes(b"not a storage of trials\n" * 100)
    with pytest.raises(ConfigError, match=message) as raised:
        TrialStorage(url.format(tmp_path), "s", SPACE)
    assert "secret" not in str(raised.value)


def test_a_trial_that_is_ended_leaves_the_others_as_they_were(tmp_path: Path) -> None:
    stores = keep_splits([open_store(hard_store(tmp_path))], "train", "val")
    trainer = TrialTrainer(stores, "face", torch.device("cpu"), scratch=tmp_path)
    configs = [replace(QUICK, lr=lr) for lr in (1e-3, 2e-3)]
    ended, other = trainer.train(configs, 1, lambda i, e, _: i == 0 and e == 2, lambda _: None)
    whole = trainer.train(configs, 1, lambda *_: False, lambda _: None)
    assert (ended.state, ended.result["n_epochs"], set(ended.by_epoch)) == ("pruned", 2, {1, 2})
    assert other.state == "complete"
    assert other.by_epoch == pytest.approx(whole[1].by_epoch)


def test_a_trial_below_the_median_of_earlier_ones_is_pruned() -> None:
    done = {
        slot: Trial(
            slot=slot,
            settings=SETTINGS,
            state="complete",
            by_epoch={1: 0.5, 2: 0.5, 3: 0.5, 4: 0.6} if slot else {1: 0.9},
            result=RESULT,
        )
        for slot in range(3)
    }

    def ends(slots: range, values: list[float]) -> list[bool]:
        _, judge = train.sweep.batches._plan_batch(draw(), slots, [], done, n_epochs=8)
        return [judge(0, epoch, value) for epoch, value in enumerate(values, 1)]

    # Nothing in the first quarter of the epochs; then the median of what each had by then.
    with batches_of_three():
        assert ends(range(3, 6), [0.1, 0.4, 0.6, 0.6]) == [False, True, False, False]
        assert ends(range(3), [0.1, 0.1, 0.1, 0.1]) == [False] * 4
