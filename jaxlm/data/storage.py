"""Files written whole or not at all, and failures to write that name the folder and the fix."""

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from jaxlm.errors import DataError
from jaxlm.trust import user_cache

_CAUSES = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file may not grow so large here (`ulimit -f` shows the limit)",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOTDIR: "a part of this path is a file, not a folder",
    errno.EEXIST: "a file of this name is in the way",
}

# A file system that knows no locks, or a file that a process of another user left.
_NO_TURNS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EACCES, errno.EPERM)


def cache_folder(cache: str) -> Path:
    """Return the folder for prepared data: `cache`, else the first of $JAXLM_CACHE, $XDG_CACHE_HOME/jaxlm, ~/.cache/jaxlm."""
    return Path(cache).expanduser() if cache else user_cache()


class Appended:
    """A file opened for appending, of which nothing waits in memory: what cannot be written is known at once, and only once."""

    def __init__(self, path: Path):
        """Open or create it; OSError where that fails."""
        self._file = path.open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        """Write all of `data`; OSError where that fails, perhaps with a part of it written."""
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]

    def sync(self) -> None:
        """Put what was written on disk; OSError where that fails."""
        os.fsync(self.fileno())

    def fileno(self) -> int:
        """Return its descriptor."""
        return self._file.fileno()

    def close(self) -> None:
        """Close it."""
        self._file.close()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` so that `path` holds either all of it or what it held before, even after a power cut.

    What a killed process leaves is one file beside it, which the next to write `path` takes for its own: none gather.
    """
    temporary, file = _temporary(path)
    with closing(file):
        try:
            os.truncate(file.fileno(), 0)
            file.write(content.encode() if isinstance(content, str) else content)
            file.sync()
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    sync_folder(path.parent)


def _temporary(path: Path) -> tuple[Path, Appended]:
    """Return a file beside `path` that is this writer's alone: one of this process where none can be shared by turns."""
    shared = path.with_name(f"{path.name}.tmp")
    try:
        return shared, _taken(shared)
    except OSError as fault:
        if fault.errno not in _NO_TURNS:
            raise
        if fault.errno not in (errno.EACCES, errno.EPERM):  # then it is another user's
            shared.unlink(missing_ok=True)
    own = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    return own, Appended(own)


def _taken(path: Path) -> Appended:
    """Return a file of this name that is this writer's alone until it is closed; others who want it wait."""
    while True:
        file = Appended(path)
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    return file
        except BaseException:
            file.close()
            raise
        file.close()  # whoever had it before has put it in its place, or removed it


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
