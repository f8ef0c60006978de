"""What a sweep has found: every arm against the control, seed by seed, with intervals.

All numbers are functions of the configurations and seeds of finished runs, in the order of the sweep's file: neither the
order in which trials ran nor their interruptions show. What they cost in time, which differs from day to day, is kept apart.
"""

import csv
import io
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlm.data.storage import write_atomically
from jaxlm.errors import ConfigError, suggest
from jaxlm.eval.comparison import Effect, adjusted, describe, paired, summary
from jaxlm.run.directory import METRICS
from jaxlm.run.metrics import read_rows
from jaxlm.run.standing import standing
from jaxlm.sweep.read import Entry, Record, read_record

Rows = list[dict[str, Any]]

# What is said of routers: a field of training rows, its column, over the whole run or at its end, and in which unit.
_ROUTERS = (
    ("router_dropped", "dropped %", True, 100),
    ("router_load_cv", "load CV", True, 1),
    ("router_dead", "dead", False, 1),
    ("router_entropy", "entropy", False, 1),
)


class Table(NamedTuple):
    """A sweep's comparison."""

    heading: list[str]
    rows: list[list[str]]
    """One of texts for each arm, in order, as long as the heading."""
    numbers: dict[str, Any]
    """The same as plain values: "arms" has for each its values by seed, means, intervals and differences."""
    hours: dict[str, float]
    """Of all starts of each arm's finished runs: no part of what the same sweep must find again."""


def tabulate(folder: Path, metrics: Sequence[str] = ("loss",)) -> Table:
    """Return the comparison of the sweep recorded in a folder, of its finished runs; ConfigError where there is no record."""
    return tabulate_record(read_record(folder), metrics)


def tabulate_record(record: Record, metrics: Sequence[str] = ("loss",)) -> Table:
    """Return the comparison of a sweep's finished runs by these fields of their last validation."""
    found: dict[str, dict[int, Rows]] = {}
    hours, tokens = {}, {}
    for arm, entries in record.arms.items():
        stands = [(entry, standing(entry.run)) for entry in sorted(entries, key=lambda entry: entry.seed)]
        done = [(entry, stand) for entry, stand in stands if stand.kind == "finished"]
        found[arm] = {entry.seed: read_rows(entry.run / METRICS) for entry, _ in done}
        hours[arm] = sum(stand.seconds for _, stand in done) / 3600
        tokens[arm] = sum(stand.tokens for _, stand in done)
    _check_metrics(metrics, found)
    arms = [
        _arm(arm, entries, found, record.control, metrics) | {"tokens": tokens[arm]} for arm, entries in record.arms.items()
    ]
    notes = [*_notes(record, found), *(note for metric in metrics for note in _corrected(arms, metric))]
    numbers = {"name": record.name, "control": record.control, "metrics": list(metrics), "arms": arms, "notes": notes}
    routers = [column for field, column, *_ in _ROUTERS if any(field in arm for arm in arms)]
    named = [name for metric in metrics for name in (_title(metric), f"{_title(metric)} minus {record.control}")]
    heading = ["arm", "seeds", *named, f"speed-up to {record.control}'s loss", *routers, "tokens"]
    return Table(heading, [_texts(arm, metrics, routers) for arm in arms], numbers, hours)


