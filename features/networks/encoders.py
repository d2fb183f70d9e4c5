"""Encoders that a user brings: a network's file and the JSON beside it. Loads no network.

::

    dino.onnx    the network: ONNX, or a program of torch.export
    dino.json    what it looks at, what it takes and what it gives: docs/encoders.md
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from features.contracts import REPLACEABLE_STREAMS, check_stream_name
from features.errors import ConfigError, WeightsError
from features.fingerprint import hash_file, hash_json, hash_text
from features.json_records import JsonFormat

FRAME_CROPS: tuple[str, ...] = ("centre", "whole")
COLOURS: tuple[str, ...] = ("rgb", "bgr", "grey")
AUDIO_RATE_HZ = 16_000
"""Of the sound that an encoder gets, one channel."""
MOST_INPUT_PX = 1024
"""Side of a picture that an encoder takes: some hundred wait in memory."""
MOST_WINDOW_S = 60.0
_PREPARATION = 1
"""Raised by a release that cuts or scales pictures for encoders in another way."""

_NEEDED = {
    "frame": {"width", "height", "crop", "colours", "scale", "mean", "deviation"},
    "face": {"width", "height", "colours", "scale", "mean", "deviation"},
    "audio": {"window_s"},
}
"""What an encoder looks at -> fields that it must have: what is forgotten is no default."""
_OPTIONAL = {"margin"}

_SIDECAR = JsonFormat(
    name=None,
    damaged=WeightsError,
    remedy="docs/encoders.md tells what it has to hold.",
    strict=True,
)
_ELSEWHERE = re.compile(rb"\n\x08location\x12([\x01-\x7f])", re.DOTALL)
"""In an ONNX file: a tensor whose values lie in another file; its name follows."""


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """What is known of an encoder before it is loaded: its sidecar, and which file it is.

    The fields of pictures are those of encoders that look at frames or faces, all of them needed
    but ``margin``; an encoder of sound has ``window_s`` instead.
    """

    name: str
    """Of the stream that it makes; ``context`` or ``face``: in the place of that CNN."""
    looks_at: str
    """``frame``, ``face`` or ``audio``."""
    size: int
    """D, values a row."""
    licence: str
    output: Any = 0
    """Which of the network's outputs: its name, or its place from 0 on. [B, D]."""
    width: int = 0
    """Of the picture that it takes, pixels."""
    height: int = 0
    crop: str = ""
    """Of a frame: ``centre``, the largest centred part of the input's shape, or ``whole``, squeezed
    into it. A face has none."""
    margin: float = 0.0
    """Of a face: by how much of its side its square is enlarged."""
    colours: str = ""
    """``rgb``, ``bgr`` or ``grey`` (one channel, the luminance of BT.601)."""
    scale: float = 0.0
    """What white is, 1 or 255, before ``mean`` is taken off."""
    mean: tuple[float, ...] = ()
    """Taken off each channel, in the order of ``colours`` ..."""
    deviation: tuple[float, ...] = ()
    """... and what the rest is divided by."""
    window_s: float = 0.0
    """Of sound: seconds around a tick."""
    sha256: str = ""
    """Of the network's file; a sidecar may leave it out."""
    path: Path = Path()
    """The network's file."""

    def __post_init__(self) -> None:
        """Raises ValueError."""
        if self.looks_at not in _NEEDED:
            raise ValueError(f"looks_at is {self.looks_at!r}, expected {' or '.join(_NEEDED)}")
        if self.name not in REPLACEABLE_STREAMS:
            check_stream_name(self.name)
        elif self.looks_at != REPLACEABLE_STREAMS[self.name]:
            raise ValueError(
                f"looks_at is {self.looks_at!r}, but the name {self.name} is that of an encoder in "
                f"the place of the {self.name} CNN, which looks at {REPLACEABLE_STREAMS[self.name]}"
                "s. Give it another name"
            )
        if self.size < 1:
            raise ValueError(f"size is {self.size}, expected at least 1")
        if not self.licence.strip():
            raise ValueError("licence is empty; write 'unknown' if nobody knows it")
        is_place = type(self.output) is int and self.output >= 0
        if not is_place and not (isinstance(self.output, str) and self.output):
            raise ValueError(f"output is {self.output!r}, expected a name or a place from 0 on")
        for name in sorted(_OPTIONAL | _NEEDED["frame"] | _NEEDED["audio"]):
            is_given, is_needed = bool(getattr(self, name)), name in _NEEDED[self.looks_at]
            if is_needed and not is_given:
                raise ValueError(f"{name} is missing, which an encoder of {self.looks_at} needs")
            if is_given and not is_needed and (self.looks_at, name) != ("face", "margin"):
                raise ValueError(f"{name} is no field of an encoder of {self.looks_at}")
        if self.looks_at != "audio":
            self._check_picture()
        elif not 0 < self.window_s <= MOST_WINDOW_S:
            raise ValueError(
                f"window_s is {self.window_s:g}, expected above 0, {MOST_WINDOW_S:g} at most"
            )

    def _check_picture(self) -> None:
        for name in ("width", "height"):
            if not 1 <= getattr(self, name) <= MOST_INPUT_PX:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, expected 1 to {MOST_INPUT_PX} pixels"
                )
        if self.looks_at == "face" and self.width != self.height:
            raise ValueError(f"{self.width} x {self.height} pixels, but a face is a square")
        if self.crop and self.crop not in FRAME_CROPS:
            raise ValueError(f"crop is {self.crop!r}, expected {' or '.join(FRAME_CROPS)}")
        if not 0 <= self.margin <= 2:
            raise ValueError(f"margin is {self.margin:g}, expected 0 to 2")
        if self.colours not in COLOURS:
            raise ValueError(f"colours is {self.colours!r}, expected {' or '.join(COLOURS)}")
        if self.scale not in (1, 255):
            raise ValueError(f"scale is {self.scale:g}, expected 1 or 255")
        for name in ("mean", "deviation"):
            if len(getattr(self, name)) != self.n_channels:
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} values, expected {self.n_channels}, "
                    f"as colours is {self.colours}"
                )
        if min(self.deviation) <= 0:
            raise ValueError(f"deviation is {list(self.deviation)}, expected numbers above 0")

    @property
    def rows(self) -> str:
        """What has a row of the stream: ``face``, or ``frame``."""
        return "face" if self.looks_at == "face" else "frame"

    @property
    def n_channels(self) -> int:
        """Of the picture that the network takes."""
        return 1 if self.colours == "grey" else 3

    @property
    def input_shape(self) -> tuple[int, ...]:
        """One row of what the network takes: (1 or 3, height, width), of sound (samples,)."""
        if self.looks_at == "audio":
            return (round(self.window_s * AUDIO_RATE_HZ),)
        return (self.n_channels, self.height, self.width)

    @property
    def is_program(self) -> bool:
        """A program of torch, whose loading may run its author's code; else ONNX."""
        return zipfile.is_zipfile(self.path)

    def describe(self) -> dict[str, Any]:
        """The sidecar's object with the file's SHA-256; what an encoder has not is left out."""
        known = ("name", "looks_at", "size", "licence", "output", "sha256")
        values = {name: value for name, value in asdict(self).items() if name != "path"}
        return {name: value for name, value in values.items() if name in known or value}

    def fingerprint(self, base: str, format_version: int) -> str:
        """The hash of all that decides the stream's values.

        Args:
            base: Fingerprint of the store: sampling, detection and decoder decide the rows.
            format_version: Of stream files.
        """
        decides = {n: v for n, v in self.describe().items() if n not in ("name", "licence")}
        for name in ("scale", "margin", "window_s"):  # 1 and 1.0 are one setting
            decides[name] = float(getattr(self, name))
        for name in ("mean", "deviation"):
            decides[name] = [float(value) for value in getattr(self, name)]
        return hash_json(
            {
                "base": base,
                "encoder": decides,
                "preparation": _PREPARATION,
                "format_version": format_version,
            }
        )


