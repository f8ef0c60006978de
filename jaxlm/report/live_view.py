"""What `jaxlm watch` draws: a run, or the trials of a sweep, in a terminal of any size."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jaxlm.report.terminal_plot import Curve, bars, plot, sparkline
from jaxlm.run import goodput
from jaxlm.run.standing import sentence
from jaxlm.sweep.read import Record

if TYPE_CHECKING:
    from jaxlm.report.live import Followed

STATES = {
    "running": "bold green", "finished": "green", "failed": "bold red", "broken": "bold red", "stopped": "yellow",
    "empty": "dim", "foreign": "red", "imported": "cyan",
}  # fmt: skip
TRAINING, HELD_OUT = "cyan", "bold yellow"
LAYERS = 6
"""Mixture layers that are shown at most."""
LOGS = ("output.log", "launch/process-0.log")
_LAST_BYTES = 4096


def run_frame(run: "Followed", width: int, height: int, since: int = 0) -> RenderableType:
    """Return how a run stands, its curve filling what room is left."""
    parts = [_headline(run, width), _progress(run, width)]
    below = [*_numbers(run, width), *_routers(run, width), *_facts(run, width), *_faults(run, width)]
    room = height - len(parts) - len(below) - 1
    if room >= 5:
        parts.append(plot(_curves(run, since), width, min(room, 60)))
    return Group(*parts, *below)


def _line(text: Text | str, width: int) -> Text:
    """Return a text as exactly one line."""
    text = Text(text) if isinstance(text, str) else text
    text = Text(_printable(text.plain), spans=text.spans, style=text.style)
    text.truncate(max(1, width), overflow="ellipsis")
    text.no_wrap = True
    return text


def _printable(text: str) -> str:
    """Return a text without what could write elsewhere on a terminal."""
    return "".join(char if char.isprintable() else " " for char in text)


def _headline(run: "Followed", width: int) -> Text:
    found = run.standing
    words = f"running, {run.step} of {found.steps} steps" if found.kind == "running" else sentence(found)
    name = (found.name or run.folder.name, "bold")
    return _line(Text.assemble(name, ": ", (words, STATES.get(found.kind, "")), (f"   {run.folder}", "dim")), width)


def _progress(run: "Followed", width: int) -> RenderableType:
    """Return a bar of the steps taken, and when the last of them is to be expected."""
    steps, left = run.standing.steps, run.seconds_left
    text = f"{100 * run.step / steps:.1f} %" if steps else "-"
    if run.running and left is not None:
        end = (datetime.now().astimezone() + timedelta(seconds=left)).strftime("%H:%M" if left < 86400 else "%d %b %H:%M")
        text += f"  {clock(left)} left, at about {end}"
    elif run.standing.seconds:
        text += f"  in {clock(run.standing.seconds)}"
    if width < 50 or not steps:
        return _line(text, width)
    table = Table.grid(padding=(0, 1))
    table.add_row(ProgressBar(total=steps, completed=min(run.step, steps), width=max(10, width - len(text) - 2)), text)
    return table


def _curves(run: "Followed", since: int) -> list[Curve]:
    steps, losses = run.curve
    kept = steps >= since
    rows = [row for row in run.held_out if row.get("loss") is not None and row["step"] >= since]
    held_out = np.array([row["step"] for row in rows], float), np.array([row["loss"] for row in rows], float)
    return [
        Curve("training loss", steps[kept], losses[kept], TRAINING),
        Curve("validation loss", *held_out, HELD_OUT, mark="●"),
    ]


def _numbers(run: "Followed", width: int) -> list[RenderableType]:
    """Return the newest numbers, as many to a line as there is room for."""
    row, held_out = run.train, run.held_out
    _, losses = run.curve
    recent = losses[-50:][np.isfinite(losses[-50:])]
    pairs: list[tuple[str, str]] = []

    def add(name: str, value: Any, form: str) -> None:
        if isinstance(value, (int, float)) and math.isfinite(value):
            pairs.append((name, form.format(value)))

    add("loss", float(recent.mean()) if len(recent) else None, "{:.4f} (mean of 50)" if len(recent) > 1 else "{:.4f}")
    add("bits/byte", row.get("bits_per_byte"), "{:.4f}")
    if held_out:
        newest = held_out[-1]
        add("validation", newest.get("loss"), "{:.4f}" + f" at {newest['step']}")
        best = min(held_out, key=lambda r: r.get("loss") if r.get("loss") is not None else math.inf)
        if best["step"] != newest["step"]:
            add("best", best.get("loss"), "{:.4f}" + f" at {best['step']}")
        add("validation bits/byte", newest.get("bits_per_byte"), "{:.4f}")
    for name, label, form in (
        ("rewards/margins", "margin", "{:.4f}"), ("rewards/accuracies", "accuracy", "{:.3f}"),
        ("tokens_per_second", "tokens/s", "{:,.0f}"), ("step_seconds", "step", "{:.3f} s"),
        ("data_wait_seconds", "data", "{:.3f} s"),
        ("gradient_norm", "gradient norm", "{:.3f}"), ("learning_rate", "learning rate", "{:.2e}"),
    ):  # fmt: skip
        add(label, row.get(name), form)
    if isinstance(row.get("mfu"), (int, float)):
        add("MFU", 100 * row["mfu"], "{:.1f} %")
    add("skipped", row.get("skipped_total"), "{:.0f}")
    lines, line = [], Text()
    for name, value in pairs:
        if line and len(line) + len(name) + len(value) + 4 > width:
            lines.append(line)
            line = Text()
        line.append(f"{name} ", style="dim").append(
            f"{value}   ", style="bold red" if name == "skipped" and value != "0" else ""
        )
    return [*lines, *([line] if line else [])]


def _routers(run: "Followed", width: int) -> list[RenderableType]:
    """Return a line for each mixture layer, the most unbalanced ones where there are many."""
    row = run.train
    if not isinstance(row.get("router_load_max"), list):
        return []
    loads = next((r["router_load"] for r in reversed(run.held_out) if isinstance(r.get("router_load"), list)), None)
    count = len(row["router_load_max"])
    at = sorted(range(count), key=lambda layer: -(row["router_load_max"][layer] or 0))[:LAYERS]
    what = f"routers of {count} mixture layer{'s' if count > 1 else ''}"
    told = f"{what}; bars: share of each expert at the last validation, full at twice an even share"
    lines: list[RenderableType] = [_line(Text(told, style="dim"), width)]
    for layer in sorted(at):

        def number(name: str, form: str, layer: int = layer) -> str:
            values = row.get(name)
            value = values[layer] if isinstance(values, list) and layer < len(values) else None
            return "-" if value is None else form.format(value)

        dead = number("router_dead", "{:.0f}")
        line = Text.assemble(
            f"  {run.moe_layers[layer] if layer < len(run.moe_layers) else layer:>2}  "
            f"busiest {number('router_load_max', '{:.2f}')}x  dropped {number('router_dropped', '{:.2%}')}  dead ",
            (dead, "bold red" if dead not in ("-", "0") else ""), f"  entropy {number('router_entropy', '{:.2f}')}  ",
        )  # fmt: skip
        if loads is not None and layer < len(loads):
            line.append(bars(loads[layer], 2 / len(loads[layer])), style=TRAINING)
        lines.append(_line(line, width))
    return lines


def _facts(run: "Followed", width: int) -> list[RenderableType]:
    """Return where the time went, the checkpoints, and the starts."""
    lines: list[RenderableType] = []
    seconds = run.spent.get("all_seconds")
    if isinstance(seconds, dict):
        everything = sum(seconds.values()) or 1.0
        kinds = sorted(((seconds.get(kind, 0.0), kind) for kind in goodput.KINDS), reverse=True)
        shares = "  ".join(f"{kind} {100 * spent / everything:.1f} %" for spent, kind in kinds if spent / everything >= 0.001)
        share = run.spent.get("goodput")
        told = f"{100 * share:.1f} %" if isinstance(share, (int, float)) else "-"
        lines.append(_line(Text.assemble(("goodput ", "dim"), told, (f"   {shares}", "dim")), width))
    saves, starts = run.standing.checkpoints, len(run.starts)
    more = f"{len(saves) - 6} more, " if len(saves) > 6 else ""
    line = Text.assemble(("checkpoints ", "dim"), f"{more}{', '.join(map(str, saves[-6:]))}" if saves else "none yet")
    line.append(f"   starts {starts}", style="dim" if starts < 2 else "")
    line.append(f"   {run.standing.devices}" if run.standing.devices else "", style="dim")
    lines.append(_line(line, width))
    return lines


def _faults(run: "Followed", width: int) -> list[RenderableType]:
    """Return what a failed run said, and the last line of its log where it has one."""
    why = _printable(" ".join(run.standing.why.split())) if run.standing.kind in ("failed", "broken") else ""
    lines: list[RenderableType] = [Text(why[at : at + width], "red") for at in range(0, min(len(why), 4 * width), width)]
    for name in LOGS:
        if last := last_line(run.folder / name):
            lines.append(_line(Text.assemble((f"{name}: ", "dim"), last), width))
            break
    return lines


def last_line(path: Path) -> str:
    """Return the last line of a log that says anything, as a terminal may show it; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _LAST_BYTES))
            lines = file.read().decode("utf-8", errors="replace").replace("\r", "\n").split("\n")
    except OSError:
        return ""
    said = next((line for line in reversed(lines) if line.strip()), "")
    return _printable(Text.from_ansi(said).plain).strip()


