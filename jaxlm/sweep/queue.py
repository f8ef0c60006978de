"""Trials trained on this machine, some at a time, each in a process of its own: none of them ends the others.

A trial is claimed by a lock in its run's directory before its process starts, so that two sweeps never train the same one, and
a process dies with the sweep that started it. Where that was killed outright, nothing is left behind but the runs themselves.
"""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, Literal

from jaxlm import locks
from jaxlm.errors import ConfigError
from jaxlm.launch.supervise import LAST_LINES, Death
from jaxlm.run.directory import CONFIG, METRICS, in_use
from jaxlm.run.failure import FAILURE, forget_failure, write_failure
from jaxlm.run.standing import Standing, is_complete, standing
from jaxlm.sweep.display import SweepDisplay
from jaxlm.sweep.share import Share

CLAIM, OUTPUT = "sweep.lock", "output.log"
TICK, LOOK = 0.1, 1.0  # seconds between looks at processes, and at what they have written

Ending = Literal["finished", "failed", "stopped", "unbegun"]


@dataclasses.dataclass(frozen=True)
class Work:
    """One run to be made."""

    label: str
    """Names it in messages."""
    run: Path
    """Its directory."""
    steps: int
    command: tuple[str, ...]
    """What makes it, or continues it, and ends with status 0."""


@dataclasses.dataclass
class _Child:
    work: Work
    process: subprocess.Popen
    claim: IO
    log: Path
    begin: int
    """Where this start's words begin in the log."""
    seen: tuple[tuple[list[int], list[int]], Standing] | None = None
    """When its configuration and record were changed and how long they were, and how it stood then."""

    def look(self) -> Standing:
        """Return how the run stands, read only where it has changed, its configuration only where that has."""
        marks = _mark(self.work.run / CONFIG), _mark(self.work.run / METRICS)
        if self.seen is None or self.seen[0] != marks:
            known = self.seen[1] if self.seen and self.seen[0][0] == marks[0] else None
            self.seen = marks, standing(self.work.run, known)
        return self.seen[1]


def _mark(path: Path) -> list[int]:
    try:
        found = path.stat()
    except OSError:
        return []
    return [found.st_mtime_ns, found.st_size, found.st_ino]


