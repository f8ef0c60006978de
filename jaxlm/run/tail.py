"""The newest rows of a record, read from its end: what a long run says now costs no more than what a short one does."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.config import read_json
from jaxlm.run import goodput

BLOCK, LONGEST = 1 << 16, 1 << 22
LOOK_BACK = 1 << 25  # bytes before the end in which rows are looked for: tens of thousands of steps
LARGEST = 1e300  # a whole number may have more digits than a float has room for
MOST_STEPS = 1 << 53  # a float counts no further
SPLITS = ("train", "validation", "goodput")
_QUOTED = {name: f'"{name}"'.encode() for name in SPLITS}


class Tail(NamedTuple):
    """The newest row of every split, nothing where there is none, and what is wrong with the lines that were looked at."""

    train: dict[str, Any]
    validation: dict[str, Any]
    seconds: dict[str, float]
    fault: str


def read_tail(path: Path, starts: int | None = None) -> Tail:
    """Return the newest rows of metrics.jsonl and the seconds of each kind over all starts; `starts` is how many there were.

    Lines further back than the last row of each split, or than `LOOK_BACK`, are not looked at. A last line that was cut short
    is left out, as in `metrics.read_rows`. Where the number of starts is not given the seconds are those of the newest row.
    Raises OSError where the file cannot be read.
    """
    found: dict[str, dict[str, Any]] = {}
    fault, looked = "", 0
    for number, line in enumerate(lines_backward(path)):
        looked += len(line) + 1
        if looked > LOOK_BACK:
            break
        names = [name for name in SPLITS if b'"split"' in line and _QUOTED[name] in line]
        if names and all(name in found for name in names):
            continue
        row = parse_row(line) if names else None
        if row is not None:
            found.setdefault(row["split"], row)
        if row is None and number > 0:  # the newest line may have been cut short
            fault = f"line {number + 1} from the end is no metrics row: {line[:60].decode(errors='replace')!r}"
            break
        if len(found) == len(SPLITS):
            break
    newest = found.get("goodput", {})
    seconds = goodput.by_kind(newest.get("all_seconds"))
    # A row of the newest start counts all before it. After a restart rows of earlier ones are written anew, corrected.
    if newest and starts is not None and newest.get("start") != starts - 1:
        rows = [row for line in lines_backward(path) if b'"goodput"' in line and (row := parse_row(line)) is not None]
        every = {row["start"]: goodput.by_kind(row.get("seconds")) for row in reversed(rows) if row["split"] == "goodput"}
        seconds = goodput.total(every.values())
    return Tail(found.get("train", {}), found.get("validation", {}), seconds, fault)


def finite(value: Any) -> float:
    """Return a number of a row; nan for text, null, lists and what is not finite."""
    return float(value) if type(value) in (int, float) and abs(value) < LARGEST else math.nan


def parse_row(line: bytes) -> dict[str, Any] | None:
    """Return a line's row; None where it is none: no JSON, or without a step, a split and what rows of that split have."""
    try:
        row = read_json(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int or row.get("split") not in SPLITS:
        return None
    if not 0 <= row["step"] < MOST_STEPS:
        return None
    return row if row["split"] != "goodput" or type(row.get("start")) is int else None


def lines_backward(path: Path) -> Iterator[bytes]:
    """Yield the complete lines of a file, the last first; what follows the last newline was not finished, and is left out.

    A line longer than any row is yielded as far as it was read, and is the last one.
    """
    with path.open("rb") as file:
        place, rest, ended = file.seek(0, os.SEEK_END), b"", False
        while place > 0 and len(rest) < LONGEST:
            size = min(BLOCK, place)
            place -= size
            file.seek(place)
            rest, *lines = (file.read(size) + rest).split(b"\n")
            if lines and not ended:
                lines.pop()
                ended = True
            yield from reversed(lines)
        if ended:
            yield rest