def _arm(
    arm: str, entries: Sequence[Entry], found: Mapping[str, Mapping[int, Rows]], control: str, metrics: Sequence[str]
) -> dict[str, Any]:
    """Return what is known of an arm as plain values."""
    runs, reference = found[arm], found[control]
    known: dict[str, Any] = {
        "arm": arm, "control": arm == control, "changes": entries[0].changes,
        "seeds": list(runs), "planned": len(entries),
    }  # fmt: skip
    for metric in metrics:
        values = _lasts(runs, metric)
        effect = paired(values, _lasts(reference, metric)) if arm != control else None
        known[metric] = {
            "values": {str(seed): _finite(value) for seed, value in values.items()},
            "mean": _mean(values.values()),
            "difference": _plain(effect),
        }
    common = [seed for seed in runs if seed in reference]
    if arm != control and common:
        steps = {seed: steps_to(runs[seed], last(reference[seed], "loss")) for seed in common}
        ratios = {seed: _length(reference[seed]) / step for seed, step in steps.items() if step}
        known["speed_up"] = {
            "values": {str(seed): ratio for seed, ratio in ratios.items()}, "pairs": len(common),
            "mean": _mean(ratios.values()) if len(ratios) == len(common) else None,
        }  # fmt: skip
    for field, _, throughout, scale in _ROUTERS:
        values = [(over_run if throughout else last)(rows, field, "train") * scale for rows in runs.values()]
        if values and not any(map(math.isnan, values)):
            known[field] = float(np.mean(values))
    return known


def _texts(arm: dict[str, Any], metrics: Sequence[str], routers: Sequence[str]) -> list[str]:
    cells = [arm["arm"], f"{len(arm['seeds'])}" + (f" of {arm['planned']}" if len(arm["seeds"]) < arm["planned"] else "")]
    for metric in metrics:
        effect = arm[metric]["difference"]
        cells += [_interval(arm[metric]["mean"], 4), describe(_effect(effect)) if effect else "-"]
    speed = arm.get("speed_up")
    reached = f"reached by {len(speed['values'])} of {speed['pairs']}" if speed else "-"
    cells.append(_interval(speed["mean"], 2) if speed and speed["mean"] else reached)
    for field, column, *_ in _ROUTERS:
        if column in routers:
            cells.append(f"{arm[field]:.2f}" if field in arm else "-")
    return [*cells, f"{arm['tokens'] / 1e6:,.2f}M"]


def _notes(record: Record, found: Mapping[str, Mapping[int, Rows]]) -> list[str]:
    notes = []
    missing = sum(entry.seed not in found[entry.arm] for entry in record.trials)
    if missing:
        notes.append(f"{missing} of {len(record.trials)} trials are not finished and not counted.")
    others = [entry.label for entry in record.trials if entry.other_code and entry.seed in found[entry.arm]]
    if others:
        notes.append(f"Trained by another version of the code than {record.code[:6]}: {'; '.join(others)}.")
    return notes


def _corrected(arms: list[dict[str, Any]], metric: str) -> list[str]:
    """Add to every difference its p among all of them, and return what holds in words; nothing is to be said of one arm."""
    effects = [_effect(arm[metric]["difference"]) if arm[metric]["difference"] else None for arm in arms]
    for arm, effect, p in zip(arms, effects, adjusted(effects), strict=True):
        if effect:
            arm[metric]["difference"]["adjusted_p"] = p if math.isfinite(p) else None
    known = [arm for arm, effect in zip(arms, effects, strict=True) if effect and math.isfinite(effect.p)]
    if len(known) < 2:
        return []
    holding = [arm["arm"] for arm in known if arm[metric]["difference"]["adjusted_p"] < 0.05]
    found = f"the differences of {'; '.join(holding)} hold" if holding else "no difference holds"
    return [f"{_title(metric)}: {len(known)} arms were compared; by Holm's correction {found} at 5 %."]


def _check_metrics(metrics: Sequence[str], found: Mapping[str, Mapping[int, Rows]]) -> None:
    """Raise ConfigError for a metric that no finished run has."""
    ends = [row for runs in found.values() for rows in runs.values() for row in rows if row["split"] == "validation"]
    known = {name for row in ends for name, value in row.items() if not isinstance(value, (str, list))} - {"step"}
    for metric in metrics:
        if ends and metric not in known:
            raise ConfigError(
                f"no validation of this sweep has {metric!r}.{suggest(metric, known)} It has {', '.join(sorted(known))}"
            )


