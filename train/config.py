"""The settings of ``fit``: everything that decides what a run learns, and nothing else.

Stores, folders, heads, seeds and the device are arguments of the driver, not settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import Any

from features.errors import ConfigError

ALGORITHM = 2
"""Raised whenever equal settings come to train otherwise: it enters each run's hash."""

FACES: tuple[str, ...] = ("all", "largest", "track")
"""Which face rows of a clip a head reads: all of them (IV-B), or one a frame."""

CONTEXT_GRIDS: tuple[str, ...] = ("own", "2x2", "7x7")
"""How finely the context features are pooled; ``own`` leaves it to the head."""

PRECISIONS: tuple[str, ...] = ("auto", "float32", "bfloat16")
"""What training multiplies matrices in; ``auto`` takes bfloat16 where the device has it."""

SELECT_METRICS: tuple[str, ...] = ("map_mec", "acc", "uar", "f1_macro", "map_rank")
"""Metrics of the val split that may choose the epoch and the reported run; more is better."""

CLASS_WEIGHTS: tuple[str, ...] = ("none", "balanced")
"""How much a clip's class counts in the loss: all alike, or the rarer the more."""

SAMPLINGS: tuple[str, ...] = ("shuffled", "balanced")
"""Which clips an epoch shows: each once, or as many of each class as of every other."""

TABLE_1_HEADS: tuple[str, ...] = (
    "face",
    "context",
    "parallel",
    "concatenated",
    "caca-a",
    "caca-b",
)
"""The six heads of Table I, in its order."""

ENSEMBLE = "ensemble"
"""The one head that is no network: it weighs the probabilities of other heads' runs (VI)."""

HEAD_NAMES: tuple[str, ...] = (*TABLE_1_HEADS, "caca", "conv2d3d", "cascade", ENSEMBLE)
"""Every head that can be trained: ``caca`` is the submitted one of IV-C, ``conv2d3d`` that of
Fig. 4, ``cascade`` reads any streams."""


def split_names(setting: str, text: str) -> tuple[str, ...]:
    """Take a setting like ``context,face`` apart.

    Raises:
        ConfigError: Fewer than two names, or one stands twice.
    """
    names = tuple(name.strip() for name in text.split(","))
    if len(names) < 2 or len(set(names)) < len(names) or not all(names):
        raise ConfigError(
            f"setting {setting}: found {text!r}, expected two or more names, each once, for "
            f"example {_DEFAULTS[setting]}."
        )
    return names


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
    """``all``, ``largest`` (one a frame) or ``track`` (the person seen most often)."""
    context: str = "own"
    """``2x2`` (Table I), ``7x7`` (as submitted), or ``own``: what the head was published with."""
    streams: str = "context,face"
    """Of ``cascade``: the streams it reads, in order; extra streams of the store among them."""
    members: str = "caca,conv2d3d"
    """Of ``ensemble``: the heads whose runs it weighs; they are trained where they are missing."""
    lr: float = 1e-4
    """Adam's step size."""
    batch_size: int = 32
    epochs: int = 30
    """Passes over the train clips, unless ``min_steps`` asks for more."""
    min_steps: int = 500
    """A small store is passed over more often, until this many batches were seen; 0: never."""
    patience: float = 0.35
    """A run ends once its best epoch lies this share of all epochs back; 1: never."""
    scorings: int = 100
    """How often val is scored during a run at most: every epoch, or every n-th if more epochs."""
    select: str = "map_mec"
    """The val metric that chooses the epoch; ties go to accuracy, then the lower loss."""
    max_steps: int = 256
    """Face rows of one clip that are read at most, from its start; 0: no limit."""
    precision: str = "auto"
    """Of the matrix products in training, and when val is scored to choose the epoch. What a run is
    reported with is computed in float32."""
    class_weights: str = "none"
    """``balanced``: a clip counts in the loss by how rare its class is among the train clips."""
    sampling: str = "shuffled"
    """``balanced``: an epoch shows as many clips of each class, repeating those of rare classes."""
    dropout: float = 0.0
    """Share of the values zeroed in training before each LSTM layer and before the last Linear."""
    label_smoothing: float = 0.0
    """Share of each label that is spread evenly over the classes."""

    def __post_init__(self) -> None:
        _check_choice("faces", self.faces, FACES)
        _check_choice("context", self.context, CONTEXT_GRIDS)
        _check_choice("select", self.select, SELECT_METRICS)
        _check_choice("precision", self.precision, PRECISIONS)
        _check_choice("class_weights", self.class_weights, CLASS_WEIGHTS)
        _check_choice("sampling", self.sampling, SAMPLINGS)
        split_names("streams", self.streams)
        for member in split_names("members", self.members):
            _check_choice("members", member, [name for name in HEAD_NAMES if name != ENSEMBLE])
        ranges = {
            "lr": 0 < self.lr < 1,
            "batch_size": self.batch_size >= 1,
            "epochs": self.epochs >= 1,
            "min_steps": self.min_steps >= 0,
            "patience": 0 < self.patience <= 1,
            "scorings": self.scorings >= 1,
            "max_steps": self.max_steps >= 0,
            "dropout": 0 <= self.dropout < 1,
            "label_smoothing": 0 <= self.label_smoothing < 1,
        }
        for name, is_right in ranges.items():
            if not is_right:
                raise ConfigError(
                    f"setting {name}: found {getattr(self, name)}, which is out of range. "
                    f"The default is {_DEFAULTS[name]}."
                )


