"""What a person sees of a sweep: a bar for all of it and one for each running trial; elsewhere a line now and then."""

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from jaxlm.run.display import describe
from jaxlm.run.standing import Standing

QUIET_INTERVAL = 30.0  # seconds between lines about running trials where there is no terminal to redraw
ENOUGH = 5  # steps that every running trial has taken before time is estimated: before, most of it went into starting


class SweepDisplay:
    """Shows trials begin, proceed and end."""

    def __init__(self, out: Console, trials: int, steps: int, done: int):
        """Begin with `trials` in all, `done` of them finished, and `steps` to be taken by the others."""
        self._out, self._trials, self._done, self._failed = out, trials, done, 0
        self._steps, self._ended, self._begun = steps, 0, dict[str, tuple[int, int]]()
        self._progress = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False), TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False), console=out, disable=out.quiet or not out.is_terminal,
        )  # fmt: skip
        self._all = self._progress.add_task(self._count(), total=max(1, steps), text="steps", left="")
        self._tasks: dict[str, TaskID] = {}
        self._printed = self._started = time.monotonic()
        self._progress.start()

    def begin(self, label: str, step: int, steps: int) -> None:
        """Show that a trial's process has started, from `step`."""
        self._begun[label] = step, steps
        self._steps -= step  # were taken before
        self._progress.update(self._all, total=max(1, self._steps))
        self._tasks[label] = self._progress.add_task(label, total=steps, completed=step, text="starting", left="")
        if not self._out.is_terminal:
            self.say(f"{label}: {f'continues at step {step}' if step else 'begins'}")

    def look(self, running: Mapping[str, Standing]) -> None:
        """Show where the running trials are."""
        new = {label: max(0, stand.step - self._begun[label][0]) for label, stand in running.items()}
        taken = self._ended + sum(new.values())
        known = bool(new) and all(steps >= min(ENOUGH, self._asked(label)) for label, steps in new.items())
        left = self._left(taken) if known else ""
        for label, stand in running.items():
            text = describe(stand.train) if stand.train else "starting"
            self._progress.update(self._tasks[label], completed=stand.step, text=text)
        self._progress.update(self._all, completed=taken, description=self._count(), left=left)
        now = time.monotonic()
        if running and not self._out.is_terminal and now - self._printed >= QUIET_INTERVAL:
            self._printed = now
            for label, stand in running.items():
                said = describe(stand.train) if stand.train else "starting"
                self.say(f"{label}: step {stand.step}/{self._begun[label][1]}  {said}")
            self.say(f"{self._count()}{', ' * bool(left)}{left}")

    def end(self, label: str, steps: int, ending: str, words: str) -> None:
        """Show how a trial ended."""
        self._done += ending == "finished"
        self._failed += ending == "failed"
        if ending != "stopped":
            self._ended += max(0, steps - self._begun.get(label, (0, 0))[0])
        if label in self._tasks:
            self._progress.remove_task(self._tasks.pop(label))
        self._progress.update(self._all, completed=self._ended, description=self._count())
        style = {"failed": "bold red", "stopped": "yellow"}.get(ending, "green")
        count = "" if self._out.is_terminal else f" ({self._count()})"
        self.say(Text.assemble((ending, style), f" {label}{': ' if words else ''}{words}{count}"))

    def say(self, message: str | Text) -> None:
        """Print a line above the bars."""
        self._progress.console.print(message, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Take the bars away."""
        for task in list(self._tasks.values()):
            self._progress.remove_task(task)
        self._progress.stop()

    def _asked(self, label: str) -> int:
        step, steps = self._begun[label]
        return steps - step

    def _left(self, taken: int) -> str:
        """Return how long it takes at the speed so far."""
        minutes = (time.monotonic() - self._started) / max(1, taken) * max(0, self._steps - taken) / 60
        return f"about {minutes:.0f} min left" if minutes >= 1 else "less than a minute left"

    def _count(self) -> str:
        failed = f", {self._failed} failed" if self._failed else ""
        return f"{self._done} of {self._trials} trials finished{failed}"
