"""`jaxlm watch`: a run or a sweep as it goes on, from what is appended to its record; the run is not disturbed."""

import contextlib
import math
import time
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live

from jaxlm.errors import CheckpointError, ConfigError, suggest
from jaxlm.report import live_sweep, live_view
from jaxlm.report.live_record import Followed
from jaxlm.run.directory import CONFIG
from jaxlm.run.standing import sentence, standing
from jaxlm.sweep.read import RECORD, read_record

# Seconds without a running trial after which a sweep is taken to have ended.
SWEEP_ENDED = 30.0
# Seconds of reading after which what was read so far is drawn.
DRAWN_AFTER = 0.3


class RunSubject:
    """A run to be watched."""

    printed_height = 34
    """Lines where there is no terminal."""

    def __init__(self, folder: Path, since: int):
        """Draw curves from step `since` on."""
        self._run, self._since = Followed(folder), since

    def look(self, until: float = math.inf) -> None:
        """Read what is new, until that time of time.monotonic()."""
        self._run.look(until)

    @property
    def share(self) -> float:
        """Which part of the record has been read; 1: all."""
        return self._run.share

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

    def look(self, until: float = math.inf) -> None:
        """Read what is new of every trial, and which trials there are, until that time of time.monotonic().

        Of those of which more is to be read the running ones come first.
        """
        with contextlib.suppress(ConfigError, OSError):  # written anew just now: the next look reads it
            if (stamp := self._changed()) != self._stamp:
                self._record, self._stamp = read_record(self._folder), stamp
                self._runs = {e.run: self._runs.get(e.run) or Followed(e.run) for e in self._record.trials}
        behind = sorted((run for run in self._runs.values() if run.behind), key=lambda run: not run.running)
        for run in self._runs.values():
            if not run.behind and run.standing.kind != "finished":
                run.look()
        for run in behind:
            run.look(until)
            if time.monotonic() >= until:
                break
        if any(run.running for run in self._runs.values()):
            self._quiet_since = time.monotonic()

    @property
    def share(self) -> float:
        """Which part of the records has been read, each counted alike; 1: all."""
        shares = [run.share for run in self._runs.values()]
        return sum(shares) / max(1, len(shares))

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
        return f"{self._record.name}: {live_sweep.counted(self._runs.values())}"

    def frame(self, width: int, height: int) -> RenderableType:
        """Return what is seen in a terminal of this size."""
        return live_sweep.sweep_frame(self._record, self._runs, width, height, self._since)


Subject = RunSubject | SweepSubject


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
        _read_all(subject, out)
        out.print(subject.frame(out.width, out.height if out.is_terminal else subject.printed_height))
        return
    word = ""
    try:
        subject.look(time.monotonic() + DRAWN_AFTER)
        if wait or subject.share < 1 or not subject.over:
            _follow(subject, every, wait, out)
    except KeyboardInterrupt:
        word = "" if subject.over else " (no longer watched; it goes on)"
    out.print(subject.frame(out.width, out.height))
    out.print(f"{subject.ending}{word}", markup=False, soft_wrap=True)


def _read_all(subject: Subject, out: Console) -> None:
    """Read all there is; in a terminal it is told how far that has come."""
    with out.status("reading") if out.is_terminal else contextlib.nullcontext() as status:
        subject.look(time.monotonic() + DRAWN_AFTER)
        while subject.share < 1:
            if status is not None:
                status.update(f"reading: {subject.share:.0%}")
            subject.look(time.monotonic() + DRAWN_AFTER)


def _follow(subject: Subject, every: float, wait: bool, out: Console) -> None:
    """Draw until the subject is over; as long as there is more to read, after every stretch."""
    with Live(console=out, screen=True, auto_refresh=False) as live:
        while True:
            live.update(subject.frame(out.width, out.height), refresh=True)
            reading = subject.share < 1
            if subject.over and not wait and not reading:
                return
            if not reading:
                time.sleep(every)
            subject.look(time.monotonic() + DRAWN_AFTER)


def _subject(folder: Path, since: int, wait: bool) -> Subject:
    if (folder / RECORD).exists():
        return SweepSubject(folder, since)
    found = standing(folder)
    if found.kind == "foreign" or (not folder.exists() and not wait):
        near = [p.parent.name for name in (CONFIG, RECORD) for p in folder.parent.glob(f"*/{name}") if p.parent != folder]
        inside = sorted(p.parent for name in (CONFIG, RECORD) for p in folder.glob(f"*/{name}"))
        if inside:
            raise CheckpointError(f"{folder} holds {len(inside)} runs or sweeps and is none itself: watch {inside[0]} say")
        raise CheckpointError(
            f"{folder} is neither a run nor a sweep: {found.why}.{suggest(folder.name, near)} --wait waits until a run begins"
        )
    return RunSubject(folder, since)
