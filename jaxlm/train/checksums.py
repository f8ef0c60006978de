"""What the files of a checkpoint were when it was finished: sizes and hashes beside them, by which later damage is noticed."""

import hashlib
import json
from pathlib import Path
from typing import Any

from jaxlm.config import read_json
from jaxlm.data.storage import write_atomically

CHECKSUMS = "checksums.json"


def write_checksums(path: Path) -> None:
    """Record size and hash of every file of a finished checkpoint, so that later damage is noticed."""
    write_atomically(path / CHECKSUMS, json.dumps(checksums(path)))


def checksums(path: Path) -> dict[str, list[Any]]:
    """Return size and hash of every file of a checkpoint, by its name."""
    files = [f for f in sorted(path.rglob("*")) if f.is_file() and not f.name.startswith((CHECKSUMS, f".{CHECKSUMS}"))]
    return {str(f.relative_to(path)): [f.stat().st_size, _hash(f)] for f in files}


def damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint's files, or None. Without checksums (killed in between) Orbax decides."""
    if not path.is_dir():
        return "the folder is missing"
    try:
        sums = read_json((path / CHECKSUMS).read_bytes())
        entries = [(str(name), int(size), str(digest)) for name, (size, digest) in sums.items()]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError, TypeError, OverflowError):
        return f"{CHECKSUMS} cannot be read"
    for name, size, digest in entries:
        try:
            if fault := _changed(path / name, size, digest):
                return f"{name:.200} {fault}"
        except OSError as fault:  # a name too long for a file system, or a disk that fails
            return f"{name:.200} cannot be read: {fault.strerror}"
    return None


def _changed(file: Path, size: int, digest: str) -> str | None:
    if not file.is_file():
        return "is missing"
    if file.stat().st_size != size:
        return f"has {file.stat().st_size} bytes instead of {size}"
    return None if _hash(file) == digest else "has changed since it was written"


def _hash(file: Path) -> str:
    with file.open("rb") as source:
        return hashlib.file_digest(source, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