_DEFAULTS: Mapping[str, object] = {f.name: f.default for f in fields(FitConfig)}


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Heads and settings that belong together under one name."""

    heads: tuple[str, ...]
    config: FitConfig


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "table1": Preset(heads=TABLE_1_HEADS, config=FitConfig(context="2x2")),
        "submitted": Preset(heads=("caca", "conv2d3d", ENSEMBLE), config=FitConfig(context="7x7")),
    }
)
"""``table1``: the comparison of section V. ``submitted``: the two networks of Table II."""


def choose_preset(head: str) -> Preset:
    """The preset that a head was published with; ``table1`` for a head of neither."""
    of_head = [preset for preset in PRESETS.values() if head in preset.heads]
    return of_head[0] if of_head else PRESETS["table1"]


def parse_settings(settings: Sequence[str], config: FitConfig) -> FitConfig:
    """Change a config by ``KEY=VALUE`` texts, as ``fit --set`` takes them.

    Raises:
        ConfigError: Not of that form, an unknown key, or a value of the wrong type or range.
    """
    known = asdict(config)
    changed: dict[str, object] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        key = key.strip()
        if not equals:
            raise ConfigError(f"setting {setting!r}: expected KEY=VALUE, for example lr=0.0003.")
        if key not in known:
            raise ConfigError(f"setting {key!r}: unknown. Known settings: {', '.join(known)}.")
        kind = type(known[key])
        try:
            changed[key] = kind(text.strip())
        except ValueError as error:
            example = known[key]
            raise ConfigError(
                f"setting {key}: found {text!r}, expected {_KINDS[kind]}, for example {example}."
            ) from error
    return replace(config, **changed)  # type: ignore[arg-type]


_KINDS: Mapping[type, str] = {str: "a word", int: "a whole number", float: "a number"}


def choose_settings(head: str, config: FitConfig) -> dict[str, Any]:
    """The settings that decide a run of a head, all but those of other heads, and ``ALGORITHM``."""
    settings = {**asdict(config), "algorithm": ALGORITHM}
    if head != ENSEMBLE:
        del settings["members"]
    if head not in ("cascade", ENSEMBLE):
        del settings["streams"]
    return settings


def expand_heads(heads: Sequence[str], config: FitConfig) -> tuple[str, ...]:
    """The heads to train, in order, each once: an ensemble's members stand before it."""
    expanded: list[str] = []
    for head in heads:
        expanded += split_names("members", config.members) if head == ENSEMBLE else ()
        expanded.append(head)
    return tuple(dict.fromkeys(expanded))


def check_heads(heads: Sequence[str]) -> None:
    """Raise ConfigError unless each name is a known head and none stands twice."""
    for name in heads:
        _check_choice("head", name, HEAD_NAMES)
    if len(set(heads)) != len(heads):
        raise ConfigError(f"heads {', '.join(heads)}: one stands twice. Name each head once.")
    if not heads:
        raise ConfigError(f"no head named. Known heads: {', '.join(HEAD_NAMES)}.")
