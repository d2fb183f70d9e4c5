"""The content of clips' files: hashed, compared with what is decoded, kept in inputs.jsonl."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from features.disk import FileState, append_whole, read_state, write_atomically
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
        """path: inputs.jsonl; absent or damaged, files are hashed again."""
        self.path = path
        self._old_path = path.with_suffix(".json")
        """What was written before: one JSON object."""
        self._known: dict[str, InputFile] = {}
        self._has_old = self._old_path.exists()
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            read: dict[str, Any] = json.loads(self._old_path.read_bytes())
            self._known = {name: InputFile(**file) for name, file in read.items()}
        lines = path.read_bytes().splitlines() if path.exists() else []
        for line in lines:
            with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
                file = json.loads(line)
                name = file.pop("path")
                self._known[name] = InputFile(**file)
        self._n_lines = len(lines)

    def count_new_bytes(self, path: Path) -> int:
        """How many bytes ``look_up`` would read; 0 also where the file is out of reach."""
        try:
            state = read_state(path)
        except OSError:
            return 0
        return 0 if self._find(path, state) else state.n_bytes

    def look_up(self, path: Path) -> tuple[InputFile, FileState]:
        """What is known of a file, or what reading it tells, and its state then.

        Raises:
            ClipError: it holds no film (``open_file``), or changed while it was read.
            OSError: it cannot be read.
        """
        with open_file(path) as file:
            state = read_state(file.fileno())
            if known := self._find(path, state):
                return known, state
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            check_unchanged(path, file, state)
        found = InputFile(n_bytes=state.n_bytes, mtime_ns=state.mtime_ns, sha256=sha256)
        return found, state

    def _find(self, path: Path, state: FileState) -> InputFile | None:
        known = self._known.get(str(path.resolve()))
        if known and (known.n_bytes, known.mtime_ns) == (state.n_bytes, state.mtime_ns):
            return known
        return None

    def remember(self, path: Path, found: InputFile) -> None:
        """Keep what ``look_up`` returned, on disk at once: a kill costs no hash.

        Raises:
            OSError: a full disk.
        """
        name = str(path.resolve())
        if self._known.get(name) != found:
            self._known[name] = found
            append_whole(self.path, _format_line(name, found))

    def tidy(self) -> None:
        """Leave one line of each file, and no inputs.json of before. For the one that writes."""
        if self._has_old or self._n_lines != len(self._known):
            lines = (_format_line(name, file) for name, file in self._known.items())
            write_atomically(self.path, "".join(lines))
            self._old_path.unlink(missing_ok=True)


def _format_line(name: str, file: InputFile) -> str:
    return json.dumps({"path": name, **asdict(file)}) + "\n"


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
