"""docs/benchmarks/results.json: the last record of every part, and of what the last run could not measure, the one before."""

import datetime
import json
from pathlib import Path
from typing import Any

from benchmarks.parts import PARTS
from jaxlm.data.storage import write_atomically


def store(folder: Path, new: dict[str, dict[str, Any]]) -> None:
    """Put the records of parts beside those that are stored in a folder; what is not run now takes nothing away that was."""
    stored = folder / "benchmarks" / "results.json"
    stored.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(stored.read_text())["parts"] if stored.exists() else {}
    parts = before | {name: kept(before.get(name, {}), found) for name, found in new.items()}
    ordered = {name: parts[name] for name in PARTS if name in parts}
    write_atomically(stored, json.dumps({"parts": ordered}, indent=1, allow_nan=False) + "\n")


def kept(before: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a part with what an earlier one has of what was not run now."""
    if found["status"] == "not run":
        there = bool(before.get("results"))
        today = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return before | {"not_run_now": {"when": today, "reason": found["reason"]}} if there else found
    about = {"when": before.get("when", ""), "commit": before.get("commit", "")}
    old = [{"measured": about} | each for each in before.get("results", [])] + before.get("earlier", [])
    earlier = {each["name"]: each for each in reversed(old) if each["name"] in found.get("not_run", ())}
    return found | {"earlier": list(earlier.values())}
