"""What `jaxlm watch` draws of a run, in a terminal of any size."""

import math
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jaxlm.report.live_record import RECENT, Followed
from jaxlm.report.terminal_plot import Curve, bars, plot
from jaxlm.run.standing import sentence
from jaxlm.run.tail import finite

STATES = {
    "running": "bold green", "finished": "green", "failed": "bold red", "broken": "bold red", "stopped": "yellow",
    "empty": "dim", "foreign": "red", "imported": "cyan",
}  # fmt: skip
ALARM, NOT_FINITE = "bold red", "not finite"
TRAINING, HELD_OUT = "cyan", "bold yellow"
LAYERS = 6
"""Mixture layers that are shown at most."""
LOGS = ("output.log", "launch/process-0.log")
_LAST_BYTES = 4096


def run_frame(run: Followed, width: int, height: int, since: int = 0) -> RenderableType:
    """Return how a run stands, its curve filling what room is left."""
    parts = [_headline(run, width), _progress(run, width)]
    below = [*_numbers(run, width), *_routers(run, width), *_facts(run, width), *_faults(run, width)]
    room = height - len(parts) - len(below) - 1
    if room >= 5:
        parts.append(plot(_curves(run, since), width, min(room, 60)))
    return Group(*parts, *below)


def line(text: Text | str, width: int) -> Text:
    """Return a text as exactly one line."""
    text = Text(text) if isinstance(text, str) else text
    text = Text(printable(text.plain), spans=text.spans, style=text.style)
    text.truncate(max(1, width), overflow="ellipsis")
    text.no_wrap = True
    return text


def printable(text: str) -> str:
    """Return a text without what could write elsewhere on a terminal."""
    return "".join(char if char.isprintable() else " " for char in text)


def _headline(run: Followed, width: int) -> Text:
    found = run.standing
    words = f"running, {run.step} of {found.steps} steps" if found.kind == "running" else sentence(found)
    name = (found.name or run.folder.name, "bold")
    return line(Text.assemble(name, ": ", (words, STATES.get(found.kind, "")), (f"   {run.folder}", "dim")), width)


def _progress(run: Followed, width: int) -> RenderableType:
    """Return a bar of the steps taken, and when the last of them is to be expected."""
    steps, left = run.standing.steps, run.seconds_left
    text = f"{100 * run.step / steps:.1f} %" if steps else "-"
    if run.behind:
        text += f"  reading the record: {run.share:.0%}"
    elif run.running and left is not None:
        end = (datetime.now().astimezone() + timedelta(seconds=left)).strftime("%H:%M" if left < 86400 else "%d %b %H:%M")
        text += f"  {clock(left)} left, at about {end}"
    elif run.standing.seconds:
        text += f"  in {clock(run.standing.seconds)}"
    if width < 50 or not steps:
        return line(text, width)
    table = Table.grid(padding=(0, 1))
    table.add_row(ProgressBar(total=steps, completed=min(run.step, steps), width=max(10, width - len(text) - 2)), text)
    return table


def _curves(run: Followed, since: int) -> list[Curve]:
    steps, losses = run.curve
    kept = steps >= since
    rows = [row for row in run.held_out if row["step"] >= since]
    held_out = np.array([row["step"] for row in rows], float), np.array([row["loss"] for row in rows], float)
    return [
        Curve("training loss", steps[kept], losses[kept], TRAINING),
        Curve("validation loss", *held_out, HELD_OUT, mark="●"),
    ]


def _numbers(run: Followed, width: int) -> list[RenderableType]:
    """Return the newest numbers, as many to a line as there is room for."""
    lines, so_far = [], Text()
    for name, value, alarming in (*_losses(run), *_speeds(run.train)):
        if so_far and len(so_far) + len(name) + len(value) + 4 > width:
            lines.append(so_far)
            so_far = Text()
        so_far.append(f"{name} ", style="dim").append(f"{value}   ", style=ALARM if alarming else "")
    return [*lines, *([so_far] if so_far else [])]


Told = tuple[str, str, bool]
"""A number's name, itself, and whether it is cause for alarm."""


def _told(name: str, row: dict[str, Any], key: str, form: str, times: float = 1.0) -> list[Told]:
    """Return a number of a row; nothing where the row has none of that name."""
    value = finite(row.get(key))
    said = form.format(value * times) if math.isfinite(value) else NOT_FINITE
    return [(name, said, said == NOT_FINITE or (name == "skipped" and value > 0))] if key in row else []


def recent_loss(run: Followed, count: int) -> tuple[float, int]:
    """Return the mean of the finite training losses among the newest `count`, and how many those are.

    Where the newest of all is not finite, so is the mean, whatever came before. Of a record that has not been read to its end
    it is the newest loss alone.
    """
    losses = run.curve[1][-count:]
    if run.behind or not len(losses) or not math.isfinite(losses[-1]):
        return finite(run.train.get("loss")), 1
    known = losses[np.isfinite(losses)]
    return float(known.mean()), len(known)


def _losses(run: Followed) -> Iterator[Told]:
    """Yield losses; bits per byte only where there are any: a row without text has none, and that is no fault."""
    if run.train:
        loss, count = recent_loss(run, RECENT)
        if math.isfinite(loss):
            yield "loss", f"{loss:.4f}" + (f" (mean of {count})" if count > 1 else ""), False
        else:
            steps, losses = run.curve
            known = np.flatnonzero(np.isfinite(losses))
            since = f" after step {steps[known[-1]]:,.0f}" if len(known) and not run.behind else ""
            yield "loss", NOT_FINITE + since, True
        yield from _bits_per_byte("bits/byte", run.train)
    if held_out := run.held_out:
        newest = held_out[-1]
        known = math.isfinite(newest["loss"])
        yield "validation", (f"{newest['loss']:.4f}" if known else NOT_FINITE) + f" at {newest['step']}", not known
        best = min(held_out, key=lambda row: row["loss"] if math.isfinite(row["loss"]) else math.inf)
        if best["step"] != newest["step"] and math.isfinite(best["loss"]):
            yield "best", f"{best['loss']:.4f} at {best['step']}", False
        yield from _bits_per_byte("validation bits/byte", newest)