def clock(seconds: float) -> str:
    """Return a time as 1:02:03, or 3 d 4 h."""
    seconds = max(0, round(seconds))
    if seconds >= 172800:
        return f"{seconds // 86400} d {seconds % 86400 // 3600} h"
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def counted(runs: Iterable["Followed"]) -> str:
    """Return how many trials stand how."""
    counts = Counter(run.standing.kind for run in runs)
    known = [f"{counts[kind]} {'not begun' if kind == 'empty' else kind}" for kind in STATES if counts[kind]]
    return f"{sum(counts.values())} trials: {', '.join(known)}"


def sweep_frame(record: Record, runs: Mapping[Path, "Followed"], width: int, height: int, since: int = 0) -> RenderableType:
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
        newest = losses[np.isfinite(losses)][-20:]
        held_out = last_loss(run)
        left = run.seconds_left if run.running else None
        kind = run.standing.kind
        said = _printable(f"failed: {run.standing.why}"[:40]) if kind == "failed" else "not begun" if kind == "empty" else kind
        table.add_row(
            Text(_printable(entry.arm) + (" *" if entry.control else "")), str(entry.seed), Text(said, STATES.get(kind, "")),
            f"{run.step:,}/{run.standing.steps:,}" if run.standing.steps else "-",
            Text(sparkline(losses, max(8, min(24, width - 90))), TRAINING), f"{newest.mean():.4f}" if len(newest) else "-",
            "-" if held_out is None else f"{held_out:.4f}", "" if left is None else clock(left),
        )  # fmt: skip
    title = _line(Text.assemble((record.name, "bold"), f": {counted(runs.values())}", (f"   {record.folder}", "dim")), width)
    hidden = len(entries) - len(order)
    rest = [_line(Text(f"... and {hidden} more trials", style="dim"), width)] if hidden else []
    return Group(title, table, *rest, Text(), arms)


