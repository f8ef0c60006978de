"""`jaxlm watch`: a run or a sweep as it goes on, from what is appended to its record; the run is not disturbed."""

import contextlib
import dataclasses
import os
import statistics
import time
from array import array
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, RenderableType
from rich.live import Live

from jaxlm.errors import CheckpointError, ConfigError, JaxlmError, suggest
from jaxlm.report import live_view
from jaxlm.run.directory import CHECKPOINTS, CONFIG, METRICS, load_config, read_starts
from jaxlm.run.standing import Standing, sentence, standing
from jaxlm.run.tail import parse_row
from jaxlm.sweep.read import RECORD, read_record
from jaxlm.train.saved import saved_steps

# Seconds between looks at whether a process still runs, where nothing was appended: the look takes the run's lock for a moment.
LOOK_AGAIN = 3.0
# Seconds without a running trial after which a sweep is taken to have ended.
SWEEP_ENDED = 30.0
_AT_ONCE = 1 << 24  # bytes
_KEPT = 256  # bytes before the place that was read to, by which a file that was written anew is told


class Appended:
    """The rows that were appended to a record since the last look."""

    def __init__(self, path: Path):
        """Begin before the first row of a record, which need not be there."""
        self._path, self._offset, self._inode, self._before = path, 0, -1, b""

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """Return new rows, and whether the file was written anew, so that earlier ones are void: a run that goes on drops rows.

        Of a long record a stretch is read at a time: where no rows come, none are left. A line that is not finished waits for
        the next look; one that is no row is left out.
        """
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, 2)
                inode = os.fstat(file.fileno()).st_ino
                file.seek(max(0, self._offset - len(self._before)))
                same = inode == self._inode and size >= self._offset and file.read(len(self._before)) == self._before
                if not same:
                    self._offset, self._before = 0, b""
                file.seek(self._offset)
                content = file.read(min(size - self._offset, _AT_ONCE))
        except OSError:
            return [], False
        self._inode = inode
        content = content[: content.rfind(b"\n") + 1]
        self._offset += len(content)
        self._before = (self._before + content)[-_KEPT:]
        rows = [row for line in content.splitlines() if (row := parse_row(line)) is not None]
        return rows, not same


