"""Which clip files are unchanged: their SHA-256, remembered with size and time (inputs.json)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from features.disk import write_atomically
from features.fingerprint import hash_file


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

    def look_up(self, file: Path) -> InputFile:
        """What is known of a file, or what reading it tells. Raises OSError."""
        state = file.stat()
        known = self._known.get(str(file.resolve()))
        if known and (known.n_bytes, known.mtime_ns) == (state.st_size, state.st_mtime_ns):
            return known
        return InputFile(
            n_bytes=state.st_size, mtime_ns=state.st_mtime_ns, sha256=hash_file(file)
        )

    def remember(self, file: Path, found: InputFile) -> None:
        """Keep what ``look_up`` returned."""
        self._known[str(file.resolve())] = found

    def write(self) -> None:
        """Replace inputs.json."""
        known = {name: asdict(file) for name, file in self._known.items()}
        write_atomically(self.path, json.dumps(known, indent=0) + "\n")