def read_encoder_spec(path: Path, *, trust: bool = False) -> EncoderSpec:
    """Read an encoder's sidecar and hash its file; the network itself is not loaded.

    Args:
        path: The network's file; the sidecar has its name and ``.json``.
        trust: Take a program of torch.export, whose loading may run code of its author's.

    Raises:
        WeightsError: a file is missing, the sidecar is wrong or of another file, or the network
            is a program and not trusted.
    """
    sidecar = path.with_suffix(".json")
    if sidecar == path:
        raise WeightsError(f"{path}: this is a sidecar; give the network's file, for example .onnx")
    if not path.is_file():
        raise WeightsError(f"{path}: no such file, expected an encoder: ONNX or torch.export")
    if not sidecar.is_file():
        raise WeightsError(
            f"{sidecar}: missing. It tells what {path.name} looks at, takes and gives; "
            "docs/encoders.md shows how to write it."
        )
    if zipfile.is_zipfile(path) and not trust:
        raise WeightsError(
            f"{path}: this is a program of torch, not ONNX: loading it can run any code that its "
            "author put there. If you trust its author, give --trust; else ask for an ONNX file."
        )
    sha256 = hash_network(path)
    value = _SIDECAR.parse(sidecar)
    if value.get("sha256", sha256) != sha256:
        raise WeightsError(
            f"{sidecar}: it is about a file with SHA-256 {str(value['sha256'])[:12]}..., but "
            f"{path.name} has {sha256[:12]}.... Put the right one beside it, or correct sha256."
        )
    if "path" in value:  # a field of the record, none of the file
        raise WeightsError(f"{sidecar}: damaged (path is not a known field). {_SIDECAR.remedy}")
    spec = _SIDECAR.build(EncoderSpec, value | {"sha256": sha256}, str(sidecar))
    return replace(spec, path=path.absolute())


