"""What a sweep has found: every arm against the control, seed by seed, with intervals.

All numbers are functions of the configurations and seeds of the runs that came to their end, in the order of the sweep's file:
neither the order in which trials ran nor their interruptions show. What they cost in time, which differs from day to day, is
kept apart.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlm.data.storage import write_atomically
from jaxlm.errors import CheckpointError
from jaxlm.eval.comparison import Effect, describe, describe_mean, summary
from jaxlm.run.directory import METRICS, read_starts
from jaxlm.run.metrics import each_row, without_nan
from jaxlm.run.standing import standing
from jaxlm.sweep.arms import Comparison, Finished, Runs, compare, conditions_of, plain_number, speed_up, unmeasured
from jaxlm.sweep.notes import said_of_conditions, said_of_differences, said_of_runs, title
from jaxlm.sweep.read import Entry, Record, read_record

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
    """Return the comparison of a sweep's runs that came to their end, by these fields of their last validation.

    One that diverged counts with values that are not finite; of others that failed or cannot be read the notes tell. A field
    that no validation has is told of there, too: what was trained is shown in any case.
    """
    found, arms = {arm: _read_arm(entries) for arm, entries in record.arms.items()}, []
    runs, failed = ({arm: getattr(each, name) for arm, each in found.items()} for name in ("runs", "failed"))
    compared = {metric: compare(runs, record.control, metric) for metric in metrics}
    for arm, entries in record.arms.items():
        made = _arm(arm, entries, found[arm], runs, record.control)
        made["metrics"] = {metric: _metric(each[arm]) for metric, each in compared.items()}
        made["failed"] = {str(seed): why for seed, why in failed[arm].items()}
        arms.append(made | {"tokens": found[arm].tokens})
    notes = [*said_of_runs(record, runs, failed), *said_of_conditions(runs, record.control)]
    notes += unmeasured(metrics, (run.rows for each in runs.values() for run in each.values()))
    notes += [note for metric in metrics for note in said_of_differences(arms, metric)]
    numbers = {"name": record.name, "control": record.control, "metrics": list(metrics), "arms": arms, "notes": notes}
    routers = [column for field, column, *_ in _ROUTERS if any(field in arm for arm in arms)]
    named = [name for metric in metrics for name in (title(metric), f"{title(metric)} minus {record.control}")]
    heading = ["arm", "seeds", *named, f"speed-up in steps to {record.control}'s loss", *routers, "tokens"]
    rows = [_texts(arm, metrics, routers) for arm in arms]
    return Table(heading, rows, numbers, {arm: each.hours for arm, each in found.items()})


class _Read(NamedTuple):
    """What the runs of an arm say, by seed."""

    runs: dict[int, Finished]
    """Of those that finished or diverged, their validations alone."""
    routers: dict[str, list[float]]
    """Of each of these runs what its routers did, by field."""
    failed: dict[int, str]
    """Why others have no result, and will have none before they are tried again."""
    hours: float
    tokens: int


def _read_arm(entries: Sequence[Entry]) -> _Read:
    runs, routers, failed, hours, tokens = {}, {field: [] for field, *_ in _ROUTERS}, {}, 0.0, 0
    for entry in sorted(entries, key=lambda entry: entry.seed):
        stand = standing(entry.run)
        if stand.kind in ("failed", "broken") and not stand.diverged:
            failed[entry.seed] = _short(stand.why)
        if stand.kind != "finished" and not stand.diverged:
            continue
        try:
            rows, measured = _read_run(entry.run / METRICS)
        except (OSError, CheckpointError) as fault:
            failed[entry.seed] = _short(str(fault))
            continue
        starts = read_starts(entry.run)
        runs[entry.seed] = Finished(rows, conditions_of(entry.run, stand.config, starts), stand.diverged)
        for field, value in measured.items():
            routers[field].append(value)
        hours += stand.seconds / 3600
        tokens += stand.tokens
    return _Read(runs, routers, failed, hours, tokens)


def _read_run(path: Path) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Return a run's validations, and what its routers did; its record is read once, and no more of it is kept."""
    validations, newest, over = [], {}, {field: [] for field, _, throughout, _ in _ROUTERS if throughout}
    for row in each_row(path):
        if row["split"] == "validation":
            validations.append(row)
        elif row["split"] == "train":
            newest = row
            for field, values in over.items():
                if row.get(field) is not None:
                    values.append(plain_number(row[field]))
    means = {field: float(np.mean(values)) if values else math.nan for field, values in over.items()}
    return validations, {field: means[field] if field in means else plain_number(newest.get(field)) for field, *_ in _ROUTERS}


def _short(why: str) -> str:
    words = " ".join(why.split())
    return words if len(words) <= 160 else f"{words[:157]}..."


