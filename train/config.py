"""The settings of ``fit``: everything that decides what a run learns, and nothing else.

Stores, folders, heads, seeds and the device are arguments of the driver, not settings.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any

from features.errors import ConfigError
from features.settings import change_settings
from train.streams import (
    ENSEMBLE,
    HEADS,
    MATRICES,
    NETWORKS,
    OWN,
    can_read,
    choose_grid,
    choose_streams,
    split_members,
    split_streams,
)

_log = logging.getLogger(__name__)

ALGORITHM = 2
"""Raised whenever equal settings come to train otherwise: it enters each run's hash."""

CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "faces": ("all", "largest", "track"),
        "context": ("own", "2x2", "7x7"),
        "precision": ("auto", "float32", "bfloat16"),
        "select": ("map_mec", "acc", "uar", "f1_macro", "map_rank"),
        "class_weights": ("none", "balanced"),
        "sampling": ("shuffled", "balanced"),
        "standardise": ("off", "on"),
    }
)
"""The settings that take a word, and the words."""

STORED_NAMES: Mapping[str, str] = MappingProxyType(
    {"min_updates": "min_steps", "max_time_steps": "max_steps", "max_scorings": "scorings"}
)
"""Setting -> its former name, under which it enters the hashes that name runs and sweeps: they are
those of before. Old run folders and sweeps, and ``--set``, may hold it too."""

CURRENT_NAMES: Mapping[str, str] = {old: name for name, old in STORED_NAMES.items()}


def rename_stored(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by the names of now, whichever they are written by."""
    return {CURRENT_NAMES.get(name, name): value for name, value in settings.items()}


def name_as_stored(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by the names that enter hashes."""
    return {STORED_NAMES.get(name, name): value for name, value in settings.items()}


def name_setting(key: str) -> str:
    """The name of now of a setting that a user names; a former one is logged as a warning."""
    name = CURRENT_NAMES.get(key, key)
    if name != key:
        _log.warning("setting %s: is called %s now; the old name is still read", key, name)
    return name


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"setting {name}: found {value!r}, expected {', '.join(choices)}.")


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """What decides a run besides its store, head and seed. Defaults are the paper's (IV-C).

    Raises:
        ConfigError: A value is out of its range.
    """

    faces: str = "all"
    """Face rows that a head reads: ``all`` (IV-B), ``largest`` (one a frame) or ``track`` (the
    person seen most often)."""
    context: str = OWN
    """``2x2`` (Table I), ``7x7`` (as submitted), or ``own``: what the head was published with."""
    streams: str = OWN
    """What heads read, in order, for example ``context,audio,face``; ``own``: what a head was
    published with, as does a head that cannot read so many."""
    members: str = "caca,conv2d3d"
    """Of ``ensemble``: the heads whose runs it weighs; they are trained where they are missing."""
    lr: float = 1e-4
    """Adam's step size."""
    batch_size: int = 32
    epochs: int = 30
    """Passes over the train clips, unless ``min_updates`` asks for more."""
    min_updates: int = 500
    """A small store is passed over more often, until so many updates were made; 0: never."""
    patience: float = 0.35
    """A run ends once its best epoch lies this share of all epochs back; 1: never."""
    max_scorings: int = 100
    """How often val is scored during a run at most: every epoch, or every n-th if more epochs."""
    select: str = "map_mec"
    """The val metric that chooses the epoch; ties go to accuracy, then the lower loss."""
    max_time_steps: int = 256
    """Face rows of one clip that are read at most, from its start; 0: no limit."""
    precision: str = "auto"
    """Of the matrix products in training, and when val is scored to choose the epoch; ``auto`` is
    bfloat16 where the device has it. What a run is reported with is computed in float32."""
    class_weights: str = "none"
    """``balanced``: a clip counts in the loss by how rare its class is among the train clips."""
    sampling: str = "shuffled"
    """``balanced``: an epoch shows as many clips of each class, repeating those of rare classes."""
    dropout: float = 0.0
    """Share of the values zeroed in training before each LSTM layer and before the last Linear."""
    label_smoothing: float = 0.0
    """Share of each label that is spread evenly over the classes."""
    standardise: str = "off"
    """``on``: heads take from each value of a stream its mean over the train rows, and divide it by
    its standard deviation there."""

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            _check_choice(name, getattr(self, name), choices)
        split_streams(self.streams)
        for member in split_members(self.members):
            _check_choice("members", member, NETWORKS)
        ranges = {
            "lr": 0 < self.lr < 1,
            "batch_size": self.batch_size >= 1,
            "epochs": self.epochs >= 1,
            "min_updates": self.min_updates >= 0,
            "patience": 0 < self.patience <= 1,
            "max_scorings": self.max_scorings >= 1,
            "max_time_steps": self.max_time_steps >= 0,
            "dropout": 0 <= self.dropout < 1,
            "label_smoothing": 0 <= self.label_smoothing < 1,
        }
        for name, is_right in ranges.items():
            if not is_right:
                raise ConfigError(
                    f"setting {name}: found {getattr(self, name)}, which is out of range. "
                    f"The default is {_DEFAULTS[name]}."
                )

    def choose_streams(self, head: str, matrices: Collection[str] = MATRICES) -> dict[str, str]:
        """As ``train.streams.choose_streams``, with these settings."""
        return choose_streams(head, context=self.context, streams=self.streams, matrices=matrices)


