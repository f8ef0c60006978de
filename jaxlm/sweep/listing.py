"""`jaxlm runs`: the table of all runs under a folder, filtered, sorted, with the fields in which they differ."""

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.errors import ConfigError, suggest
from jaxlm.run.metrics import without_nan
from jaxlm.run.standing import Standing

STANDARD = ("run", "name", "kind", "step", "steps", "loss", "bits_per_byte", "tokens/s", "goodput", "age")
FACTS = ("seed", "digest", "seconds", "tokens", "started", "updated", "devices", "commit", "checkpoint", "why")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: a == b, "!=": lambda a, b: a != b, "<": lambda a, b: a < b, "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b, ">=": lambda a, b: a >= b, "~": lambda a, b: str(b).lower() in str(a).lower(),
}  # fmt: skip


class Row(NamedTuple):
    """One run as the table has it."""

    stand: Standing
    values: dict[str, Any]
    """Of every column but those of the configuration; None where the run has none."""

    def __getitem__(self, column: Any) -> Any:
        return self.values[column] if column in self.values else self.stand.config.get(column)


def rows_of(stands: Iterable[Standing], folder: Path) -> list[Row]:
    """Return a row for each run, its path told from `folder`."""
    now, rows = datetime.now(UTC).timestamp(), []
    for stand in stands:
        values = {
            "run": str(stand.folder.relative_to(folder)), "name": stand.name or None, "kind": stand.kind, "step": stand.step,
            "steps": stand.steps or None, "tokens/s": stand.train.get("tokens_per_second"), "goodput": stand.goodput,
            "age": max(0.0, now - datetime.fromisoformat(stand.updated).timestamp()) if stand.updated else None,
            "seed": stand.seed, "digest": stand.digest or None, "seconds": stand.seconds or None,
            "tokens": stand.tokens or None, "started": stand.started or None, "updated": stand.updated or None,
            "devices": stand.devices or None, "commit": stand.commit or None, "why": stand.why or None,
            "checkpoint": stand.checkpoints[-1] if stand.checkpoints else None, "loss": None, "bits_per_byte": None,
        }  # fmt: skip
        values |= {name: _measured(value) for name, value in stand.last.items() if name not in ("step", "split", "tokens")}
        values |= {f"train.{name}": _measured(value) for name, value in stand.train.items() if name not in ("step", "split")}
        rows.append(Row(stand, values))
    return rows


def _measured(value: Any) -> Any:
    """Return a number of a row as it was: what is not finite was written as null."""
    return math.nan if value is None else value


class Columns:
    """The columns that these runs have, and what a user may call them."""

    def __init__(self, rows: Sequence[Row]):
        """Collect them; numbers of the last validation go by their names, those of the last training row by train.NAME."""
        self.known = dict.fromkeys([*STANDARD, *FACTS])
        self.fields: dict[str, None] = {}
        for row in rows:
            self.known.update(dict.fromkeys(row.values))
        for config in {id(of): of for row in rows for of in _parts(row.stand.config)}.values():
            self.fields.update(dict.fromkeys(config))

    def find(self, name: str) -> str:
        """Return the column of this name, or the one field of the configuration that ends in it.

        Raises ConfigError with the nearest name where there is none, and with all where it could be several.
        """
        if name in self.known or name in self.fields:
            return name
        ends = [field for field in self.fields if field.endswith(f".{name}")]
        if len(ends) == 1:
            return ends[0]
        if ends:
            raise ConfigError(f"{name!r:.200} could be {', '.join(ends)}: name one of them")
        near = suggest(name, [*self.known, *self.fields, *(field.rpartition(".")[2] for field in self.fields)])
        measured = [column for column in self.known if not column.startswith("train.") and column not in (*STANDARD, *FACTS)]
        raise ConfigError(
            f"runs have no column {name!r:.80}.{near} There are {', '.join([*STANDARD, *FACTS, *measured])}, train.NAME of the "
            "last training row, and every field of an experiment, such as model.num_layers"
        )