def read_encoder_specs(paths: Sequence[Path], *, trust: bool = False) -> tuple[EncoderSpec, ...]:
    """As ``read_encoder_spec``, of several. Raises ConfigError where two make the same stream."""
    specs = tuple(read_encoder_spec(path, trust=trust) for path in paths)
    for number, spec in enumerate(specs):
        if spec.name in (other.name for other in specs[:number]):
            raise ConfigError(
                f"{spec.path}: another encoder makes the stream {spec.name}, too. Give it another "
                "name in its sidecar."
            )
    return specs


def hash_network(path: Path) -> str:
    """SHA-256 of an encoder's file, or, where an ONNX file has its values in others, of all."""
    hashes = [hash_file(path)]
    for name in _list_data_files(path):
        if not (path.parent / name).is_file():
            raise WeightsError(
                f"{path}: its values lie in {name}, which is not beside it. Copy both, or export "
                "it with external_data=False."
            )
        hashes.append(f"{name} {hash_file(path.parent / name)}")
    return hashes[0] if len(hashes) == 1 else hash_text("\n".join(hashes))


def _list_data_files(path: Path) -> list[str]:
    """Names of the files beside an ONNX file in which its values lie; most have none."""
    if not path.stat().st_size or zipfile.is_zipfile(path):
        return []
    names = set()
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        for match in _ELSEWHERE.finditer(content):
            names.add(bytes(content[match.end() : match.end() + match[1][0]]))
    found = sorted(name.decode(errors="replace") for name in names)
    for name in found:
        if name in (".", "..") or not re.fullmatch(r"[\w .+-]+", name):
            raise WeightsError(
                f"{path}: its values lie in {name!r}, expected a file beside it. Export it with "
                "external_data=False."
            )
    return found
