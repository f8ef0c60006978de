"""One command under measurement: started once, asked for one measurement at a time, and ended with all that it started."""

import json
import os
import queue
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

STDERR_LINES = 25
MEASURE_GRACE_SECONDS = 120.0


class ChildFailed(Exception):
    """A command that died, fell silent or answered nonsense; the message holds the end of its error output."""


class Child:
    """One command under measurement, spoken to by lines."""

    def __init__(self, name: str, command: str):
        self.name, self.command = name, command
        # A file, not a pipe, so that a chatty child never waits for someone to read its errors.
        self.errors = tempfile.TemporaryFile()
        try:
            # A session of its own lets its whole process tree be counted and, at the end, stopped.
            self.process = subprocess.Popen(
                shlex.split(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                start_new_session=True,
            )
        except OSError as error:
            self.errors.close()
            raise ChildFailed(f"{name}: cannot start `{command}`: {error}") from error
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.put(line.decode(errors="replace").strip())
        self.lines.put(None)

    def _failure(self, what: str) -> ChildFailed:
        self.errors.seek(0)
        tail = self.errors.read().decode(errors="replace").splitlines()[-STDERR_LINES:]
        shown = "\n".join(f"    {line}" for line in tail) or "    (nothing)"
        return ChildFailed(f"{self.name}: {what}\n  command: {self.command}\n  end of its error output:\n{shown}")

    def next_line(self, deadline: float, waiting_for: str) -> str:
        """The next line of output, or ChildFailed when the child has ended or `deadline` has passed."""
        try:
            line = self.lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise self._failure(f"{waiting_for} did not come in time; still running, so stopped") from None
        if line is None:
            code = self.process.wait()
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
            raise self._failure(f"{how} while {waiting_for} was awaited")
        return line

    def wait_ready(self, timeout: float) -> None:
        """Return when the child has said `ready`."""
        deadline = time.monotonic() + timeout
        while self.next_line(deadline, "`ready`") != "ready":
            pass

    def measure(self, seconds: float) -> dict:
        """Ask for one measurement and return its JSON object."""
        try:
            self.process.stdin.write(f"measure {seconds:g}\n".encode())
            self.process.stdin.flush()
        except OSError:
            pass  # The child is gone: reading, below, says how.
        deadline = time.monotonic() + 3 * seconds + MEASURE_GRACE_SECONDS
        while True:
            line = self.next_line(deadline, "a measurement")
            try:
                answer = json.loads(line)
            except ValueError:
                continue
            if isinstance(answer, dict) and "tokens_per_second" in answer:
                speed = answer["tokens_per_second"]
                if not isinstance(speed, int | float) or not speed > 0:
                    raise self._failure(f"tokens_per_second is {speed!r}, not a positive number")
                return answer

    def cpu_seconds(self) -> float:
        """Processor time its session has taken so far, ended children included."""
        total = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                # The program's name, in parentheses, may hold spaces; the numbered fields start after it.
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue  # It ended between the listing and the reading.
            if int(fields[3]) == self.process.pid:
                total += sum(int(field) for field in fields[11:15])
        return total / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End the child: its input first, then, if it stays, by signals to its whole session; and close its files."""
        try:
            self.process.stdin.close()
        except OSError:
            pass
        self._end()
        self.reader.join(timeout=5)
        if not self.reader.is_alive():  # something that it started may still hold its output open
            self.process.stdout.close()
        self.errors.close()

    def _end(self) -> None:
        for last_word in (signal.SIGTERM, signal.SIGKILL):
            try:
                self.process.wait(timeout=5)
                return
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, last_word)
        self.process.wait()
