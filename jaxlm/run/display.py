"""What a person sees of a run: a live line on a terminal, a line now and then elsewhere."""

import functools
import logging
import math
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from jaxlm.run.tail import finite
from jaxlm.train.save_faults import without_late_writes

# Seconds between lines where there is no terminal to redraw.
QUIET_INTERVAL = 10.0


def console(*, quiet: bool = False) -> Console:
    """Return the console for people (standard error: standard output is for results); `quiet` shows nothing."""
    return Console(stderr=True, highlight=False, quiet=quiet)


def quiet_libraries(process: int | None = None) -> None:
    """Keep library chatter below warnings off the screen, and what is left of it in our format, after the process's number."""
    form = "%(message)s" if process is None else f"process {process}: %(message)s"
    logging.basicConfig(level=logging.WARNING, format=form, handlers=[RichHandler(console=console(), show_path=False)])
    _quiet_orbax()


@functools.cache
def _quiet_orbax() -> None:
    # What Orbax calls an error, with a trace, it also raises; `train/save_faults.py` listens all the same.
    orbax = logging.getLogger("absl")
    orbax.setLevel(logging.ERROR)
    orbax.propagate = False
    orbax.addHandler(logging.NullHandler())
    sys.unraisablehook = without_late_writes(sys.unraisablehook)


class TrainingDisplay:
    """Shows step, loss, bits per byte, tokens per second and the time that remains."""

    def __init__(self, out: Console, first_step: int, steps: int):
        """Begin at `first_step` of `steps`."""
        self._out, self._steps, self._first = out, steps, first_step
        self._printed = self._started = time.monotonic()
        self._progress = Progress(
            TextColumn("[bold]step"), TaskProgressColumn("{task.completed:.0f}/{task.total:.0f}"), BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            console=out, disable=out.quiet or not out.is_terminal,
        )  # fmt: skip
        self._task = self._progress.add_task("", total=steps, completed=first_step, text="compiling")
        self._progress.start()

    def update(self, row: dict[str, Any], *, last: bool = False) -> None:
        """Show a training row (its step has been taken)."""
        done = row["step"] + 1
        text = describe(row)
        self._progress.update(self._task, completed=done, text=text)
        now = time.monotonic()
        if not self._out.is_terminal and (last or done == self._first + 1 or now - self._printed >= QUIET_INTERVAL):
            self._printed = now
            left = (now - self._started) / max(1, done - self._first) * (self._steps - done)
            self._out.print(f"step {done}/{self._steps}  {text}  {_clock(left)} left", soft_wrap=True)

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(message, soft_wrap=True)

    def close(self) -> None:
        """Leave the last state of the bar on the screen."""
        self._progress.stop()


def describe(row: dict[str, Any]) -> str:
    """Return a row's loss, bits per byte (of preferences: margin, accuracy) and speed in one short text."""
    number = functools.partial(number_of, row)
    parts = [f"loss {number('loss', '{:.3f}')}"]
    if "rewards/margins" in row:
        parts.append(f"margin {number('rewards/margins', '{:.3f}')}  accuracy {number('rewards/accuracies', '{:.3f}')}")
    else:
        parts.append(f"{number('bits_per_byte', '{:.3f}')} bits/byte")
    if row.get("tokens_per_second"):
        parts.append(f"{number('tokens_per_second', '{:,.0f}')} tokens/s")
    if row.get("mfu"):
        parts.append(f"{100 * finite(row['mfu']):.1f} % MFU")
    if dropped := _by_layer(row, "router_dropped"):
        parts.append(f"{100 * statistics.mean(dropped):.1f} % dropped")
        parts.append(f"load {max(_by_layer(row, 'router_load_max'), default=math.nan):.1f}x")
    if row.get("skipped_total"):
        parts.append(f"{number('skipped_total', '{:.0f}')} skipped")
    return "  ".join(parts)


def number_of(row: dict[str, Any], name: str, form: str) -> str:
    """Return a row's number in this form; "-" where it has none, or one that was not finite."""
    value = finite(row.get(name))
    return form.format(value) if math.isfinite(value) else "-"


def _by_layer(row: dict[str, Any], name: str) -> list[float]:
    values = row.get(name)
    return [finite(value) for value in values] if isinstance(values, list) else []


@contextmanager
def preparation(out: Console) -> Iterator[Any]:
    """Yield report(what, fraction) for work that has parts: a bar on a terminal, one line a part elsewhere."""
    last: list[str] = []
    progress = Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), TaskProgressColumn(), TimeElapsedColumn(),
        console=out, disable=not out.is_terminal, transient=True,
    )  # fmt: skip
    task = progress.add_task("", total=1.0, visible=False)

    def report(what: str, fraction: float) -> None:
        progress.update(task, description=what, completed=fraction, visible=True)
        if not out.is_terminal and what not in last:
            last.append(what)
            out.print(f"{what} ...", soft_wrap=True)

    with progress:
        yield report


@contextmanager
def transfer(out: Console, what: str) -> Iterator[Any]:
    """Yield report(done, total) in bytes: a bar with the rate on a terminal, a line now and then elsewhere."""
    progress = Progress(
        TextColumn(what), BarColumn(bar_width=24), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
        console=out, disable=not out.is_terminal, transient=True,
    )  # fmt: skip
    task, started = progress.add_task(what, total=None), time.monotonic()
    printed = started

    def report(done: int, total: int) -> None:
        nonlocal printed
        progress.update(task, completed=done, total=total)
        now = time.monotonic()
        if not out.is_terminal and now - printed >= QUIET_INTERVAL:
            printed = now
            out.print(
                f"{what}: {done / 1e9:.1f} of {total / 1e9:.1f} GB, {done / 1e6 / (now - started):.0f} MB/s", soft_wrap=True
            )

    with progress:
        yield report


@contextmanager
def measuring(out: Console, total: float) -> Iterator[Any]:
    """Yield advance(amount, what), told of a part of `total` that was done: a bar with the time left, or lines."""
    progress = Progress(
        TextColumn("measuring"), BarColumn(bar_width=24), TaskProgressColumn(), TextColumn("{task.description}"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        console=out, disable=not out.is_terminal, transient=True,
    )  # fmt: skip
    task, started, done = progress.add_task("", total=total), time.monotonic(), 0.0
    printed = started

    def advance(amount: float, what: str) -> None:
        nonlocal printed, done
        done = min(done + amount, total)
        progress.update(task, completed=done, description=what)
        now = time.monotonic()
        if not out.is_terminal and now - printed >= QUIET_INTERVAL:
            printed = now
            left = (now - started) / done * (total - done)
            out.print(f"measuring: {100 * done / total:.0f} %  {what}  {_clock(left)} left", soft_wrap=True)

    with progress:
        yield advance


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def stream(text: str) -> None:
    """Write a piece of a result to standard output at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
