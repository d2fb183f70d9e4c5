"""The process that adds a stream of sound to finished shards, one after another.

::

    parent  --SoundTask-->            worker
            <--Begun ..., SoundDone--
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache
from logging.handlers import QueueHandler
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from features.contracts import Clip
from features.disk import FileState
from features.errors import ClipError, UserError
from features.networks.encoders import EncoderSpec
from features.store.index import Failure, order_shard
from features.store.shard_format import StreamHeader
from features.store.shard_reader import ShardIndex, read_clip_rows, read_shard_index
from features.store.shard_writer import StreamShardWriter
from pipeline.decode.clock import find_tick_times
from pipeline.decode.notes import Notes
from pipeline.decode.opening import ChangedError
from pipeline.decode.sound import iter_sound
from pipeline.sound.stream import LearnedEncoder, SoundEncoder, Statistics
from pipeline.workers.channel import Channel
from pipeline.workers.messages import Begun, Start


@dataclass(frozen=True, kw_only=True)
class SoundSource:
    """Where the sound of a clip of a shard comes from."""

    clip: Clip
    state: FileState
    """Of its file, whose hash is the one that the shard has."""


@dataclass(frozen=True, kw_only=True)
class SoundTask:
    """A shard, and the stream that it is to get."""

    store: Path
    shard_name: str
    header: StreamHeader
    """Of the stream."""
    spec: EncoderSpec | None
    """Of an encoder of the user's; None: the stream ``audio``."""
    device: str
    """Of such an encoder."""
    sources: Mapping[str, SoundSource]
    """By clip; rows of a clip that is not there, as a later shard holds it anew, are zeros."""
    silent_ids: frozenset[str] = frozenset()
    """Clips whose sound ended the process that decoded it: theirs is none."""


@dataclass(frozen=True, kw_only=True)
class SoundDone:
    """What became of a task."""

    task: SoundTask
    file: Path | None
    """The stream's file; None where a clip failed."""
    failure: Failure | None = None
    notes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Of the clips whose sound is unusual (``pipeline.decode.notes``)."""


def main(descriptor: int) -> None:
    """Work until the parent ends this process. descriptor: of a socket to it."""
    channel = Channel(socket.socket(fileno=descriptor))
    try:
        start: Start = channel.receive()
        logging.getLogger().addHandler(QueueHandler(cast(Any, channel)))  # it only puts
        for name, level in start.log_levels.items():
            logging.getLogger(name).setLevel(level)
        while True:
            task: SoundTask = channel.receive()
            try:
                channel.send(add_stream(task, lambda clip_id: channel.send(Begun(clip_id=clip_id))))
            except (UserError, OSError) as error:  # raised again by the parent
                channel.send(error)
    except (EOFError, OSError):  # the parent is gone
        os._exit(1)


def add_stream(task: SoundTask, begin: Callable[[str], None] = lambda _: None) -> SoundDone:
    """Write the file of a stream that belongs to one shard.

    begin: Told each clip before its sound is decoded.

    Raises:
        ShardError: the shard is damaged. WeightsError, ConfigError: as ``read_encoder``.
        OSError: the store cannot be written (a full disk).
    """
    index = read_shard_index(task.store / task.shard_name)
    precision = str(index.header.config.get("precision", "float32"))
    encoder = _load(task.spec, task.device, precision)
    writer = StreamShardWriter(task.store, task.header, order_shard(task.shard_name)[0])
    notes: dict[str, Mapping[str, float]] = {}
    try:
        for row, clip_id in enumerate(index.columns["id"]):
            begin(clip_id)
            found = Notes()
            try:
                for values in _iter_values(index, row, task, encoder, found):
                    writer.add_rows(values)
            except ClipError as error:
                writer.abandon()
                return SoundDone(task=task, file=None, failure=_describe(clip_id, task, error))
            writer.close_clip(clip_id, index.columns["sha256"][row])
            if found.amounts:
                notes[clip_id] = found.amounts
        writer.finish()
    except BaseException:  # HDF5 must not find it open when the process ends
        writer.abandon()
        raise
    return SoundDone(task=task, file=writer.path, notes=notes)


@lru_cache(maxsize=1)
def _load(spec: EncoderSpec | None, device: str, precision: str) -> SoundEncoder:
    return Statistics() if spec is None else LearnedEncoder(spec, device, precision)


def _iter_values(
    index: ShardIndex, row: int, task: SoundTask, encoder: SoundEncoder, notes: Notes
) -> Iterator[NDArray[np.float16]]:
    """The rows of a clip, which is the shard's of number ``row``.

    Raises ClipError: its file is gone or another, or there is no film in it.
    """
    clip_id = index.columns["id"][row]
    clip = read_clip_rows(index, row)
    source = task.sources.get(clip_id)
    if source is None:
        yield np.zeros((len(clip.pts_s), task.header.size), dtype=np.float16)
        return
    tick_s = find_tick_times(clip.pts_s, clip.phase, index.columns["n_phases"][row])
    if clip_id in task.silent_ids:
        notes.add("no_sound")
        yield from encoder.iter_rows([], tick_s)
        return

    def check(state: FileState) -> None:
        if state != source.state:
            raise ChangedError

    with closing(iter_sound(source.clip, notes, check_state=check)) as chunks:
        yield from encoder.iter_rows(chunks, tick_s)


def _describe(clip_id: str, task: SoundTask, error: ClipError) -> Failure:
    path = task.sources[clip_id].clip.path
    return Failure(
        clip_id=clip_id,
        path=str(path),
        step="decode",
        reason=f"its sound: {error}".replace(str(path), path.name),  # reasons travel in bundles
    )
