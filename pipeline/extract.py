"""The driver of stage one: manifest in, store out; the only file that sees the whole stage."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from features.errors import ConfigError
from features.networks.encoders import EncoderSpec
from features.store.writer import StoreWriter
from pipeline.config import ExtractConfig
from pipeline.inputs import Inputs
from pipeline.manifest.reader import DEFAULT_OPTIONS, ManifestOptions
from pipeline.record import FailureLog, RunRecord
from pipeline.resume import plan_extract, read_manifest_for
from pipeline.second_pass import (
    STREAM_EXTRACTOR,
    StreamRecord,
    add_streams,
    count_lacking,
    find_final,
)
from pipeline.sound.stream import AUDIO_STREAM
from pipeline.store_header import (
    choose_face_weights,
    choose_precision,
    choose_replaced,
    make_header,
    make_stream_header,
)
from pipeline.workers.messages import ClipEnd, Item, Output, Work
from pipeline.workers.pool import WorkerPool
from pipeline.workers.resources import DEFAULT_BUDGETS, Budgets, Job

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExtractProgress:
    """Told after each clip, and once before the first."""

    n_clips: int
    """Clips that this run has to do."""
    n_done: int = 0
    """Falls where a worker dies and with it clips in its unfinished shard: they come again."""
    n_failed: int = 0
    n_frames: int = 0


@dataclass(frozen=True, kw_only=True)
class ExtractSummary:
    """What a run of extract did."""

    clips_done: int = 0
    clips_skipped: int
    """Clips that were done before."""
    clips_failed: int = 0
    clips_added: int = 0
    """Clips that were done before and got streams in this run."""
    frames: int = 0
    faces: int = 0
    streams_lacking: Mapping[str, int] = field(default_factory=dict)
    """Stream of an encoder that was given -> clips that lack it still."""
    wall_s: float = 0.0
    fingerprint: str
    store: str
    step_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds that all threads of all workers together spent in ``decode``, ``detect`` (crops
    included), ``embed`` and ``write``; and ``load``: until the first worker is ready."""

    def as_json(self) -> dict[str, Any]:
        """As plain JSON values, for ``--json``."""
        return {name: value for name, value in asdict(self).items() if name != "step_s"}


