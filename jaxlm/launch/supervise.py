"""A set of processes on this machine that live and die together."""

import contextlib
import dataclasses
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

LAST_LINES = 20
PATIENCE = 10.0  # seconds in which the others may end by themselves: they may have something to say of the fault


@dataclasses.dataclass(frozen=True)
class Death:
    """The process that failed first."""

    number: int
    status: int
    """As subprocess tells it: negative for a signal."""
    log: Path
    last_lines: str

    @property
    def how(self) -> str:
        """In words."""
        if self.status >= 0:
            return f"ended with exit status {self.status}"
        try:
            name = signal.Signals(-self.status).name
        except ValueError:
            name = f"signal {-self.status}"
        return f"was killed by {name}"


class Processes:
    """Processes 0 to n - 1 of one command, each with its own environment and log; what process 0 says is shown as well."""

    def __init__(self, command: Sequence[str], environments: Sequence[Mapping[str, str]], folder: Path, grace: float):
        """Start them. After SIGTERM they have `grace` seconds. Logs, `process-K.log` in `folder`, are added to."""
        self._grace, self._stops = grace, 0
        self.stopped = False
        """Whether SIGTERM or Ctrl-C asked them to stop."""
        self.paths = [folder / f"process-{k}.log" for k in range(len(environments))]
        self._logs: list[BinaryIO] = [path.open("ab", buffering=0) for path in self.paths]
        for log in self._logs:
            log.write(f"--- {datetime.now():%Y-%m-%d %H:%M:%S}\n".encode())
        self._begins = [log.tell() for log in self._logs]
        wrapped = [sys.executable, "-m", "jaxlm.launch.child", str(os.getpid()), *command]
        self._all: list[subprocess.Popen] = []
        try:
            for k, (environment, log) in enumerate(zip(environments, self._logs, strict=True)):
                out = subprocess.PIPE if k == 0 else log
                # In a session of its own, Ctrl-C reaches the supervisor alone, which tells all of them once.
                self._all.append(
                    subprocess.Popen(
                        wrapped, env=dict(environment), stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )  # fmt: skip
        except BaseException:
            self._end(signal.SIGKILL)
            raise
        self._shown = self._all[0].stdout

    def run(self) -> Death | None:
        """Wait until all have ended; return the one that failed first, after the others were brought down, or None.

        SIGTERM and Ctrl-C are passed on to all; a second one kills them.
        """
        with self._passing_signals(), selectors.DefaultSelector() as ready, contextlib.ExitStack() as close:
            for file in (*self._logs, self._shown):
                close.enter_context(file)
            ready.register(self._shown, selectors.EVENT_READ)
            first, since = None, 0.0
            try:
                while any(process.poll() is None for process in self._all):
                    self._show(ready, 0.05)
                    if first is None:
                        first, since = self._failed(), time.monotonic()
                    elif time.monotonic() - since > PATIENCE + self._grace:
                        self._end(signal.SIGKILL)
                    elif time.monotonic() - since > PATIENCE and not self._stops:
                        self._stop()
            finally:
                self._end(signal.SIGKILL)
            while ready.get_map() and self._show(ready, 0.0):
                pass
        first = self._failed() if first is None else first
        return None if first is None else self._death(first)

    def _failed(self) -> int | None:
        """Return the number of a process that failed; of several, one that SIGKILL ended: it fell by no fault of the others."""
        failed = [k for k, process in enumerate(self._all) if process.poll()]
        return min(failed, key=lambda k: (self._all[k].returncode != -signal.SIGKILL, k), default=None)

    @property
    def statuses(self) -> list[int | None]:
        """Exit statuses, as subprocess tells them."""
        return [process.returncode for process in self._all]

    def _death(self, number: int) -> Death:
        with self.paths[number].open("rb") as log:
            log.seek(self._begins[number])
            lines = deque((line.decode(errors="replace").rstrip() for line in log), maxlen=LAST_LINES)
        return Death(number, self._all[number].returncode, self.paths[number], "\n".join(lines))

    def _show(self, ready: selectors.BaseSelector, timeout: float) -> bool:
        """Copy what process 0 has written to its log and to the screen; return whether there was any."""
        if not ready.get_map():  # it has closed its output
            time.sleep(timeout)
            return False
        if not ready.select(timeout):
            return False
        data = os.read(self._shown.fileno(), 1 << 16)
        if not data:
            ready.unregister(self._shown)
            return False
        self._logs[0].write(data)
        with contextlib.suppress(BrokenPipeError):  # nobody looks any more; the log has it all
            sys.stdout.write(data.decode(errors="replace"))
            sys.stdout.flush()
        return True

    def _stop(self) -> None:
        self._stops += 1
        self._end(signal.SIGTERM if self._stops == 1 else signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        for process in self._all:
            if process.poll() is None and number == signal.SIGKILL:
                os.killpg(process.pid, number)  # with what it started itself
            elif process.poll() is None:
                process.send_signal(number)

    @contextlib.contextmanager
    def _passing_signals(self) -> Iterator[None]:
        def ask(number: int, frame: object) -> None:
            self.stopped = True
            self._stop()

        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
