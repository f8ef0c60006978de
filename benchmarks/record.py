"""What every benchmark writes with `--json`: one form for all, so that one program can judge and show them."""

import datetime
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from bars import judge, read_bars
from machine import machine, processor, since, sources, usable_cpus, versions

from jaxlm.data.storage import write_atomically

SOURCES = sources()  # of what is measured: at the end others may have been put in their place


def measured(name: str, values: Sequence[float], unit: str, better: Literal["higher", "lower"], **more: Any) -> dict[str, Any]:
    """Return a result with nothing beside it: the median of `values` (one a round), least and greatest."""
    found = {"name": name, "ours": statistics.median(values), "theirs": None, "ratio": None}
    found |= {"low": min(values), "high": max(values), "rounds": len(values), "unit": unit, "bar": None, "better": better}
    return found | more


def compared(
    name: str, ours: Sequence[float], theirs: Sequence[float], unit: str, better: Literal["higher", "lower"], **more: Any
) -> dict[str, Any]:
    """Return a result of two that took turns: the median ratio of neighbours in a round, least and greatest.

    `unit` is that of `ours` and `theirs`; a ratio has none.
    """
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return measured(name, ratios, unit, better) | {
        "ours": statistics.median(ours), "theirs": statistics.median(theirs), "ratio": statistics.median(ratios), **more
    }  # fmt: skip


def finish(
    part: str, results: list[dict[str, Any]], json_file: Path | None, *, failure: str | None = None, judged: bool = True,
    lacks: Sequence[str] = (), more_versions: dict[str, str] | None = None, **details: Any,
) -> int:  # fmt: skip
    """Write the record of one benchmark, say what misses its bar, and return the exit status.

    `judged` is false for a trial with other shapes than those the bars are for. What needs something of
    `lacks` could not be measured. `details` are kept beside the results.
    """
    missed = judge(results, read_bars(processor=processor()).get(part, {}), lacks) if judged and not failure else []
    if json_file:
        record = {
            "part": part, "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "machine": machine(),
            "versions": versions() | (more_versions or {}), "threads": len(usable_cpus()), **since(SOURCES),
            "results": results, "judged": judged, "lacks": list(lacks), "failure": failure, "missed": missed, **details,
        }  # fmt: skip
        json_file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(json_file, json.dumps(_plain(record), indent=1, allow_nan=False) + "\n")
    for line in (*missed, *([failure] if failure else [])):
        print(f"FAILED: {line}", file=sys.stderr)
    return int(bool(missed or failure))


def _plain(value: Any) -> Any:
    """Return a value that JSON has words for: a number that is not finite becomes null."""
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
