"""A worker: the process that extracts clips, asking its parent for one after another.

::

    parent  <--Machine, Loaded--              worker
            <--NextClip--  --a clip, or None-->
            <--parts of clips, their ends, Begun, Progressed, what is logged--

It ends when its parent does (see also ``pipeline.workers.parent``).
"""

from __future__ import annotations

import logging
import os
import pkgutil
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from logging.handlers import QueueHandler
from typing import TYPE_CHECKING, Any, cast

from features.contracts import Clip
from features.errors import UserError
from pipeline.workers.channel import Channel
from pipeline.workers.faults import describe_fault
from pipeline.workers.messages import Loaded, NextClip, Start, Work

if TYPE_CHECKING:
    from pipeline.workers.extractor import Extractor

_log = logging.getLogger(__name__)


def main(descriptor: int) -> None:
    """Work until the parent ends this process.

    descriptor: Of a socket to it.
    """
    channel = Channel(socket.socket(fileno=descriptor))
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(channel, inbox), daemon=True).start()
    try:
        _run(channel, inbox.get)
    except OSError:
        _log.debug("the parent is gone", exc_info=True)
    os._exit(1)  # no thread is waited for: a decoder may never return


def _run(channel: Channel, receive: Callable[[], Any]) -> None:
    """Raises OSError where the parent is gone."""
    start: Start = receive()
    logging.getLogger().addHandler(QueueHandler(cast(Any, channel)))  # it only puts
    for name, level in start.log_levels.items():
        logging.getLogger(name).setLevel(level)
    try:
        extract: type[Extractor] = pkgutil.resolve_name(start.extractor)
        channel.send(extract.find_machine(start.device))
        work: Work = receive()
        extractor = extract(work)
        channel.send(Loaded())
        while True:
            for item in extractor.iter_items(_ask_for_clips(channel, receive), channel.send):
                channel.send(item)
    except UserError as error:  # raised again by the parent
        channel.send(error)
    except Exception as error:
        _log.debug("in a worker", exc_info=True)
        channel.send(describe_fault(error))


def _ask_for_clips(channel: Channel, receive: Callable[[], Any]) -> Iterator[Clip]:
    """Clips, until there is none for now."""
    while True:
        channel.send(NextClip())
        clip: Clip | None = receive()
        if clip is None:
            return
        yield clip


def _receive(channel: Channel, inbox: queue.SimpleQueue[Any]) -> None:
    try:
        while True:
            inbox.put(channel.receive())
    except (EOFError, OSError):  # the parent is gone, even where no signal tells
        os._exit(1)
