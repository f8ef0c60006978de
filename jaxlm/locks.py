"""Locks between processes of one machine: the kernel lets go of them however their holder ends."""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def take(path: Path) -> IO | None:
    """Return the open file whose lock is this process's until it is closed; None where another process has it.

    The file is created where it is missing. Raises OSError where it cannot be written.
    """
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except BaseException:
        file.close()
        raise
    return file


@contextmanager
def in_turn(path: Path, waits: Callable[[], None]) -> Iterator[None]:
    """Hold a lock, having called `waits` and waited where another process has it; OSError where that cannot be."""
    file = take(path)
    if file is None:
        waits()
        file = path.open("w")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_taken(path: Path) -> bool:
    """Return whether a process has this lock now; to look is to hold it for a moment. OSError where it cannot be read."""
    if not path.is_file():  # opening anything else might wait for ever
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