def run_extract(
    manifest: Path,
    store: Path,
    config: ExtractConfig,
    *,
    options: ManifestOptions = DEFAULT_OPTIONS,
    face_weights: Path | None = None,
    encoders: Sequence[EncoderSpec] = (),
    later_streams: Collection[str] = (),
    device: str = "auto",
    workers: int | None = 1,
    budgets: Budgets = DEFAULT_BUDGETS,
    progress: Callable[[ExtractProgress], None] = lambda _: None,
) -> ExtractSummary:
    """Bring a store up to date with a manifest: extract what is new, changed or failed before.

    A clip that cannot be used becomes a row of failures.csv and stops nothing. Ctrl-C keeps all
    clips that are done. What the store has already gets the streams of encoders in a second pass,
    which decodes its clips again and changes nothing else.

    Args:
        manifest: See ``read_manifest``.
        store: Its folder; made if absent.
        config: What decides the features.
        options: How the manifest is read.
        face_weights: A file that ``fit-face`` wrote or an exported program: docs/face_network.md.
            None: the shipped ones that the store was made with, or the default.
        encoders: Each makes a stream, of all clips: docs/encoders.md. In a new store those named
            ``context`` and ``face`` take the place of the two CNNs; new clips of it need them, too.
        later_streams: Streams of sound that are added after this: no warning that clips lack them.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        workers: Processes beside this one, which loads no network; with several GPUs and ``cuda``
            each takes the next one. None: as many as pay, as ``count_workers`` tells.
        budgets: Time and memory after which a clip is given up.
        progress: Told before the first clip and after each.

    Raises:
        ManifestError: the manifest has problems; nothing was done.
        ConfigError: the store was made with other settings, or has another stream of an encoder's
            name, or was made without one of the two CNNs, whose encoder new clips lack; the device
            does not exist, or cannot run an encoder.
        WeightsError: pretrained weights are missing or not the expected ones.
        WorkerError: workers end for reasons that no clip is to blame for; what was done is kept.
        OSError: the store cannot be written (a full disk); finished shards are kept, and clips
            that are done as far as there is room to finish theirs.
    """
    began_s = time.perf_counter()
    for spec in encoders:
        if spec.looks_at == "audio":
            raise ConfigError(f"{spec.path}: it looks at sound; sound_pass.add_sound runs it")
    listed = read_manifest_for(store, manifest, options)
    replaced = choose_replaced(store, encoders, config, face_weights)
    with WorkerPool(device) as pool:
        config = choose_precision(config, store, lambda: pool.find_machine().precision)
        face_weights = face_weights or choose_face_weights(store)
        header = make_header(config, listed.classes, face_weights, store, replaced)
        streams = tuple(make_stream_header(spec, header.fingerprint) for spec in encoders)
        with StoreWriter(store, header, streams) as writer:
            inputs = Inputs(store / "inputs.jsonl")
            inputs.tidy()
            plan = plan_extract(listed.clips, writer.open(), config, inputs)
            if plan.todo:
                _check_replaced(writer, replaced, {stream.name for stream in streams})
            if plan.updates:
                _log.info(
                    "%d clips have new labels in the manifest; their features stay",
                    len(plan.updates),
                )
                writer.relabel(plan.updates)
            failures = FailureLog(store)
            done_ids = {c.clip_id for c in listed.clips} - {c.clip_id for c in plan.todo}
            failures.forget(done_ids - find_final(writer.open()))
            failures.write()
            record = RunRecord(writer, failures, inputs, began_s)
            work = Work(
                config=config,
                face_weights=face_weights,
                inputs=inputs.path,
                device=device,
                encoders=tuple(encoders),
            )
            n_clips = len(plan.todo) + count_lacking(writer.open(), streams)
            if plan.todo:
                _warn_of_lacking(writer, {stream.name for stream in streams}.union(later_streams))
                job = Job(
                    work=work,
                    output=Output(store=store, header=header, stream_headers=streams),
                    clips=plan.todo,
                    alone_ids=failures.worker_ids,
                    n_workers=workers,
                    budgets=budgets,
                )
                try:
                    pool.run(job, _tell_progress(record, n_clips, progress))
                finally:
                    failures.write()
            added_record = add_streams(
                writer,
                streams,
                listed.clips,
                work=work,
                extractor=STREAM_EXTRACTOR,
                failures=failures,
                n_workers=workers,
                budgets=budgets,
                progress=lambda added: progress(_sum_up(record, added)),
            )
            lacking = {stream.name: count_lacking(writer.open(), [stream]) for stream in streams}
    return ExtractSummary(
        clips_done=record.n_done,
        clips_skipped=len(listed.clips) - len(plan.todo),
        clips_failed=record.n_failed + len(added_record.failed_ids),
        clips_added=added_record.n_done,
        frames=record.n_frames + added_record.n_frames,
        faces=record.n_faces + added_record.n_faces,
        streams_lacking=lacking,
        wall_s=round(time.perf_counter() - began_s, 3),
        fingerprint=header.fingerprint,
        store=str(store),
        step_s={
            step: record.step_s.get(step, 0.0) + added_record.step_s.get(step, 0.0)
            for step in record.step_s | added_record.step_s
        },
    )


def _tell_progress(
    record: RunRecord, n_clips: int, progress: Callable[[ExtractProgress], None]
) -> Callable[[int, Item], None]:
    """Where workers' items go: into the record; progress is told of each clip that ends."""
    progress(ExtractProgress(n_clips=n_clips))

    def take(number: int, item: Item) -> None:
        record.take(number, item)
        if isinstance(item, ClipEnd):
            progress(
                ExtractProgress(
                    n_clips=n_clips,
                    n_done=record.n_done,
                    n_failed=record.n_failed,
                    n_frames=record.n_frames,
                )
            )

    return take


def _sum_up(first: RunRecord, second: StreamRecord) -> ExtractProgress:
    """How far a second pass has come, with what the first one did."""
    return ExtractProgress(
        n_clips=first.n_done + first.n_failed + second.n_clips,
        n_done=first.n_done + second.n_done,
        n_failed=first.n_failed + len(second.failed_ids),
        n_frames=first.n_frames + second.n_frames,
    )


def _check_replaced(writer: StoreWriter, replaced: frozenset[str], given: Collection[str]) -> None:
    """Raise ConfigError where new clips would have neither a CNN's features nor an encoder's."""
    for name in sorted(replaced.difference(given)):
        made_by = writer.open().streams_beside.listed.get(name)
        sha256 = made_by.encoder.get("sha256", "") if made_by else ""
        which = f" (a file with SHA-256 {sha256[:12]}...)" if sha256 else ""
        raise ConfigError(
            f"{writer.path}: this store was made without a {name} CNN, and new clips need the "
            f"encoder in its place: give --encoder with the stream {name}{which}."
        )


def _warn_of_lacking(writer: StoreWriter, given: Collection[str]) -> None:
    """Log which streams of the store new clips will not have. given: those that they will."""
    listed = writer.open().streams_beside.listed
    if names := [name for name in listed if name not in given]:
        _log.warning(
            "%s: new clips lack the streams %s; run the same again with %s",
            writer.path,
            ", ".join(names),
            "--audio, and --encoder for the others" if AUDIO_STREAM in names else "their --encoder",
        )
