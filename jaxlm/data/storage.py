"""Files written whole or not at all, and failures to write that name the folder and the fix."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxlm.errors import DataError

_CAUSES = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOTDIR: "a part of this path is a file, not a folder",
    errno.EEXIST: "a file of this name is in the way",
}


def cache_folder(cache: str) -> Path:
    """Return the folder for prepared data: `cache`, else the first of $JAXLM_CACHE, $XDG_CACHE_HOME/jaxlm, ~/.cache/jaxlm."""
    if cache or os.environ.get("JAXLM_CACHE"):
        return Path(cache or os.environ["JAXLM_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxlm"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` so that `path` holds either all of it or what it held before, even after a power cut."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the renames in `folder` durable, as far as its file system knows how to."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def storage_errors(folder: Path, bytes_needed: int) -> Iterator[None]:
    """Turn a failure to write under `folder` into a DataError that says what is needed and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in _CAUSES:
            raise
        raise DataError(
            f"cannot write to {folder}: {_CAUSES[error.errno]}. The prepared data takes about {bytes_needed / 1e6:,.0f} MB. "
            "Make room or rights there, or name another folder by data.cache or $JAXLM_CACHE, then run the same command "
            "again: what was finished is kept."
        ) from error
