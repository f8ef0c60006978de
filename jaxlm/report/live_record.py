"""A run's record as it grows: what was appended is read a stretch at a time, and whatever stands in it ends nothing."""

import contextlib
import dataclasses
import math
import os
import statistics
import time
from array import array
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.errors import JaxlmError
from jaxlm.run.directory import CHECKPOINTS, CONFIG, METRICS, load_config, read_starts
from jaxlm.run.goodput import by_kind
from jaxlm.run.standing import Standing, standing
from jaxlm.run.tail import finite, parse_row
from jaxlm.sweep.arms import Conditions, conditions_of, last
from jaxlm.train.saved import saved_steps

# Seconds between looks at whether a process still runs, where nothing was appended: the look takes the run's lock for a moment.
LOOK_AGAIN = 3.0
RECENT = 50
"""Training rows whose mean is told."""
_AT_ONCE = 1 << 20  # bytes: a tenth of a second or so
_LONGEST = 1 << 24  # bytes; a line that has not ended by then is no row
_KEPT = 256  # bytes before the place that was read to, by which a file that was written anew is told


class NewRows:
    """The rows that were appended to a record since the last look."""

    def __init__(self, path: Path):
        """Begin before the first row of a record, which need not be there."""
        self._path, self._offset, self._size, self._inode, self._before = path, 0, 0, -1, b""

    @property
    def share(self) -> float:
        """Which part of the file, as long as it was at the last look, has been read."""
        return self._offset / self._size if self._size else 0.0

    def read(self) -> tuple[list[dict[str, Any]], bool, bool]:
        """Return new rows, whether the file was written anew, so that earlier ones are void, and whether this was the last.

        Of a long record a stretch is read at a time. A line that is not finished waits for the next look; one that is no row is
        left out. A run that goes on from a checkpoint drops rows, and so writes its record anew.
        """
        try:
            with self._path.open("rb") as file:
                self._size = size = file.seek(0, 2)
                inode = os.fstat(file.fileno()).st_ino
                file.seek(max(0, self._offset - len(self._before)))
                same = inode == self._inode and size >= self._offset and file.read(len(self._before)) == self._before
                if not same:
                    self._offset, self._before = 0, b""
                file.seek(self._offset)
                content = file.read(min(size - self._offset, _AT_ONCE))
                if b"\n" not in content and len(content) == _AT_ONCE:
                    content += file.read(_LONGEST)
        except OSError:
            return [], False, True
        self._inode = inode
        ended = self._offset + len(content) >= size
        whole = content.rfind(b"\n") + 1
        content = content[: whole if whole or len(content) <= _LONGEST else None]
        self._offset += len(content)
        self._before = (self._before + content)[-_KEPT:]
        rows = [row for line in content.splitlines() if (row := parse_row(line)) is not None]
        return rows, not same, ended


class Followed:
    """A run as far as it has been read: the curve of its loss, its newest rows, how it stands."""

    def __init__(self, folder: Path):
        """See how it stands; its record is read by `look`."""
        self.folder = folder
        self._appended = NewRows(folder / METRICS)
        self.behind = True
        """Whether there is more of the record to read."""
        self._clear()
        self.standing, self._stamp, self._stood = Standing(folder, "empty"), 0, time.monotonic()
        self.starts: list[dict[str, Any]] = []
        self.moe_layers: tuple[int, ...] = ()
        self.conditions = Conditions()
        self._stand()

    def _clear(self) -> None:
        self._steps, self._losses = array("d"), array("d")
        self._held_out: dict[int, dict[str, Any]] = {}
        self._train: dict[str, Any] = {}
        self.spent: dict[str, Any] = {}
        self.step_seconds: deque[float] = deque(maxlen=RECENT)

    @property
    def share(self) -> float:
        """Which part of the record has been read; 1: all that there was at the last look."""
        return self._appended.share if self.behind else 1.0

    @property
    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps taken and training loss; nan where it was no finite number."""
        return np.array(self._steps), np.array(self._losses)

    @property
    def train(self) -> dict[str, Any]:
        """The newest training row, though the record has not been read so far."""
        return self.standing.train if self.behind else self._train

    @property
    def held_out(self) -> list[dict[str, Any]]:
        """Validation rows by step, the newest too though the record has not been read so far; a loss is a number or nan."""
        rows = dict(self._held_out)
        if self.behind and self.standing.last:
            rows[self.standing.last["step"]] = _with_loss(self.standing.last)
        return [rows[step] for step in sorted(rows)]

    @property
    def last_loss(self) -> float | None:
        """The newest validation loss, nan where it is no finite number; None where there was no validation."""
        rows = self.held_out
        return last(rows, "loss") if rows else None

    @property
    def step(self) -> int:
        """Steps taken."""
        return max(self.standing.step, self.train.get("step", -1) + 1)

    @property
    def seconds_left(self) -> float | None:
        """What the remaining steps take at the pace of the newest, with what this run spent beside its steps."""
        if self.behind or not self.step_seconds or not self.standing.steps:
            return None
        spent = self.spent.get("seconds", {})
        stepping = spent.get("stepping", 0.0)
        beside = sum(spent.get(kind, 0.0) for kind in ("waiting", "evaluating", "saving"))
        share = 1 + beside / stepping if stepping > 0 else 1.0
        return (self.standing.steps - self.step) * statistics.mean(self.step_seconds) * share

    @property
    def running(self) -> bool:
        """Whether a process is at it."""
        return self.standing.kind == "running"

    def look(self, until: float = math.inf) -> None:
        """Read what was appended, and see now and then whether the run still goes on; no new stretch after a time `until`.

        That time is one of time.monotonic(); where it has come a stretch is read all the same.
        """
        heard, ended = False, False
        while not ended:
            rows, anew, ended = self._appended.read()
            if anew:
                self._clear()
            for row in rows:
                self._take(row)
            heard = heard or bool(rows)
            if time.monotonic() >= until:
                break
        self.behind = not ended
        if time.monotonic() - self._stood <= LOOK_AGAIN:
            return
        self._stood = time.monotonic()
        if heard and not self.behind and self.running:  # what writes is alive: its lock need not be probed
            saves = tuple(saved_steps(self.folder / CHECKPOINTS))
            self.standing = dataclasses.replace(self.standing, step=self.train.get("step", -1) + 1, checkpoints=saves)
        else:
            self._stand()

    def _stand(self) -> None:
        """See how the run stands; its configuration is checked where its file has changed."""
        try:
            stamp = (self.folder / CONFIG).stat().st_mtime_ns
        except OSError:
            stamp = 0
        known = self.standing if stamp and stamp == self._stamp else None
        self.standing, self.starts, self._stamp = standing(self.folder, known), read_starts(self.folder), stamp
        if known is None:
            self.conditions = conditions_of(self.folder, self.standing.config, self.starts)
            with contextlib.suppress(JaxlmError):
                self.moe_layers = load_config(self.folder).model.moe_layers

    def _take(self, row: dict[str, Any]) -> None:
        if row["split"] == "goodput":
            self.spent = row | {name: by_kind(row.get(name)) for name in ("seconds", "all_seconds")}
        elif row["split"] == "validation":
            self._held_out[row["step"]] = _with_loss(row)
        else:
            self._steps.append(row["step"] + 1)
            self._losses.append(finite(row.get("loss")))
            self._train = row
            if (seconds := finite(row.get("step_seconds"))) >= 0:
                self.step_seconds.append(seconds)


def _with_loss(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"loss": finite(row.get("loss"))}