class Queue:
    """Runs work, as many at a time as there are shares of this machine."""

    def __init__(
        self, works: Sequence[Work], shares: Sequence[Share], display: SweepDisplay,
        forbids: Callable[[Work], str] = lambda work: "",
    ):  # fmt: skip
        """Begin nothing yet; `works` are run in order.

        `forbids` is asked before each begins; where it returns a reason, that one is not begun, and none after it.
        """
        self._waiting, self._elsewhere = deque(works), deque[Work]()
        self._free, self._running = list(shares), dict[Share, _Child]()
        self._display, self._asked, self._forbids = display, False, forbids
        self.forbidden = ""
        """Why nothing more may begin."""
        self.endings: dict[str, Ending] = {work.label: "unbegun" for work in works}
        """How each ended, by its label."""

    def run(self, stop: Callable[[], bool]) -> dict[str, Ending]:
        """Run all, and return how each ended.

        Once `stop()` is true, nothing new begins, processes are told to save, and it returns when they have ended; whatever
        ends it otherwise (a second Ctrl-C) kills them. What another sweep trains is waited for, when nothing else is left.
        """
        looked = 0.0
        try:
            while self._running or ((self._waiting or self._elsewhere) and not (stop() or self.forbidden)):
                for share, child in list(self._running.items()):
                    if child.process.poll() is not None:
                        self._settle(share, child)
                if stop():
                    self._ask()
                elif time.monotonic() - looked >= LOOK or (self._free and self._waiting and not self.forbidden):
                    looked = time.monotonic()
                    self._fill()
                    self._display.look({child.work.label: child.look() for child in self._running.values()})
                time.sleep(TICK)
        finally:
            for child in self._running.values():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.process.pid, signal.SIGKILL)
                child.process.wait()
                child.claim.close()
        return self.endings

    def _fill(self) -> None:
        """Begin what can be begun; what others train goes to the end."""
        for _ in range(0 if self.forbidden else len(self._elsewhere)):  # each is looked at once
            work = self._elsewhere.popleft()
            (self._begin if self._free else self._elsewhere.append)(work)
        while self._free and self._waiting and not self.forbidden:
            self._begin(self._waiting.popleft(), new=True)

    def _begin(self, work: Work, new: bool = False) -> None:
        """Start a run's process; or note that it is finished by now, or that somebody else trains it."""
        claim = _claimed(work.run)
        if claim is None or in_use(work.run):
            if claim is not None:
                claim.close()
            if new:
                self._display.say(f"{work.label}: another process is training it in {work.run}; waiting for that to end")
            self._elsewhere.append(work)
            return
        if is_complete(standing(work.run)):
            claim.close()
            self._end(work, "finished", "finished by another process")
            return
        self.forbidden = self._forbids(work)
        if self.forbidden:
            claim.close()
            self._waiting.appendleft(work)
            return
        share = self._free.pop(0)
        forget_failure(work.run)
        log = work.run / OUTPUT
        with log.open("ab", buffering=0) as out:
            out.write(f"--- {datetime.now():%Y-%m-%d %H:%M:%S} {work.label}\n".encode())
            begin = out.tell()
            wrapped = [sys.executable, "-m", "jaxlm.launch.child", str(os.getpid()), *work.command]
            # In a session of its own, Ctrl-C reaches the sweep alone, which tells all of them once.
            with share.held():
                process = subprocess.Popen(
                    wrapped, env=os.environ | dict(share.environment), stdin=subprocess.DEVNULL, stdout=out,
                    stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
        self._running[share] = _Child(work, process, claim, log, begin)
        self._display.begin(work.label, standing(work.run).step, work.steps)

    def _settle(self, share: Share, child: _Child) -> None:
        """Note how a process ended, and let its share of the machine go."""
        del self._running[share]
        self._free.append(share)
        work, status = child.work, child.process.returncode
        stand = standing(work.run)
        if status == 0 and stand.kind != "failed":
            done = is_complete(stand)
            self._end(work, "finished" if done else "stopped", "" if done else f"stopped at step {stand.step} of {work.steps}")
        elif self._asked and status in (-signal.SIGTERM, -signal.SIGKILL):
            self._end(work, "stopped", f"stopped at step {stand.step} of {work.steps}")
        else:
            if not (work.run / FAILURE).exists():
                _write_down(child, stand.step)
            self._end(work, "failed", f"{standing(work.run).why} (all it said: {child.log})")
        child.claim.close()

    def _end(self, work: Work, ending: Ending, words: str) -> None:
        self.endings[work.label] = ending
        self._display.end(work.label, work.steps, ending, words)

    def _ask(self) -> None:
        """Tell all to save and stop, once."""
        if self._running and not self._asked:
            self._display.say(f"telling {len(self._running)} to save and stop; press Ctrl-C again to kill them")
        for child in self._running.values() if not self._asked else ():
            child.process.terminate()
        self._asked = True


def _claimed(run: Path) -> IO | None:
    """Return the open lock that claims a run for this process, or None where another has it; it is let go of when closed."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        return locks.take(run / CLAIM)
    except OSError as fault:
        raise ConfigError(f"{run} cannot be written: {fault.strerror}. Choose another place with --runs") from fault


def _write_down(child: _Child, step: int) -> None:
    """Leave a failure.json for a process that could not write its own: it was killed, or ended before there was a run."""
    with child.log.open("rb") as log:
        log.seek(child.begin)
        lines = log.read().decode(errors="replace").splitlines()[-LAST_LINES:]
    status = child.process.returncode
    how = Death(0, status, child.log, "").how
    said = [place for place, line in enumerate(lines) if line.startswith("error: ")]
    if status < 0:
        kind = how.rpartition(" ")[2]
        memory = ", as the system does when memory runs out" if status == -signal.SIGKILL else ""
        write_failure(child.work.run, kind, f"its process {how}{memory}", lines, step, child.work.steps)
    else:
        last = next((line.strip() for line in reversed(lines) if line.strip()), f"its process {how}")
        words = " ".join(lines[said[-1] :]).removeprefix("error: ") if said else last
        write_failure(child.work.run, f"exit status {status}", words, lines, step, child.work.steps)
