"""The trials of a sweep in an Optuna storage: who tries what, and what came of it.

A *slot* is a trial's place in the sweep, from 0. It is claimed before it is trained and written
once it is finished, so that a killed sweep and several machines never take a trial for done that
is not::

    claim    a trial in state RUNNING, with its settings and the time it was last seen
    finish   its values by epoch, what came of it, and last its state: the one write that counts
    dead     RUNNING but not seen for long, or left by a process that is gone: FAIL, tried again
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from json import JSONDecodeError
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from features.errors import ConfigError
from train.config import rename_stored
from train.sweep.space import Space

_log = logging.getLogger(__name__)

DEAD_AFTER_S = 600.0
"""A claim on a shared storage that nobody renewed for so long belongs to a machine that is gone."""

COMPLETE, PRUNED, FAILED = "complete", "pruned", "failed"
"""What can come of a trial: trained to its end; ended early as below the median; no finite loss."""

STORAGE_ERRORS = (StorageInternalError, SQLAlchemyError, JSONDecodeError)
"""What a storage raises that cannot be read or written; the last is of a torn journal."""

_STATES = {COMPLETE: TrialState.COMPLETE, PRUNED: TrialState.PRUNED, FAILED: TrialState.FAIL}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A finished trial."""

    slot: int
    settings: Mapping[str, Any]
    state: str
    """``complete``, ``pruned`` or ``failed``."""
    by_epoch: Mapping[int, float]
    """Epoch -> the chosen val metric of the best epoch so far, median over the trial's seeds."""
    result: Mapping[str, Any] = field(default_factory=dict)
    """``best_epoch``, ``acc``, ``loss``, ``n_epochs``; or ``reason`` where it failed."""

    @property
    def value(self) -> float | None:
        """The chosen val metric, 0..1; None where there is none."""
        return self.by_epoch[max(self.by_epoch)] if self.by_epoch else None


