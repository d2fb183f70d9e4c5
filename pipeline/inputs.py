"""The content of clips' files: hashed, compared with what was decoded, remembered (inputs.json)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from features.disk import FileState, read_state, write_atomically
from pipeline.decode.opening import ChangedError, check_unchanged, open_file


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """A file's content and how it looked when that was read."""

    n_bytes: int
    mtime_ns: int
    sha256: str


class Inputs:
    """A file of unchanged size and time is not read again. Reading from it is safe in threads."""

    def __init__(self, path: Path) -> None:
        """path: inputs.json; absent or damaged, every file is hashed again."""
        self.path = path
        self._known: dict[str, InputFile] = {}
        try:
            read: dict[str, Any] = json.loads(path.read_bytes())
            self._known = {name: InputFile(**file) for name, file in read.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            self._known = {}

    def look_up(self, path: Path) -> tuple[InputFile, FileState]:
        """What is known of a file, or what reading it tells, and its state then.

        Raises:
            ClipError: it holds no film (``open_file``), or changed while it was read.
            OSError: it cannot be read.
        """
        with open_file(path) as file:
            state = read_state(file.fileno())
            known = self._known.get(str(path.resolve()))
            if known and (known.n_bytes, known.mtime_ns) == (state.n_bytes, state.mtime_ns):
                return known, state
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            check_unchanged(path, file, state)
        found = InputFile(n_bytes=state.n_bytes, mtime_ns=state.mtime_ns, sha256=sha256)
        return found, state

    def remember(self, path: Path, found: InputFile) -> None:
        """Keep what ``look_up`` returned."""
        self._known[str(path.resolve())] = found

    def write(self) -> None:
        """Replace inputs.json."""
        known = {name: asdict(file) for name, file in self._known.items()}
        write_atomically(self.path, json.dumps(known, indent=0) + "\n")


class ReadTwice:
    """Compares the state of a clip's file when it was hashed with that when it was decoded."""

    def __init__(self) -> None:
        self._first: dict[str, FileState] = {}
        self._lock = Lock()

    def check_state(self, clip_id: str, state: FileState) -> None:
        """Raise ChangedError where the clip's file was read before in another state.

        To be called twice for a clip, in any order, from any threads.
        """
        with self._lock:
            first = self._first.pop(clip_id, None)
            if first is None:
                self._first[clip_id] = state
        if first not in (None, state):
            raise ChangedError