def last_loss(run: "Followed") -> float | None:
    """Return the newest validation loss."""
    return next((row["loss"] for row in reversed(run.held_out) if isinstance(row.get("loss"), (int, float))), None)


def finished_losses(runs: Iterable["Followed"]) -> list[float]:
    """Return the newest validation losses of the runs that have finished."""
    return [loss for run in runs if run.standing.kind == "finished" and (loss := last_loss(run)) is not None]


def _arms(record: Record, runs: Mapping[Path, "Followed"]) -> Table:
    """Return the losses of each arm's finished trials; of arms all of whose trials have finished the best is marked."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("arm", "finished", "mean validation loss", "least", "greatest", ""):
        table.add_column(column, justify="left" if column in ("arm", "") else "right", no_wrap=True)
    means: dict[str, float] = {}
    for arm, entries in record.arms.items():
        followed = [runs[entry.run] for entry in entries]
        losses = finished_losses(followed)
        if losses and all(run.standing.kind == "finished" for run in followed):
            means[arm] = statistics.mean(losses)
    best = min(means, key=lambda arm: means[arm]) if len(means) > 1 else None
    for arm, entries in record.arms.items():
        followed = [runs[entry.run] for entry in entries]
        losses = finished_losses(followed)
        done = sum(run.standing.kind == "finished" for run in followed)
        numbers = [f"{f(losses):.4f}" if losses else "-" for f in (statistics.mean, min, max)]
        note = "control" if entries[0].control else ""
        table.add_row(
            Text(_printable(arm)),
            f"{done}/{len(entries)}",
            *numbers,
            ", ".join(filter(None, [note, "best" if arm == best else ""])),
        )
    return table
