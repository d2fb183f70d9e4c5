"""The driver of sound: adds a stream of sound to the shards of a store that lack it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from features.machine import bound_cores
from features.networks.encoders import EncoderSpec
from features.store.index import read_store_index
from features.store.writer import StoreWriter
from pipeline.config import ExtractConfig
from pipeline.manifest.reader import DEFAULT_OPTIONS, ManifestOptions
from pipeline.record import FailureLog
from pipeline.resume import read_manifest_for
from pipeline.second_pass import StreamRecord, add_streams
from pipeline.sound.stream import make_audio_header
from pipeline.store_header import make_stream_header
from pipeline.workers.messages import Work
from pipeline.workers.resources import DEFAULT_BUDGETS, Budgets

SOUND_EXTRACTOR = "pipeline.sound.extractor:SoundExtractor"
LEARNED_SOUND_EXTRACTOR = "pipeline.sound.extractor:LearnedSoundExtractor"


@dataclass(frozen=True, kw_only=True)
class SoundSummary:
    """What adding one stream of sound did."""

    stream: str
    clips_done: int
    """Clips that have it now and had not before."""
    clips_silent: int
    """Clips of these without sound: their rows are zeros."""
    clips_damaged: int
    """Clips of these of whose sound something is lost: silence in its place."""
    clips_failed: int
    """Clips that lack it: their file is gone or another, or their sound ended its worker."""
    wall_s: float

    def as_json(self) -> dict[str, Any]:
        """As plain JSON values, for ``--json``."""
        return asdict(self)


def add_sound(
    manifest: Path,
    store: Path,
    *,
    encoder: EncoderSpec | None = None,
    options: ManifestOptions = DEFAULT_OPTIONS,
    device: str = "cpu",
    workers: int | None = None,
    budgets: Budgets = DEFAULT_BUDGETS,
    progress: Callable[[int, int], None] = lambda n_done, n_clips: None,
) -> SoundSummary:
    """Add a stream of sound to a finished store; no frame is looked at again.

    Only the sound of the clips is decoded, and the first frame of each film, which says when the
    clip begins. Each shard gets the stream's file when its last clip is done; what is done is kept,
    whatever ends the run. A clip without sound has rows of silence; one that cannot be had lacks
    the stream.

    Args:
        manifest: Tells where the clips of the store are.
        store: Its folder.
        encoder: One of the user's that looks at ``audio``; None: the stream ``audio``.
        options: How the manifest is read.
        device: Where such an encoder runs.
        workers: Processes; None: one a core, as far as there are shards; for an encoder as
            ``count_workers`` tells.
        budgets: Time and memory after which the sound of a clip is given up.
        progress: Told the clips done and all that lack the stream, after each.

    Raises:
        ManifestError: the manifest has problems.
        ConfigError: the store has a stream of this name that was made otherwise, or another process
            writes to it.
        ShardError: no store, or it is damaged.
        WeightsError: the encoder cannot be used.
        WorkerError: processes end for reasons that no clip is to blame for.
        OSError: the store cannot be written (a full disk).
    """
    began_s = time.perf_counter()
    clips = read_manifest_for(store, manifest, options).clips
    base = read_store_index(store, relabelling=True).header
    if encoder is None:
        header = make_audio_header(base.fingerprint)
        workers = workers or bound_cores(os.cpu_count() or 1)
    else:
        header = make_stream_header(encoder, base.fingerprint)
    with StoreWriter(store, base) as writer:
        failures = FailureLog(store)
        failures.write()
        record = add_streams(
            writer,
            [header],
            clips,
            work=Work(
                config=ExtractConfig(precision=str(base.config.get("precision", "float32"))),
                inputs=store / "inputs.jsonl",
                device=device,
                encoders=() if encoder is None else (encoder,),
            ),
            extractor=SOUND_EXTRACTOR if encoder is None else LEARNED_SOUND_EXTRACTOR,
            failures=failures,
            n_workers=workers,
            budgets=budgets,
            progress=lambda record: progress(*_count_ended(record)),
        )
    n_silent = sum("no_sound" in notes for notes in record.notes.values())
    return SoundSummary(
        stream=header.name,
        clips_done=record.n_done,
        clips_silent=n_silent,
        clips_damaged=len(record.notes) - n_silent,
        clips_failed=len(record.failed_ids),
        wall_s=round(time.perf_counter() - began_s, 3),
    )


def _count_ended(record: StreamRecord) -> tuple[int, int]:
    return record.n_done + len(record.failed_ids), record.n_clips


def describe(summary: SoundSummary) -> str:
    """The summary in words."""
    if not summary.clips_done and not summary.clips_failed:
        return f"stream {summary.stream}: nothing to do"
    return (
        f"stream {summary.stream}: {summary.clips_done} clips done ({summary.clips_silent} without "
        f"sound, {summary.clips_damaged} with damaged sound), {summary.clips_failed} lack it, in "
        f"{summary.wall_s:.1f} s"
    )