def _arm(arm: str, entries: Sequence[Entry], read: _Read, runs: Mapping[str, Runs], control: str) -> dict[str, Any]:
    """Return what is known of an arm beside its metrics as plain values."""
    known: dict[str, Any] = {
        "arm": arm, "control": arm == control, "changes": entries[0].changes,
        "seeds": list(read.runs), "planned": len(entries),
    }  # fmt: skip
    if arm != control and (speed := speed_up(read.runs, runs[control])):
        known["speed_up"] = {
            "values": {str(seed): ratio for seed, ratio in speed.values.items()}, "pairs": speed.pairs,
            "mean": _mean(speed.values.values()) if speed.mean else None,
        } | ({"why": speed.why} if speed.why else {})  # fmt: skip
    for field, _, _, scale in _ROUTERS:
        values = [value * scale for value in read.routers[field]]
        if values and not any(map(math.isnan, values)):
            known[field] = float(np.mean(values))
    return known


def _metric(made: Comparison) -> dict[str, Any]:
    """Return what is known of a metric of an arm as plain values."""
    known = {
        "values": {str(seed): without_nan(value) for seed, value in made.values.items()},
        "mean": _mean(made.values.values()),
        "difference": without_nan(made.difference._asdict()) if made.difference else None,
    }
    if made.difference:
        known["difference"]["adjusted_p"] = without_nan(made.p)
    return known | ({"refused": made.refused} if made.refused else {})


def _texts(arm: dict[str, Any], metrics: Sequence[str], routers: Sequence[str]) -> list[str]:
    count = f"{len(arm['seeds'])}" + (f" of {arm['planned']}" if len(arm["seeds"]) < arm["planned"] else "")
    cells = [arm["arm"], count + (f", {len(arm['failed'])} failed" if arm["failed"] else "")]
    for metric in metrics:
        known = arm["metrics"][metric]
        effect = known["difference"]
        said = known.get("refused", "-")
        cells += [_interval(known["mean"], 4), describe(_effect(effect)) if effect else said]
    cells.append(_speed(arm.get("speed_up")))
    for field, column, *_ in _ROUTERS:
        if column in routers:
            cells.append(f"{arm[field]:.2f}" if field in arm else "-")
    return [*cells, f"{arm['tokens'] / 1e6:,.2f}M"]


def _speed(speed: Mapping[str, Any] | None) -> str:
    if not speed or "why" in speed:
        return "-"
    if not speed["mean"]:
        return f"reached by {len(speed['values'])} of {speed['pairs']}"
    return _interval(speed["mean"], 2) + (", one seed" if speed["pairs"] == 1 else "")


def _mean(values: Iterable[float]) -> dict[str, Any] | None:
    """Return a mean over seeds and its interval; a test of its being 0 would mean nothing."""
    found = list(values)
    return without_nan(summary(found)._replace(p=math.nan)._asdict()) if found else None


def _effect(values: Mapping[str, Any]) -> Effect:
    return Effect(**{name: math.nan if values.get(name) is None else values[name] for name in Effect._fields})


def _interval(values: Mapping[str, Any] | None, digits: int) -> str:
    return describe_mean(_effect(values), digits) if values else "-"


def write_table(folder: Path, table: Table) -> None:
    """Write table.md, table.csv and table.json into a sweep's folder: the same bytes for the same results."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (table.heading, *table.rows)]
    lines.insert(1, "|---|" + "---:|" * (len(table.heading) - 1))
    text = "\n".join([*lines, *(f"\n{note}" for note in table.numbers["notes"])]) + "\n"
    write_atomically(folder / "table.md", text)
    write_atomically(folder / "table.csv", to_csv(table))
    write_atomically(folder / "table.json", json.dumps(table.numbers, indent=2) + "\n")


def to_csv(table: Table) -> str:
    """Return the table's numbers as CSV: a line for each arm, a column for each number."""
    lines = []
    for arm in table.numbers["arms"]:
        line = {name: arm[name] for name in ("arm", "control", "planned")}
        line |= {"seeds": len(arm["seeds"]), "failed": len(arm["failed"])}
        for metric in table.numbers["metrics"]:
            known = arm["metrics"][metric]
            line |= {f"{metric} {k}": v for k, v in (known["mean"] or {}).items() if k in ("mean", "low", "high")}
            line |= {f"{metric} difference {k}": v for k, v in (known["difference"] or {}).items()}
        line |= {f"speed-up {k}": v for k, v in ((arm.get("speed_up") or {}).get("mean") or {}).items() if k != "method"}
        line |= {column: arm[field] for field, column, *_ in _ROUTERS if field in arm}
        lines.append(line | {"tokens": arm["tokens"]})
    columns = list(dict.fromkeys(name for line in lines for name in line))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()