class Followed:
    """A run as far as it has been read: the curve of its loss, its newest rows, how it stands."""

    def __init__(self, folder: Path):
        """Read what is there."""
        self.folder = folder
        self._appended = Appended(folder / METRICS)
        self._clear()
        self.standing, self._stamp, self._stood = Standing(folder, "empty"), 0, time.monotonic()
        self.starts: list[dict[str, Any]] = []
        self.moe_layers: tuple[int, ...] = ()
        self._stand()
        self.look()

    def _clear(self) -> None:
        self._steps, self._losses = array("d"), array("d")
        self._held_out: dict[int, dict[str, Any]] = {}
        self.train: dict[str, Any] = {}
        self.spent: dict[str, Any] = {}
        self.step_seconds: deque[float] = deque(maxlen=50)

    @property
    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps taken and training loss."""
        return np.array(self._steps), np.array(self._losses)

    @property
    def held_out(self) -> list[dict[str, Any]]:
        """Validation rows, by step."""
        return [self._held_out[step] for step in sorted(self._held_out)]

    @property
    def step(self) -> int:
        """Steps taken."""
        return max(self.standing.step, self.train.get("step", -1) + 1)

    @property
    def seconds_left(self) -> float | None:
        """What the remaining steps take at the pace of the newest 50, with what this run spent beside its steps."""
        if not self.step_seconds or not self.standing.steps:
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

    def look(self) -> None:
        """Read what was appended, and see now and then whether the run still goes on."""
        heard = False
        while rows := self._next():
            heard = True
            for row in rows:
                self._take(row)
        if time.monotonic() - self._stood <= LOOK_AGAIN:
            return
        self._stood = time.monotonic()
        if heard and self.running:  # what writes is alive: its lock need not be probed
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
            with contextlib.suppress(JaxlmError):
                self.moe_layers = load_config(self.folder).model.moe_layers

    def _next(self) -> list[dict[str, Any]]:
        """Return new rows, and forget those before them where the record was written anew."""
        rows, anew = self._appended.read()
        if anew:
            self._clear()
        return rows

    def _take(self, row: dict[str, Any]) -> None:
        if row["split"] == "goodput":
            self.spent = row
        elif row["split"] == "validation":
            self._held_out[row["step"]] = row
        else:
            loss = row.get("loss")
            self._steps.append(row["step"] + 1)
            self._losses.append(loss if isinstance(loss, (int, float)) else np.nan)
            self.train = row
            if isinstance(seconds := row.get("step_seconds"), (int, float)):
                self.step_seconds.append(seconds)


class RunSubject:
    """A run to be watched."""

    printed_height = 34
    """Lines where there is no terminal."""

    def __init__(self, folder: Path, since: int):
        """Draw curves from step `since` on."""
        self._run, self._since = Followed(folder), since

    def look(self) -> None:
        """Read what is new."""
        self._run.look()

    @property
    def over(self) -> bool:
        """Whether no process is at it."""
        return not self._run.running

    @property
    def ending(self) -> str:
        """How it stands, in a sentence."""
        return f"{self._run.standing.name or self._run.folder}: {sentence(self._run.standing)}"

    def frame(self, width: int, height: int) -> RenderableType:
        """Return what is seen in a terminal of this size."""
        return live_view.run_frame(self._run, width, height, self._since)


class SweepSubject:
    """A sweep to be watched."""

    printed_height = 100_000
    """Lines where there is no terminal: all trials."""

    def __init__(self, folder: Path, since: int):
        """Draw curves from step `since` on."""
        self._folder, self._since, self._quiet_since = folder, since, time.monotonic()
        self._record, self._stamp = read_record(folder), self._changed()
        self._runs = {entry.run: Followed(entry.run) for entry in self._record.trials}

    def _changed(self) -> int:
        return (self._folder / RECORD).stat().st_mtime_ns

    def look(self) -> None:
        """Read what is new of every trial, and which trials there are."""
        with contextlib.suppress(ConfigError, OSError):  # written anew just now: the next look reads it
            if (stamp := self._changed()) != self._stamp:
                self._record, self._stamp = read_record(self._folder), stamp
                self._runs = {e.run: self._runs.get(e.run) or Followed(e.run) for e in self._record.trials}
        for run in self._runs.values():
            if run.standing.kind != "finished":
                run.look()
        if any(run.running for run in self._runs.values()):
            self._quiet_since = time.monotonic()

    @property
    def over(self) -> bool:
        """Whether all trials have ended, or none has run for a while."""
        if all(run.standing.kind in ("finished", "failed", "broken", "foreign") for run in self._runs.values()):
            return True
        quiet = not any(run.running for run in self._runs.values())
        return quiet and time.monotonic() - self._quiet_since > SWEEP_ENDED

    @property
    def ending(self) -> str:
        """How it stands, in a sentence."""
        return f"{self._record.name}: {live_view.counted(self._runs.values())}"

    def frame(self, width: int, height: int) -> RenderableType:
        """Return what is seen in a terminal of this size."""
        return live_view.sweep_frame(self._record, self._runs, width, height, self._since)


def watch(
    folder: Path, *, every: float = 1.0, once: bool = False, since: int = 0, wait: bool = False, out: Console | None = None
) -> None:
    """Show a run or a sweep until it ends or Ctrl-C; one frame alone with `once`, and where there is no terminal.

    Only what was appended is read, every so many seconds, and of the run's locks none is held. With `wait` it stays although
    nothing runs. Raises CheckpointError or ConfigError where the folder is neither a run nor a sweep.
    """
    if not 0.1 <= every <= 3600:
        raise ConfigError(f"--every {every:g} must be from 0.1 to 3600 seconds")
    if since < 0:
        raise ConfigError(f"--since {since} must be 0 or more")
    out = out or Console(highlight=False)
    subject = _subject(folder, since, wait)
    if once or not out.is_terminal:
        out.print(subject.frame(out.width, out.height if out.is_terminal else subject.printed_height))
        return
    word = ""
    try:
        if wait or not subject.over:
            with Live(console=out, screen=True, auto_refresh=False) as live:
                while True:
                    live.update(subject.frame(out.width, out.height), refresh=True)
                    if subject.over and not wait:
                        break
                    time.sleep(every)
                    subject.look()
    except KeyboardInterrupt:
        word = "" if subject.over else " (no longer watched; it goes on)"
    out.print(subject.frame(out.width, out.height))
    out.print(f"{subject.ending}{word}", markup=False, soft_wrap=True)


def _subject(folder: Path, since: int, wait: bool) -> RunSubject | SweepSubject:
    if (folder / RECORD).exists():
        return SweepSubject(folder, since)
    found = standing(folder)
    if found.kind == "foreign" or (not folder.exists() and not wait):
        near = [p.parent.name for name in (CONFIG, RECORD) for p in folder.parent.glob(f"*/{name}")]
        raise CheckpointError(
            f"{folder} is neither a run nor a sweep: {found.why}.{suggest(folder.name, near)} --wait waits until a run begins"
        )
    return RunSubject(folder, since)