def _parts(config: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return the mappings that a configuration is made of: what thousands have in common is looked through once."""
    return getattr(config, "maps", (config,))


def keep_where(rows: Sequence[Row], conditions: Iterable[str], columns: Columns) -> list[Row]:
    """Return the rows for which all conditions hold: `loss < 3.2`, `kind = failed`, `name ~ switch`, `age < 2h`.

    A run without a value fulfils none but `!=`. Raises ConfigError for what is no condition, or compares unlike things.
    """
    kept = list(rows)
    for condition in conditions:
        parts = re.fullmatch(r"\s*([^\s=!<>~]+)\s*(==|!=|<=|>=|=|<|>|~)\s*(.*?)\s*", condition, re.DOTALL)
        if not parts:
            raise ConfigError(
                f"{condition!r:.200} is no condition: write a column, one of {' '.join(_OPERATORS)}, and a value: 'loss < 3.2'"
            )
        column, sign, text = columns.find(parts[1]), parts[2].replace("==", "="), parts[3]
        wanted = text if sign == "~" else _literal(text, column)
        kept = [row for row in kept if _holds(row[column], sign, wanted, text, condition)]
    return kept


def _literal(text: str, column: str) -> Any:
    """Return the value that a text stands for: true, none, a number, a time such as 2h where it is one's age, or itself."""
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    if column in ("age", "seconds") and (parts := re.fullmatch(r"(\d+\.?\d*|\.\d+)([smhdw])", text)):
        return float(parts[1]) * _UNITS[parts[2]]
    try:
        return float(text)
    except ValueError:
        return text.strip("'\"")


def _holds(value: Any, sign: str, wanted: Any, text: str, condition: str) -> bool:
    if value is None or wanted is None:
        return (value is wanted) == (sign == "=") if sign in ("=", "!=") else False
    if sign == "~":
        return _OPERATORS[sign](_text(value), wanted)
    if isinstance(value, bool) or isinstance(wanted, bool):
        return _OPERATORS[sign](value, wanted) if sign in ("=", "!=") else False
    if isinstance(value, (int, float)) and isinstance(wanted, str):
        try:
            wanted = float(wanted)  # it may have stood in quotes
        except ValueError:
            if sign in ("=", "!="):
                return sign == "!="
            raise ConfigError(f"{condition!r:.200} compares a number with the text {wanted!r:.200}") from None
    if not isinstance(value, (int, float)):
        value, wanted = _text(value), text.strip("'\"")
    return _OPERATORS[sign](value, wanted)


def sort_by(rows: Sequence[Row], column: str, *, down: bool = False) -> list[Row]:
    """Return the rows in the order of a column, those without a value last; numbers before texts."""
    has = [row for row in rows if _sortable(row[column])]
    numbers = [row for row in has if isinstance(row[column], (int, float))]
    texts = [row for row in has if not isinstance(row[column], (int, float))]
    ordered = sorted(numbers, key=lambda row: row[column], reverse=down)
    ordered += sorted(texts, key=lambda row: _text(row[column]), reverse=down)
    return ordered + [row for row in rows if not _sortable(row[column])]


def _sortable(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def differing(rows: Sequence[Row]) -> list[str]:
    """Return the fields of the configuration in which these runs differ, in its order; name and steps are columns anyway."""
    first = next((row.stand.config for row in rows if row.stand.config), {})
    shared = _parts(first)[-1]
    fields: dict[str, None] = {}
    for row in rows:
        parts = _parts(row.stand.config)
        fields.update(dict.fromkeys(parts[0] if parts[-1] is shared and len(parts) > 1 else row.stand.config))
    order = {name: place for place, name in enumerate([*shared, *first])}
    known = [row.stand.config for row in rows if row.stand.config]
    found = [name for name in fields if name not in ("name", "steps") and any(c.get(name) != first.get(name) for c in known)]
    return sorted(found, key=lambda name: order.get(name, len(order)))


def cell(value: Any, column: str) -> str:
    """Return what the table shows of a value in a column; "-" where the run has none."""
    if value is None:
        return "-"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if column == "goodput":
            return f"{100 * value:.1f} %"
        if column in ("age", "seconds"):
            return duration(value)
        if column in ("tokens/s", "tokens"):
            return f"{value:,.0f}"
        if isinstance(value, float) and "." not in column.removeprefix("train."):  # measured, not set
            return f"{value:.4f}" if 1e-3 <= abs(value) < 1e5 or not value else f"{value:.3g}"
    text = _text(value)
    return text if len(text) <= 48 else f"{text[:23]}...{text[-22:]}"


def _text(value: Any) -> str:
    """Return a value on one line, as it is typed in a condition."""
    text = value if isinstance(value, str) else ", ".join(map(_text, value)) if isinstance(value, list) else str(value)
    return text if text.isprintable() else " ".join(re.sub(r"[^ -~\w]", " ", text).split())


def duration(seconds: float) -> str:
    """Return seconds in the greatest unit of which there are two or more, or in seconds: 45s, 3m, 2h, 5d."""
    for unit in ("d", "h", "m"):
        if seconds >= 2 * _UNITS[unit]:
            return f"{seconds / _UNITS[unit]:.0f}{unit}"
    return f"{seconds:.0f}s"


def to_json(rows: Iterable[Row]) -> str:
    """Return everything known of the runs as a JSON array; what is not a number is null."""
    return json.dumps([without_nan(_plain(row)) for row in rows], indent=1) + "\n"


def _plain(row: Row) -> dict[str, Any]:
    stand = row.stand
    values = {name: row.values[name] for name in ("run", *STANDARD[1:7], *FACTS)}
    return values | {
        "folder": str(stand.folder), "goodput": stand.goodput, "checkpoints": list(stand.checkpoints), "last": stand.last,
        "train": stand.train, "config": dict(stand.config),
    }  # fmt: skip


def to_csv(rows: Iterable[Row], columns: Sequence[str]) -> str:
    """Return these columns as CSV, every number in full; what a run has no value of is left empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(["" if (value := row[name]) is None else _text(value) for name in columns])
    return out.getvalue()
