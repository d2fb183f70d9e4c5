"""How extract and its workers speak: whole messages over a socket."""

from __future__ import annotations

import contextlib
import pickle
import socket
import struct
from threading import Lock
from typing import Any

_LENGTH = struct.Struct("!Q")
_READ_BYTES = 1 << 20


class Channel:
    """One end of a socket: messages arrive whole. Several threads may send, one receives."""

    def __init__(self, end: socket.socket) -> None:
        """end: connected, blocking."""
        self._socket = end
        self._received = bytearray()
        self._lock = Lock()

    def fileno(self) -> int:
        """For ``selectors``."""
        return self._socket.fileno()

    def send(self, message: object) -> None:
        """Send a message; waits until the other side has room. Raises OSError if it is gone."""
        data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        with self._lock:
            self._socket.sendall(_LENGTH.pack(len(data)))
            self._socket.sendall(data)

    put_nowait = send
    """What ``logging.handlers.QueueHandler`` calls."""

    def receive(self) -> Any:
        """The next message; waits for it. Raises EOFError or OSError if the other side is gone."""
        while not (messages := self._take_messages(1)):
            self._read(0)
        return messages[0]

    def receive_arrived(self) -> list[Any]:
        """Read once, without waiting; the messages that are whole, often none.

        A process that stops in the middle of a message holds up nobody.

        Raises:
            EOFError, OSError: the other side is gone, and all that it sent was received.
        """
        try:
            self._read(socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        return self._take_messages(None)

    def receive_rest(self) -> list[Any]:
        """The whole messages that the other side sent before it ended; never waits."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._read(socket.MSG_DONTWAIT)
        return self._take_messages(None)

    def close(self) -> None:
        """The other side is told."""
        self._socket.close()

    def _read(self, flags: int) -> None:
        data = self._socket.recv(_READ_BYTES, flags)
        if not data:
            raise EOFError
        self._received += data

    def _take_messages(self, limit: int | None) -> list[Any]:
        """Whole messages of those that were read, at most so many."""
        messages: list[Any] = []
        while limit is None or len(messages) < limit:
            if len(self._received) < _LENGTH.size:
                break
            end = _LENGTH.size + _LENGTH.unpack_from(self._received)[0]
            if len(self._received) < end:
                break
            with memoryview(self._received) as view, view[_LENGTH.size : end] as data:
                messages.append(pickle.loads(data))
            del self._received[:end]
        return messages