class TrialStorage:
    """The trials of one sweep."""

    def __init__(self, url: str, name: str, space: Space) -> None:
        """Open, or make, the study of that name.

        Args:
            url: What Optuna takes, for example ``sqlite:///FILE`` or ``postgresql://...``; or
                ``journal:FILE``.
            name: Of the study; the same for the same sweep.
            space: What is varied.

        Raises:
            ConfigError: The storage cannot be opened.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = dict(space)
        try:
            self._storage = _open_storage(url)
            self._study = optuna.create_study(
                storage=self._storage, study_name=name, direction="maximize", load_if_exists=True
            )
        except (ImportError, OSError, ValueError, *STORAGE_ERRORS) as error:
            first_line = str(error).splitlines()[0]
            raise ConfigError(
                f"storage {_hide_password(url)}: cannot be opened ({first_line}). Give a URL that "
                "Optuna takes, for example postgresql://host/database with its driver installed, "
                "or journal:FILE in a folder that all machines see; delete a damaged file, and "
                "its trials are tried again."
            ) from error
        self._study_id = self._storage.get_study_id_from_name(name)

    def read(self) -> dict[int, Trial]:
        """The finished trials by slot, in order."""
        found: dict[int, Trial] = {}
        for frozen in self._study.get_trials(deepcopy=False):
            trial = _read_trial(frozen)
            if trial is not None:
                found.setdefault(trial.slot, trial)
        return dict(sorted(found.items()))

    def list_claimed(self) -> set[int]:
        """Slots that somebody is at."""
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return {int(frozen.user_attrs["slot"]) for frozen in running}

    def claim(self, settings: Mapping[int, Mapping[str, Any]]) -> dict[int, int]:
        """Take slots, each with its settings.

        Returns:
            Slot -> Optuna's trial id; nothing where another machine was a moment earlier.
        """
        ids = {}
        for slot, of_slot in settings.items():
            template = create_trial(
                state=TrialState.RUNNING,
                params=dict(of_slot),
                distributions=self._space,
                user_attrs={"slot": slot, "seen": time.time()},
            )
            ids[slot] = self._storage.create_new_trial(self._study_id, template_trial=template)
        # Each claimant wrote before it reads, so the later of two always sees the earlier.
        first: dict[int, int] = {}
        for frozen in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            first.setdefault(int(frozen.user_attrs["slot"]), frozen._trial_id)
        if any(first[slot] != trial_id for slot, trial_id in ids.items()):
            self.give_up(ids.values())
            return {}
        return ids

    def renew(self, ids: Iterable[int]) -> None:
        """Tell that claims are being worked on; those that were given up meanwhile stay so."""
        for trial_id in ids:
            with suppress(UpdateFinishedTrialError):
                self._storage.set_trial_user_attr(trial_id, "seen", time.time())

    def give_up(self, ids: Iterable[int]) -> None:
        """Let go of claims, to be tried again; somebody else may have done so already."""
        for trial_id in ids:
            with suppress(UpdateFinishedTrialError):
                self._storage.set_trial_state_values(trial_id, TrialState.FAIL)

    def give_up_dead(self, unseen_s: float) -> None:
        """Let go of the claims that nobody renewed for so many seconds."""
        now = time.time()
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        self.give_up(
            [t._trial_id for t in running if now - float(t.user_attrs["seen"]) >= unseen_s]
        )

    def write(self, trial_id: int, trial: Trial) -> None:
        """Write what came of a claimed slot.

        Where the claim was given up meanwhile, as a machine that slept for long finds, nothing is
        written: whoever took the slot over writes it.
        """
        try:
            for epoch, value in trial.by_epoch.items():
                self._storage.set_trial_intermediate_value(trial_id, epoch, value)
            self._storage.set_trial_user_attr(trial_id, "result", dict(trial.result))
            values = None if trial.state == FAILED or trial.value is None else [trial.value]
            self._storage.set_trial_state_values(trial_id, _STATES[trial.state], values)
        except UpdateFinishedTrialError:
            _log.warning(
                "trial %d: this machine was silent for more than %.0f minutes, so another may try "
                "it again; what came of it here is dropped",
                trial.slot,
                DEAD_AFTER_S / 60,
            )


def make_history(
    trials: Sequence[Trial], space: Space, *, seed: int, n_startup: int, n_warmup: int
) -> optuna.Study:
    """A study in memory that knows some trials: it draws new ones and prunes by the known ones.

    Args:
        trials: Finished ones.
        space: What they vary.
        seed: Of the draws: they are a function of the seed and the trials.
        n_startup: Trials that are drawn at random, and none is pruned by less.
        n_warmup: Epochs in which nothing is pruned.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=n_startup, constant_liar=True
        )
    study = optuna.create_study(
        direction="maximize",
        sampler=sampler,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=n_startup, n_warmup_steps=n_warmup),
    )
    epochs = sorted({epoch for trial in trials for epoch in trial.by_epoch})
    study.add_trials(
        [
            create_trial(
                state=_STATES[trial.state],
                params=dict(trial.settings),
                distributions=dict(space),
                value=trial.value,
                intermediate_values=_carry_on(trial, epochs),
            )
            for trial in trials
            if trial.state != FAILED
        ]
    )
    return study


def _carry_on(trial: Trial, epochs: Sequence[int]) -> dict[int, float]:
    """Values by epoch; that of a complete trial stays after its end, for others to be judged by."""
    values = dict(trial.by_epoch)
    if trial.state == COMPLETE and trial.value is not None:
        values |= {epoch: trial.value for epoch in epochs if epoch > max(trial.by_epoch)}
    return values


def _open_storage(url: str) -> optuna.storages.BaseStorage:
    if url.startswith("journal:"):
        from optuna.storages.journal import JournalFileBackend

        file = Path(url.removeprefix("journal:").removeprefix("//"))
        file.parent.mkdir(parents=True, exist_ok=True)
        return optuna.storages.JournalStorage(JournalFileBackend(str(file)))
    return optuna.storages.RDBStorage(url)


def _hide_password(url: str) -> str:
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url


def _read_trial(frozen: FrozenTrial) -> Trial | None:
    """None for a claim, dead or alive."""
    result = frozen.user_attrs.get("result")
    if result is None or not frozen.state.is_finished():
        return None
    if frozen.state is TrialState.FAIL and "reason" not in result:
        return None
    (state,) = (name for name, of_optuna in _STATES.items() if of_optuna is frozen.state)
    return Trial(
        slot=int(frozen.user_attrs["slot"]),
        settings=rename_stored(frozen.params),
        state=state,
        by_epoch=dict(sorted(frozen.intermediate_values.items())),
        result=dict(result),
    )
