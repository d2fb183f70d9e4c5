"""A worker: the process that extracts clips, one after another, and writes its own shards.

In a second pass it writes files of streams instead, each beside a shard that is finished.

::

    parent  <--Machine, Loaded--              worker
            <--NextClip--  --Given, or None-->
            <--ShardBegun, ClipEnd ..., Writing, ShardFinished--
            <--Begun, Progressed, what is logged--
                           --Stop-->          finishes its shard and ends

It ends when its parent does, however that does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pkgutil
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from logging.handlers import QueueHandler
from typing import TYPE_CHECKING, Any, cast

from features.contracts import Clip, ClipFeatures
from features.errors import UserError
from features.store.clip_writer import ClipWriter
from features.store.streams.writer import AddedFiles
from pipeline.workers import messages
from pipeline.workers.channel import Channel

if TYPE_CHECKING:
    from pipeline.workers.extractor import Extractor

_log = logging.getLogger(__name__)


class ShardOutput:
    """Writes what an extractor yields to the shards of one worker, and tells the parent."""

    def __init__(self, output: messages.Output, send: Callable[[Any], None]) -> None:
        """Nothing is written yet. send: tells the parent."""
        self._most_frames = output.shard_frames
        self._clips = ClipWriter(
            output.store, output.header, output.first_frames, output.stream_headers
        )
        self._has_expressions = bool(output.header.expressions)
        self._send = send
        self._lock = threading.Lock()
        self._part: ClipFeatures | None = None
        """The last rows of the clip at hand."""
        self._n_frames = self._n_faces = 0
        """Of that clip."""
        self._disk = _DiskClock(send)

    def take(self, item: messages.Extracted, *, is_kept: bool = True) -> None:
        """Write rows, end a clip, or pass on a timing.

        Args:
            item: In the order in which the extractor yields them.
            is_kept: Whether the rows of its clip are to be in a shard.

        Raises:
            OSError: the store cannot be written (a full disk); ``finish`` keeps what is done.
        """
        with self._lock:
            if isinstance(item, messages.Timing):
                self._send(self._disk.add_to(item))
            elif isinstance(item, ClipFeatures):
                if is_kept:
                    self._add_rows(item)
            elif isinstance(item, messages.ClipEnd):
                self._end_clip(item, is_kept)
                if self._clips.is_full:
                    self._finish()

    def finish(self) -> None:
        """Finish the shard at hand with the clips that have ended. Raises OSError."""
        with self._lock:
            self._finish()

    def stop(self) -> None:
        """As ``finish``; whoever writes after that waits for ever."""
        self._send(messages.Writing())
        self._lock.acquire()
        self._finish()

    def _add_rows(self, part: ClipFeatures) -> None:
        if not self._has_expressions:  # the store was begun without them
            part = replace(part, face_expression=None)
        begun = self._clips.shard_name
        with self._disk.writing():
            self._clips.add_rows(part)
        if self._clips.shard_name != begun:
            self._send(messages.ShardBegun(name=str(self._clips.shard_name)))
        self._send(messages.Progressed())
        self._part = part
        self._n_frames += part.n_frames
        self._n_faces += part.n_faces

    def _end_clip(self, end: messages.ClipEnd, is_kept: bool) -> None:
        part, n_frames, n_faces = self._part, self._n_frames, self._n_faces
        self._part, self._n_frames, self._n_faces = None, 0, 0
        if end.file is None or not is_kept:
            self._clips.drop_clip()
        elif part is None:
            raise ValueError(f"clip {end.clip.clip_id} has ended without a row")
        else:
            self._clips.close_clip(replace(part, sha256=end.file.sha256, notes=end.notes))
        # Before its shard has its name: so a parent that finds the shard knows what is in it.
        self._send(replace(end, n_frames=n_frames, n_faces=n_faces))

    def _finish(self) -> None:
        with self._disk.writing():
            entry = self._clips.finish()
        if entry is None:
            self._send(messages.Progressed())
            return
        self._send(messages.ShardFinished(entry=entry))
        self._clips.shard_frames = min(2 * self._clips.shard_frames, self._most_frames)


class StreamFileOutput:
    """Writes what a second pass yields to files of streams, and tells the parent."""

    def __init__(self, output: messages.StreamOutput, send: Callable[[Any], None]) -> None:
        """Nothing is written yet. send: tells the parent."""
        self._files = AddedFiles(output.store, output.headers)
        self._send = send
        self._lock = threading.Lock()
        self._disk = _DiskClock(send)

    def take(self, item: messages.Extracted, *, is_kept: bool = True) -> None:
        """As ``ShardOutput.take``; a ``ClipEnd`` is that of a shard, whose streams are whole.

        Raises:
            ShardError: a file of a stream whose rows are to stay is damaged. OSError: a full disk.
        """
        with self._lock:
            if isinstance(item, messages.Timing):
                self._send(self._disk.add_to(item))
            elif isinstance(item, messages.StreamPart) and is_kept:
                with self._disk.writing():
                    self._files.add_rows(item.shard_name, item.values)
                self._send(messages.Progressed())
            elif isinstance(item, messages.ClipAdded) and is_kept:
                self._end_clip(item)
                self._send(item)
            elif isinstance(item, messages.ClipEnd):
                self._send(item)
                self._finish(is_kept=is_kept)

    def finish(self) -> None:
        """Drop what there is of the shard at hand: its streams are not whole."""
        with self._lock:
            self._finish(is_kept=False)

    def stop(self) -> None:
        """As ``finish``; whoever writes after that waits for ever."""
        self._send(messages.Writing())
        self._lock.acquire()
        self._finish(is_kept=False)

    def _end_clip(self, end: messages.ClipAdded) -> None:
        with self._disk.writing():
            self._files.end_clip(
                end.shard_name,
                (end.clip_id, end.sha256),
                n_rows={"frame": end.n_frames, "face": end.n_faces},
                streams=end.streams,
                wanted=end.wanted.streams if end.wanted else (),
                lacks=end.lacks,
            )

    def _finish(self, *, is_kept: bool) -> None:
        """Give the files of the shard at hand their names, or remove them. Raises OSError."""
        if not is_kept:
            self._files.abandon()
            self._send(messages.Progressed())
            return
        with self._disk.writing():
            done = self._files.finish()
        self._send(messages.ShardFinished(stream_files=tuple(done)))


class _DiskClock:
    """How long a worker waits for the disk; its parent is told meanwhile that it does."""

    def __init__(self, send: Callable[[Any], None]) -> None:
        self._send = send
        self._write_s = 0.0
        """Seconds since the last ``Timing``."""

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """As long as the block lasts, the worker writes."""
        self._send(messages.Writing())
        began_s = time.perf_counter()
        try:
            yield
        finally:
            self._write_s += time.perf_counter() - began_s

    def add_to(self, timing: messages.Timing) -> messages.Timing:
        """The timing with the seconds since the last one as ``write``."""
        write_s, self._write_s = self._write_s, 0.0
        return messages.Timing(step_s={**timing.step_s, "write": write_s})


def open_output(
    output: messages.Output | messages.StreamOutput, send: Callable[[Any], None]
) -> ShardOutput | StreamFileOutput:
    """Where the rows of a worker go. send: tells the parent."""
    if isinstance(output, messages.StreamOutput):
        return StreamFileOutput(output, send)
    return ShardOutput(output, send)


def main(descriptor: int) -> None:
    """Work until the parent ends this process. descriptor: of a socket to it."""
    _Worker(Channel(socket.socket(fileno=descriptor))).run()
    os._exit(1)  # no thread is waited for: a decoder may never return


class _Worker:
    """The threads of a worker that are not its extractor's: this one, and one that listens."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._output: ShardOutput | StreamFileOutput | None = None
        self._dropped: set[str] = set()
        """Clips whose rows go nowhere."""

    def run(self) -> None:
        """Returns after an error, which the parent was told."""
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            self._extract()
        except (UserError, OSError) as error:  # raised again by the parent
            self._end(error)
        except Exception as error:
            _log.debug("in a worker", exc_info=True)
            self._end(messages.describe_fault(error))

    def _extract(self) -> None:
        start: messages.Start = self._inbox.get()
        logging.getLogger().addHandler(QueueHandler(cast(Any, self._channel)))  # it only puts
        for name, level in start.log_levels.items():
            logging.getLogger(name).setLevel(level)
        extract: type[Extractor] = pkgutil.resolve_name(start.extractor)
        self._send(extract.find_machine(start.device))
        work: messages.Work = self._inbox.get()
        output = self._output = open_output(self._inbox.get(), self._send)
        extractor = extract(work)
        self._send(messages.Loaded())
        while True:
            self._dropped.clear()
            for item in extractor.iter_items(self._ask_for_clips(), self._send):
                output.take(item, is_kept=self._is_kept(item))

    def _ask_for_clips(self) -> Iterator[Clip]:
        """Clips, until there is none for now."""
        while True:
            self._send(messages.NextClip())
            given: messages.Given | None = self._inbox.get()
            if given is None:
                return
            if not given.is_kept:
                self._dropped.add(given.clip.clip_id)
            yield given.clip

    def _is_kept(self, item: messages.Extracted) -> bool:
        if isinstance(item, messages.Timing):
            return True
        if isinstance(item, messages.StreamPart | messages.ClipAdded):
            return item.shard_name not in self._dropped
        clip_id = item.clip.clip_id if isinstance(item, messages.ClipEnd) else item.clip_id
        return clip_id not in self._dropped

    def _end(self, last_word: object) -> None:
        """Finish the shard at hand, where that is possible; then tell why this process ends."""
        if self._output is not None:
            with contextlib.suppress(Exception):  # the first error is the one to tell
                self._output.finish()
        self._send(last_word)

    def _listen(self) -> None:
        try:
            while not isinstance(message := self._channel.receive(), messages.Stop):
                self._inbox.put(message)
        except (EOFError, OSError):  # the parent is gone, even where no signal tells
            os._exit(1)
        try:
            if self._output is not None:
                self._output.stop()
        except OSError as error:
            self._send(error)
        os._exit(0)  # whatever a decoder does

    def _send(self, message: object) -> None:
        try:
            self._channel.send(message)
        except OSError:  # the parent is gone
            os._exit(1)
