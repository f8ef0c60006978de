"""How a run failed, written down in its directory for whoever looks later: failure.json."""

import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from jaxlm.data.storage import write_atomically
from jaxlm.run.directory import METRICS
from jaxlm.run.tail import read_tail

FAILURE = "failure.json"
_LINES = 20


@contextmanager
def failure_recorded(folder: Path) -> Iterator[None]:
    """Write failure.json where the block ends with an exception, and let that go on; being told to stop is no failure.

    For the process that holds the run's lock, once the run is known to be this one: another's must not be marked.
    """
    try:
        yield
    except Exception as fault:
        step = 0
        with suppress(OSError):  # the record may be missing, or what failed
            step = read_tail(folder / METRICS).train.get("step", -1) + 1
        lines = "".join(traceback.format_exception(fault)).splitlines()
        write_failure(folder, type(fault).__name__, str(fault), lines, step)
        raise


def write_failure(folder: Path, kind: str, message: str, lines: list[str], step: int, steps: int | None = None) -> None:
    """Write failure.json: the time, the kind of fault, its words, the last lines of its trace, and the steps that were taken.

    `steps` is how many were asked for, where the run may have no configuration that says so. Where it cannot be written (the
    disk may be what failed) the fault itself is all there is.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    said = {"time": now, "kind": kind, "message": message, "traceback": lines[-_LINES:], "step": step}
    said |= {} if steps is None else {"steps": steps}
    with suppress(OSError):
        write_atomically(folder / FAILURE, json.dumps(said, indent=2) + "\n")


def forget_failure(folder: Path) -> None:
    """Remove what an earlier start left: this one has begun."""
    (folder / FAILURE).unlink(missing_ok=True)