def steps_to(rows: Rows, loss: float) -> float | None:
    """Return the step at which validation loss first comes down to `loss`, between two evaluations by a straight line."""
    curve = [(row["step"], row["loss"]) for row in rows if row["split"] == "validation" and row.get("loss") is not None]
    if curve and curve[0][1] <= loss:
        return float(curve[0][0])
    for (before, high), (after, low) in itertools.pairwise(curve):
        if low <= loss:
            return before + (after - before) * (high - loss) / max(high - low, 1e-12)
    return None


def last(rows: Rows, name: str, split: str = "validation") -> float:
    """Return a field's last value, the mean over mixture layers where it has one for each; nan where it is none.

    A run that diverged has nan there, and not what it had before.
    """
    newest = next((row for row in reversed(rows) if row["split"] == split), {})
    value = newest.get(name)
    if isinstance(value, list):
        return float(np.mean([math.nan if part is None else part for part in value]))
    return math.nan if value is None else float(value)


def over_run(rows: Rows, name: str, split: str = "train") -> float:
    """Return the mean of a field over a run's rows and mixture layers; nan where it has none."""
    found = [np.mean(row[name]) for row in rows if row["split"] == split and row.get(name) is not None]
    return float(np.mean(found)) if found else math.nan


def _lasts(runs: Mapping[int, Rows], metric: str) -> dict[int, float]:
    return {seed: last(rows, metric) for seed, rows in runs.items()}


def _length(rows: Rows) -> int:
    return max((row["step"] for row in rows if row["split"] == "validation"), default=0)


def _title(metric: str) -> str:
    return f"validation {metric.replace('_', ' ')}"


def _mean(values: Iterable[float]) -> dict[str, Any] | None:
    """Return a mean over seeds and its interval; a test of its being 0 would mean nothing."""
    found = list(values)
    return _plain(summary(found)._replace(p=math.nan)) if found else None


def _plain(effect: Effect | None) -> dict[str, Any] | None:
    """Return an effect as JSON has it: what is not a number is null."""
    if effect is None:
        return None
    return {name: _finite(value) if isinstance(value, float) else value for name, value in effect._asdict().items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _effect(values: Mapping[str, Any]) -> Effect:
    return Effect(**{name: math.nan if values.get(name) is None else values[name] for name in Effect._fields})


def _interval(values: Mapping[str, Any] | None, digits: int) -> str:
    if values is None:
        return "-"
    if values["mean"] is None:
        return "not finite"
    mean = f"{values['mean']:.{digits}f}"
    if values["low"] is None:
        return mean
    return f"{mean} ({values['low']:.{digits}f} to {values['high']:.{digits}f})"


def write_table(folder: Path, table: Table) -> None:
    """Write table.md, table.csv and table.json into a sweep's folder: the same bytes for the same results."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (table.heading, *table.rows)]
    lines.insert(1, "|---|" + "---:|" * (len(table.heading) - 1))
    text = "\n".join([*lines, *(f"\n{note}" for note in table.numbers["notes"])]) + "\n"
    write_atomically(folder / "table.md", text.encode())
    write_atomically(folder / "table.csv", to_csv(table).encode())
    write_atomically(folder / "table.json", (json.dumps(table.numbers, indent=2) + "\n").encode())


def to_csv(table: Table) -> str:
    """Return the table's numbers as CSV: a line for each arm, a column for each number."""
    lines = []
    for arm in table.numbers["arms"]:
        line = {"arm": arm["arm"], "control": arm["control"], "seeds": len(arm["seeds"]), "planned": arm["planned"]}
        for metric in table.numbers["metrics"]:
            line |= {f"{metric} {k}": v for k, v in (arm[metric]["mean"] or {}).items() if k in ("mean", "low", "high")}
            line |= {f"{metric} difference {k}": v for k, v in (arm[metric]["difference"] or {}).items()}
        line |= {f"speed-up {k}": v for k, v in ((arm.get("speed_up") or {}).get("mean") or {}).items() if k != "method"}
        line |= {column: arm[field] for field, column, *_ in _ROUTERS if field in arm}
        lines.append(line | {"tokens": arm["tokens"]})
    columns = list(dict.fromkeys(name for line in lines for name in line))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()