_DEFAULTS: Mapping[str, object] = {f.name: f.default for f in fields(FitConfig)}


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Heads and settings that belong together under one name."""

    heads: tuple[str, ...]
    config: FitConfig


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        name: Preset(
            heads=tuple(head for head, spec in HEADS.items() if spec.preset == name),
            config=FitConfig(context=grid),
        )
        for name, grid in (("table1", "2x2"), ("submitted", "7x7"))
    }
)
"""``table1``: the comparison of section V. ``submitted``: the two networks of Table II."""


def choose_preset(head: str) -> Preset:
    """The preset that a head was published with; ``table1`` for a head of neither."""
    of_head = [preset for preset in PRESETS.values() if head in preset.heads]
    return of_head[0] if of_head else PRESETS["table1"]


def parse_settings(settings: Sequence[str], config: FitConfig) -> FitConfig:
    """As ``features.settings.change_settings``; former names are taken, too."""
    return change_settings(settings, config, name_setting)


_TELL_STREAMS = ("cascade", ENSEMBLE)
"""Heads whose runs told their streams before other heads could be given any."""


def describe_settings(head: str, config: FitConfig) -> dict[str, Any]:
    """The settings that decide a run of a head: its context grid by name, none of other heads, and
    ``ALGORITHM``. Streams only where they are not the head's own, but in heads that always told."""
    settings = {**asdict(config), "algorithm": ALGORITHM}
    own = HEADS[head].streams
    if head != ENSEMBLE:
        del settings["members"]
        settings["context"] = choose_grid(head, config.context)
    if head in _TELL_STREAMS:
        if config.streams == OWN or (head != ENSEMBLE and not can_read(head, config.streams)):
            settings["streams"] = ",".join(own)
    elif tuple(config.choose_streams(head)) == own:
        del settings["streams"]
    if config.standardise == "off":
        del settings["standardise"]
    return settings


def find_matrices(
    heads: Iterable[str], config: FitConfig, matrices: Collection[str] = MATRICES
) -> set[str]:
    """The feature matrices that some heads need. matrices: What there is."""
    return {name for head in heads for name in config.choose_streams(head, matrices).values()}


def expand_heads(heads: Sequence[str], config: FitConfig) -> tuple[str, ...]:
    """The heads to train, in order, each once: an ensemble's members stand before it."""
    expanded: list[str] = []
    for head in heads:
        expanded += split_members(config.members) if head == ENSEMBLE else ()
        expanded.append(head)
    return tuple(dict.fromkeys(expanded))


def check_heads(heads: Sequence[str]) -> None:
    """Raise ConfigError unless each name is a known head and none stands twice."""
    for name in heads:
        _check_choice("head", name, tuple(HEADS))
    if len(set(heads)) != len(heads):
        raise ConfigError(f"heads {', '.join(heads)}: one stands twice. Name each head once.")
    if not heads:
        raise ConfigError(f"no head named. Known heads: {', '.join(HEADS)}.")


def check_head_streams(heads: Sequence[str], config: FitConfig) -> None:
    """Check that some head reads as many streams as are named; warn of those that do not.

    Args:
        heads: An ensemble's members among them.
        config: Of the fit.

    Raises:
        ConfigError: None does.
    """
    networks = [head for head in heads if head != ENSEMBLE]
    others = [head for head in networks if not can_read(head, config.streams)]
    if not others:
        return
    expected = "two streams or more" if len(split_streams(config.streams)) == 1 else "one stream"
    names = ", ".join(others)
    if others == networks:
        raise ConfigError(
            f"streams {config.streams}: expected {expected}, for {names}. Name other streams with "
            "--streams, or other heads with --head."
        )
    _log.warning(
        "streams %s: not read by %s (expected %s), which read their own",
        config.streams,
        names,
        expected,
    )
