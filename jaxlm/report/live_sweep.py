"""What `jaxlm watch` draws of a sweep: its trials and its arms, in a terminal of any size."""

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jaxlm.report.live_record import Followed
from jaxlm.report.live_view import ALARM, NOT_FINITE, STATES, TRAINING, clock, line, printable, recent_loss
from jaxlm.report.terminal_plot import sparkline
from jaxlm.sweep.arms import refusal, unlike
from jaxlm.sweep.read import Record

NOW = 20
"""Training rows whose mean is a trial's loss now."""


def counted(runs: Iterable[Followed]) -> str:
    """Return how many trials stand how."""
    counts = Counter(run.standing.kind for run in runs)
    known = [f"{counts[kind]} {'not begun' if kind == 'empty' else kind}" for kind in STATES if counts[kind]]
    return f"{sum(counts.values())} trials: {', '.join(known)}"


def sweep_frame(record: Record, runs: Mapping[Path, Followed], width: int, height: int, since: int = 0) -> RenderableType:
    """Return a line a trial and a line an arm; where there is no room for all, those that run or have failed come first."""
    arms = _arms(record, runs)
    entries = [(entry, runs[entry.run]) for entry in record.trials]
    room = max(1, height - 5 - (len(record.arms) + 2))
    first = {"running": 0, "failed": 1, "broken": 1}
    order = sorted(range(len(entries)), key=lambda place: first.get(entries[place][1].standing.kind, 2))[:room]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("arm", "seed", "state", "step", "training loss", "now", "validation", "left"):
        left = column in ("arm", "state", "training loss")
        table.add_column(column, justify="left" if left else "right", no_wrap=True, overflow="ellipsis")
    for place in sorted(order):
        entry, run = entries[place]
        steps, losses = run.curve
        losses = losses[steps >= since]
        left = run.seconds_left if run.running else None
        kind = run.standing.kind
        said = printable(f"failed: {run.standing.why}"[:40]) if kind == "failed" else "not begun" if kind == "empty" else kind
        table.add_row(
            Text(printable(entry.arm) + (" *" if entry.control else "")), str(entry.seed), Text(said, STATES.get(kind, "")),
            f"{run.step:,}/{run.standing.steps:,}" if run.standing.steps else "-",
            Text(sparkline(losses, max(8, min(24, width - 90))), TRAINING),
            _loss(recent_loss(run, NOW)[0] if run.train else None), _loss(run.last_loss), "" if left is None else clock(left),
        )  # fmt: skip
    shares = [run.share for run in runs.values()]
    reading = "" if all(share >= 1 for share in shares) else f"   reading the records: {statistics.mean(shares):.0%}"
    title = Text.assemble((record.name, "bold"), f": {counted(runs.values())}{reading}", (f"   {record.folder}", "dim"))
    hidden = len(entries) - len(order)
    rest = [line(Text(f"... and {hidden} more trials", style="dim"), width)] if hidden else []
    return Group(line(title, width), table, *rest, Text(), arms)


def _arms(record: Record, runs: Mapping[Path, Followed]) -> Table:
    """Return the losses of each arm's finished trials.

    The best is marked of those arms all of whose trials have finished with a finite loss, where their losses may be compared.
    """
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("arm", "finished", "mean validation loss", "least", "greatest", ""):
        table.add_column(column, justify="left" if column in ("arm", "") else "right", no_wrap=True)
    held_out = {arm: _finished_losses(runs[entry.run] for entry in entries) for arm, entries in record.arms.items()}
    means = {
        arm: statistics.mean(losses)
        for arm, losses in held_out.items()
        if len(losses) == len(record.arms[arm]) and all(map(math.isfinite, losses))
    }
    conditions = [runs[entry.run].conditions for arm in means for entry in record.arms[arm]]
    comparable = not refusal("loss", unlike(itertools.pairwise(conditions)))
    best = min(means, key=lambda arm: means[arm]) if len(means) > 1 and comparable else None
    for arm, entries in record.arms.items():
        losses = held_out[arm]
        known = [loss for loss in losses if math.isfinite(loss)]
        whole = statistics.mean(losses) if losses else None
        done = sum(runs[entry.run].standing.kind == "finished" for entry in entries)
        note = ["control"] * entries[0].control + ["best"] * (arm == best)
        table.add_row(
            Text(printable(arm)), f"{done}/{len(entries)}", _loss(whole), _loss(min(known, default=whole)),
            _loss(max(losses) if len(known) == len(losses) and losses else whole), ", ".join(note),
        )  # fmt: skip
    return table


def _finished_losses(runs: Iterable[Followed]) -> list[float]:
    """Return the newest validation loss, nan where it is not finite, of each run that has finished and was validated."""
    return [loss for run in runs if run.standing.kind == "finished" and (loss := run.last_loss) is not None]


def _loss(value: float | None) -> Text:
    if value is None:
        return Text("-")
    return Text(f"{value:.4f}") if math.isfinite(value) else Text(NOT_FINITE, ALARM)
