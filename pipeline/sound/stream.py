"""Streams of sound as a store knows them, and who computes their rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from features.fingerprint import hash_json
from features.networks.encoders import EncoderSpec
from features.store.shard_format import STREAM_FORMAT_VERSION, StreamHeader
from pipeline.decode.opening import decoder_version
from pipeline.decode.sound import SOUND_RATE_HZ
from pipeline.sound.hops import HOPS_HZ
from pipeline.sound.mel import FFT_SAMPLES, FLOOR, N_MELS, WINDOW_SAMPLES
from pipeline.sound.pitch import HIGHEST_HZ, LOWEST_HZ
from pipeline.sound.rows import ROW_SIZE, WINDOW_S, SoundRows
from pipeline.sound.samples import iter_windows

AUDIO_STREAM = "audio"
_ALGORITHM = 1
"""Raised by a release whose code makes other values of the same settings."""
_AT_ONCE = 256
"""Rows of ``SoundRows``."""
_WINDOWS_AT_ONCE = 32
"""That an encoder gets."""

Chunks = Iterable[NDArray[np.float32]]
"""Of ``pipeline.decode.sound.iter_sound``."""


class SoundEncoder(Protocol):
    """Computes the rows of a stream from sound."""

    def iter_rows(
        self, chunks: Chunks, tick_s: NDArray[np.float64]
    ) -> Iterator[NDArray[np.float16]]:
        """Yield the rows [n, D] of a clip's ticks [F], in their order."""


class Statistics:
    """Makes the stream ``audio``."""

    def iter_rows(
        self, chunks: Chunks, tick_s: NDArray[np.float64]
    ) -> Iterator[NDArray[np.float16]]:
        """As ``SoundEncoder``; 0 where there is no sound."""
        rows = SoundRows(chunks)
        for first in range(0, len(tick_s), _AT_ONCE):
            yield rows.compute(tick_s[first : first + _AT_ONCE])


class LearnedEncoder:
    """Runs an encoder of the user's on windows of sound."""

    def __init__(self, spec: EncoderSpec, device: str, precision: str) -> None:
        """Loads torch and the encoder. Raises WeightsError and ConfigError as ``read_encoder``."""
        import torch

        from features.networks.encoder_network import read_encoder
        from features.networks.runtime import choose_device

        self._torch: Any = torch
        torch.set_num_threads(1)
        self._encoder = read_encoder(spec, choose_device(device), precision)

    def iter_rows(
        self, chunks: Chunks, tick_s: NDArray[np.float64]
    ) -> Iterator[NDArray[np.float16]]:
        """As ``SoundEncoder``; an encoder sees zeros where there is no sound.

        Raises:
            ClipError: values that a store cannot keep.
        """
        (n_samples,) = self._encoder.spec.input_shape
        windows = iter_windows(chunks, tick_s, n_samples)
        for first in range(0, len(tick_s), _WINDOWS_AT_ONCE):
            n_rows = min(_WINDOWS_AT_ONCE, len(tick_s) - first)
            batch = np.stack([next(windows) for _ in range(n_rows)])
            rows: NDArray[np.float16] = (
                self._encoder.embed(self._torch.from_numpy(batch)).half().numpy()
            )
            yield rows


def make_audio_header(base_fingerprint: str) -> StreamHeader:
    """The header of the stream ``audio``. base_fingerprint: of the store, whose rows it has."""
    settings = {
        "looks_at": "audio",
        "rate_hz": SOUND_RATE_HZ,
        "n_mels": N_MELS,
        "mel_scale": "slaney",
        "spectrum_samples": WINDOW_SAMPLES,
        "fft_samples": FFT_SAMPLES,
        "hops_hz": HOPS_HZ,
        "floor": FLOOR,
        "pitch_hz": [LOWEST_HZ, HIGHEST_HZ],
        "window_s": WINDOW_S,
        "algorithm": _ALGORITHM,
        "decoder": decoder_version(),
    }
    return StreamHeader(
        name=AUDIO_STREAM,
        rows="frame",
        size=ROW_SIZE,
        fingerprint=hash_json(
            {
                "base": base_fingerprint,
                "encoder": {"size": ROW_SIZE, **settings},
                "format_version": STREAM_FORMAT_VERSION,
            }
        ),
        encoder={
            "name": AUDIO_STREAM,
            "size": ROW_SIZE,
            **settings,
            "licence": "none: no weights",
        },
    )
