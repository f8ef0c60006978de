"""Content hashes of files, remembered by path, size and time of change, so that large sources are not read again."""

import contextlib
import hashlib
import json
import time
from pathlib import Path

from jaxlm.config import read_json
from jaxlm.data.storage import write_atomically
from jaxlm.errors import DataError

_WORTH_REMEMBERING = 1 << 20  # smaller files are hashed as fast as they are looked up
_SETTLED_NANOSECONDS = 2_000_000_000


class ContentHashes:
    """Hashes of file contents, kept in one JSON file in `folder`."""

    def __init__(self, folder: Path):
        self._path = folder / "content_hashes.json"
        self._changed = False
        try:
            found = read_json(self._path.read_bytes())
        except (OSError, ValueError):
            found = {}
        self._known = found if isinstance(found, dict) else {}

    def of(self, path: Path) -> str:
        """Return the hash of the content of `path`; DataError where it cannot be read."""
        try:
            status = path.stat()
            known = self._known.get(str(path.absolute()))
            if isinstance(known, list) and known[:2] == [status.st_size, status.st_mtime_ns] and len(known) == 3:
                return known[2]
            with open(path, "rb") as file:
                content_hash = hashlib.file_digest(file, "blake2b").hexdigest()[:32]
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error
        # A file written just now may change once more within the resolution of its time stamp: hash it again next time.
        settled = time.time_ns() - status.st_mtime_ns > _SETTLED_NANOSECONDS
        if settled and status.st_size >= _WORTH_REMEMBERING:
            self._known[str(path.absolute())] = [status.st_size, status.st_mtime_ns, content_hash]
            self._changed = True
        return content_hash

    def save(self) -> None:
        """Write what was learnt; where the folder cannot be written, the next run hashes again."""
        if self._changed:
            with contextlib.suppress(OSError):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self._path, json.dumps(self._known).encode())
