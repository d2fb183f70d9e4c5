"""Tries an encoder and tells what it would write: ``encoder check``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from features.networks.encoder_network import draw_rows, read_encoder
from features.networks.encoders import read_encoder_spec
from features.networks.runtime import choose_device

_LEAST_S = 0.5
"""How long it is timed."""


@dataclass(frozen=True, kw_only=True)
class EncoderCheck:
    """What an encoder makes, and at what cost."""

    stream: str
    rows: str
    """``frame`` or ``face``: what has a row of the stream."""
    size: int
    """Values a row."""
    bytes_a_row: int
    """Before they are packed."""
    ms_a_row: float
    """Of one thread on this machine, in float32."""
    device: str
    batch: int
    """Rows that the network takes at once."""
    licence: str
    sha256: str
    sidecar: Mapping[str, Any]


def check_encoder(path: Path, *, trust: bool = False, device: str = "auto") -> EncoderCheck:
    """Read an encoder and run it on made-up rows.

    Args:
        path: The network's file.
        trust: See ``read_encoder_spec``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        WeightsError: as ``read_encoder_spec`` and ``read_encoder``. ConfigError: no such device.
    """
    spec = read_encoder_spec(path, trust=trust)
    chosen = choose_device(device)
    encoder = read_encoder(spec, chosen)
    rows = draw_rows(spec, encoder.batch)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for programs, which torch runs
    try:
        n_rows, began_s = 0, time.perf_counter()
        while not n_rows or time.perf_counter() - began_s < _LEAST_S:
            encoder.embed(rows)
            n_rows += len(rows)
    finally:
        torch.set_num_threads(n_threads)
    return EncoderCheck(
        stream=spec.name,
        rows=spec.rows,
        size=spec.size,
        bytes_a_row=2 * spec.size,
        ms_a_row=round((time.perf_counter() - began_s) * 1e3 / n_rows, 3),
        device=str(chosen),
        batch=encoder.batch,
        licence=spec.licence,
        sha256=spec.sha256,
        sidecar=spec.describe(),
    )
