"""The table of heads: what each is made of, which streams it reads, and from which matrices.

A *stream* is what a head reads at each step; a *matrix* is where a store keeps it. Knows no torch:
``train.heads.build`` makes networks of this table.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from features.contracts import CONTEXT_CHANNELS, FACE_MAP_SHAPE, FACE_VECTOR_SIZE
from features.errors import ConfigError

Shapes = Mapping[str, tuple[int, ...]]
"""Stream -> shape of its values at one step, for example (512, 7, 7)."""


@dataclass(frozen=True, kw_only=True)
class MatrixSpec:
    """What stores hold in each row of a feature matrix."""

    shape: tuple[int, ...]
    """Of the values of one row; of maps (channels, h, w)."""
    rows: str = "frame"
    """``frame`` (also sound), or ``face``."""
    fingerprint: str = ""
    """Of a stream that was added to the stores; empty: the stores' own."""

    def describe(self) -> dict[str, object]:
        """What config.json of a run tells of it."""
        added = {"rows": self.rows, "fingerprint": self.fingerprint} if self.fingerprint else {}
        return {"shape": list(self.shape), **added}


Matrices = Mapping[str, MatrixSpec]
"""Feature matrix -> what is in it."""

MATRICES: Matrices = MappingProxyType(
    {
        "context_2x2": MatrixSpec(shape=(CONTEXT_CHANNELS, 2, 2)),
        "context_7x7": MatrixSpec(shape=(CONTEXT_CHANNELS, 7, 7)),
        "face": MatrixSpec(shape=(FACE_VECTOR_SIZE,), rows="face"),
        "face_map": MatrixSpec(shape=FACE_MAP_SHAPE, rows="face"),
    }
)
"""Those of a store made with the shipped networks; other stores tell their own."""

ENSEMBLE = "ensemble"
"""The one head that is no network: it weighs the probabilities of other heads' runs (VI)."""

OWN = "own"
"""The word for what a head was published with, as a setting."""


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """What a head is made of, and what it reads."""

    kind: str
    """A key of ``train.heads.build.KINDS``, or ``ensemble``."""
    streams: tuple[str, ...] = ("context", "face")
    """What the head reads, in order, unless a setting says otherwise."""
    context_grid: str = "2x2"
    """The pooling of the context features that the head was published with."""
    layers: tuple[int, int] = (2, 1)
    """Of a cascade: LSTM layers of the first stream, and of each later one."""
    most_encoded: int = 0
    """Of a single RNN: its stream is encoded to as many values as it has, but no more than these;
    0: as in all other heads."""
    preset: str = ""
    """The preset of ``fit`` that trains the head, if one does."""

    @property
    def reads_one(self) -> bool:
        """Whether the head reads one stream; the others read two or more."""
        return self.kind in ("single", "conv2d3d")

    @property
    def reads_maps(self) -> bool:
        """Whether what it reads must be maps, not vectors."""
        return self.kind == "conv2d3d"


HEADS: Mapping[str, HeadSpec] = MappingProxyType(
    {
        "face": HeadSpec(kind="single", streams=("face",), most_encoded=512, preset="table1"),
        "context": HeadSpec(kind="single", streams=("context",), preset="table1"),
        "parallel": HeadSpec(kind="parallel", preset="table1"),
        "concatenated": HeadSpec(kind="concatenated", preset="table1"),
        "caca-a": HeadSpec(kind="cascade", preset="table1"),
        "caca-b": HeadSpec(kind="cascade", streams=("face", "context"), preset="table1"),
        "caca": HeadSpec(kind="cascade", context_grid="7x7", layers=(1, 2), preset="submitted"),
        "conv2d3d": HeadSpec(kind="conv2d3d", streams=("face_map",), preset="submitted"),
        "cascade": HeadSpec(kind="cascade"),
        ENSEMBLE: HeadSpec(kind=ENSEMBLE, preset="submitted"),
    }
)
"""Every head by name, in the order of the tables: ``caca`` is the submitted one of IV-C,
``conv2d3d`` that of Fig. 4, ``cascade`` is called by the streams it reads."""

TABLE_1_HEADS: tuple[str, ...] = tuple(n for n, spec in HEADS.items() if spec.preset == "table1")
"""The six heads of Table I, in its order."""

NETWORKS: tuple[str, ...] = tuple(name for name in HEADS if name != ENSEMBLE)
"""The heads that are trained."""


def rank_head(name: str) -> int:
    """Where a head stands in the table; one that it does not know stands last."""
    return [*HEADS, name].index(name)


def split_streams(text: str) -> tuple[str, ...]:
    """Take a list of streams apart, like ``context,face``. Raises ConfigError: one stands twice."""
    return _split_names("streams", text, fewest=1, example="context,audio,face")


def split_members(text: str) -> tuple[str, ...]:
    """Take the members of an ensemble apart. Raises ConfigError: fewer than two, or one twice."""
    return _split_names("members", text, fewest=2, example="caca,conv2d3d")


def _split_names(setting: str, text: str, *, fewest: int, example: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if len(names) < fewest or len(set(names)) < len(names) or not all(names):
        raise ConfigError(
            f"setting {setting}: found {text!r}, expected {'one' if fewest == 1 else 'two'} or "
            f"more names, each once, for example {example}."
        )
    return names


def choose_grid(head: str, context: str = OWN) -> str:
    """The pooling grid a head reads: what the setting says, or what it was published with."""
    return HEADS[head].context_grid if context == OWN else context


def can_read(head: str, streams: str) -> bool:
    """Whether a network reads as many streams as a list names: one, or two or more."""
    return streams == OWN or HEADS[head].reads_one == (len(split_streams(streams)) == 1)


def choose_streams(
    head: str, *, context: str = OWN, streams: str = OWN, matrices: Collection[str] = MATRICES
) -> dict[str, str]:
    """The streams that a head reads, in order -> the feature matrix that each comes from.

    Args:
        head: One of ``NETWORKS``.
        context: ``2x2``, ``7x7``, or ``own`` for what the head was published with.
        streams: Names, or ``own``; where the head reads another number of streams than these, its
            own.
        matrices: What a store has: ``context``, where an encoder's stream stands in its place.
    """
    is_own = streams == OWN or not can_read(head, streams)
    read = HEADS[head].streams if is_own else split_streams(streams)
    grid = f"context_{choose_grid(head, context)}"
    of_context = "context" if "context" in matrices else grid
    return {stream: of_context if stream == "context" else stream for stream in read}