def _bits_per_byte(name: str, row: dict[str, Any]) -> list[Told]:
    return _told(name, row, "bits_per_byte", "{:.4f}") if math.isfinite(finite(row.get("bits_per_byte"))) else []


def _speeds(row: dict[str, Any]) -> Iterator[Told]:
    for key, name, form, times in (
        ("rewards/margins", "margin", "{:.4f}", 1), ("rewards/accuracies", "accuracy", "{:.3f}", 1),
        ("tokens_per_second", "tokens/s", "{:,.0f}", 1), ("step_seconds", "step", "{:.3f} s", 1),
        ("data_wait_seconds", "data", "{:.3f} s", 1),
        ("gradient_norm", "gradient norm", "{:.3f}", 1), ("learning_rate", "learning rate", "{:.2e}", 1),
        ("mfu", "MFU", "{:.1f} %", 100), ("skipped_total", "skipped", "{:.0f}", 1),
    ):  # fmt: skip
        yield from _told(name, row, key, form, times)


def _finite_each(values: Any) -> list[float]:
    """Return the numbers of a list, nan for what is none; of anything else no number."""
    return [finite(value) for value in values] if isinstance(values, list) else []


def _routers(run: Followed, width: int) -> list[RenderableType]:
    """Return a line for each mixture layer, the most unbalanced ones where there are many."""
    row, busiest = run.train, _finite_each(run.train.get("router_load_max"))
    if not busiest:
        return []
    loads = next((r["router_load"] for r in reversed(run.held_out) if isinstance(r.get("router_load"), list)), [])
    at = sorted(range(len(busiest)), key=lambda layer: -busiest[layer] if math.isfinite(busiest[layer]) else -math.inf)
    what = f"routers of {len(busiest)} mixture layer{'s' if len(busiest) > 1 else ''}"
    told = f"{what}; bars: share of each expert at the last validation, full at twice an even share"
    lines: list[RenderableType] = [line(Text(told, style="dim"), width)]
    for layer in sorted(at[:LAYERS]):

        def number(name: str, form: str, layer: int = layer) -> tuple[str, str]:
            values = _finite_each(row.get(name))
            if layer >= len(values):
                return "-", ""
            return (form.format(values[layer]), "") if math.isfinite(values[layer]) else (NOT_FINITE, ALARM)

        dead, style = number("router_dead", "{:.0f}")
        text = Text.assemble(
            f"  {run.moe_layers[layer] if layer < len(run.moe_layers) else layer:>2}  busiest ",
            number("router_load_max", "{:.2f}x"), "  dropped ", number("router_dropped", "{:.2%}"),
            "  dead ", (dead, ALARM if dead not in ("-", "0") else style),
            "  entropy ", number("router_entropy", "{:.2f}"), "  ",
        )  # fmt: skip
        if shares := _finite_each(loads[layer]) if layer < len(loads) else []:
            text.append(bars(shares, 2 / len(shares)), style=TRAINING)
        lines.append(line(text, width))
    return lines


def _facts(run: Followed, width: int) -> list[RenderableType]:
    """Return where the time went, the checkpoints, and the starts."""
    lines: list[RenderableType] = []
    seconds = run.spent.get("all_seconds", {})
    if (everything := sum(seconds.values())) > 0:
        kinds = sorted(((spent, kind) for kind, spent in seconds.items()), reverse=True)
        shares = "  ".join(f"{kind} {100 * spent / everything:.1f} %" for spent, kind in kinds if spent / everything >= 0.001)
        told = f"{100 * share:.1f} %" if math.isfinite(share := finite(run.spent.get("goodput"))) else "-"
        lines.append(line(Text.assemble(("goodput ", "dim"), told, (f"   {shares}", "dim")), width))
    saves, starts = run.standing.checkpoints, len(run.starts)
    more = f"{len(saves) - 6} more, " if len(saves) > 6 else ""
    text = Text.assemble(("checkpoints ", "dim"), f"{more}{', '.join(map(str, saves[-6:]))}" if saves else "none yet")
    text.append(f"   starts {starts}", style="dim" if starts < 2 else "")
    text.append(f"   {run.standing.devices}" if run.standing.devices else "", style="dim")
    lines.append(line(text, width))
    return lines


def _faults(run: Followed, width: int) -> list[RenderableType]:
    """Return what a failed run said, and the last line of its log where it has one."""
    why = printable(" ".join(run.standing.why.split())) if run.standing.kind in ("failed", "broken") else ""
    lines: list[RenderableType] = [Text(why[at : at + width], "red") for at in range(0, min(len(why), 4 * width), width)]
    for name in LOGS:
        if last := last_line(run.folder / name):
            lines.append(line(Text.assemble((f"{name}: ", "dim"), last), width))
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
    said = next((each for each in reversed(lines) if each.strip()), "")
    return printable(Text.from_ansi(said).plain).strip()


def clock(seconds: float) -> str:
    """Return a time as 1:02:03, or 3 d 4 h."""
    seconds = max(0, round(seconds))
    if seconds >= 172800:
        return f"{seconds // 86400} d {seconds % 86400 // 3600} h"
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
