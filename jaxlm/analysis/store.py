"""Results of probes in a run's directory: RUN/analysis/PROBE/STEP.json, of other rows or settings STEP-DIGEST.json.

Why a probe failed stands beside, in STEP.fault.json, so that it never takes the place of what was found before.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from jaxlm.analysis.decisive import ALIKE, Result, asked_for, decisive, holds, identity, unlike, variant
from jaxlm.analysis.measure import as_measure
from jaxlm.analysis.probe_files import Probe
from jaxlm.analysis.series import Series
from jaxlm.config import read_json
from jaxlm.data.storage import write_atomically
from jaxlm.errors import ConfigError
from jaxlm.run.directory import CHECKPOINTS
from jaxlm.train import checkpoint

ANALYSIS, FAULT = "analysis", ".fault.json"
_NAME = re.compile(r"(\d+)(?:-[0-9a-f]{8})?\.json")


def path_of(run: Path, probe: str, step: int, variant: str = "") -> Path:
    """Return where a probe's result at a step is kept; `variant` of other rows or settings, see `decisive.variant`."""
    return run / ANALYSIS / probe / f"{step}{'-' * bool(variant)}{variant}.json"


def write_result(series: Series, probe: Probe, step: int, seconds: float, found: Any, not_suited: str = "") -> Result:
    """Keep what a probe found at a step, with all that decides it; ConfigError where that is no dictionary of measures."""
    if not isinstance(found, Mapping):
        raise ConfigError(f"probe() of {probe.name} returned a {type(found).__name__}: it must return a dictionary of measures")
    measures = {}
    for name, value in found.items():
        try:
            measures[str(name)] = as_measure(value).to_dict()
        except ConfigError as fault:
            raise ConfigError(f"probe {probe.name}, {name}: {fault}") from fault
    saves, reads = series.folder / CHECKPOINTS, series.reads
    result = decisive(series, probe, step) | asked_for(series) | {
        "probe": probe.name, "title": probe.title, "step": step, "seconds": round(seconds, 3),
        "reads": {str(other): checkpoint.fingerprint(saves, other) for other in sorted({step, *reads.checkpoints})},
        "relations": reads.relations, "steps": list(reads.steps), "measures": measures,
    }  # fmt: skip
    if not_suited:
        result["not_suited"] = not_suited
    _write(path_of(series.folder, probe.name, step, variant(series, probe)), result)
    _fault_of(series.folder, probe.name, step).unlink(missing_ok=True)
    return result


def write_fault(series: Series, probe: Probe, step: int, fault: str) -> None:
    """Keep why a probe failed at a step; it is tried again the next time."""
    said = {"probe": probe.name, "title": probe.title, "step": step, "fault": fault, "identity": identity(series.folder)}
    _write(_fault_of(series.folder, probe.name, step), said)


def _fault_of(run: Path, probe: str, step: int) -> Path:
    return path_of(run, probe, step).with_suffix(FAULT)


def _write(path: Path, result: Result) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(result, allow_nan=False).encode())


def valid_result(series: Series, probe: Probe, step: int) -> Result | None:
    """Return the result of a probe at a step where it would come out the same today, and None where it must be made anew.

    One that holds becomes the newest: it is what was asked for last.
    """
    path = path_of(series.folder, probe.name, step, variant(series, probe))
    result = _read(path)
    if result is None or not holds(series, probe, step, result):
        return None
    with suppress(OSError):  # of someone else's run
        os.utime(path)
        _fault_of(series.folder, probe.name, step).unlink(missing_ok=True)
    return result


def read_all(run: Path) -> dict[str, dict[int, Result]]:
    """Return the results in a run's directory by probe and step, in order, that belong together with the newest of the probe.

    They are of the run's present training, and of the same settings, rows and code; `left_out` says which others there are.
    What cannot be read or found nothing is not among them.
    """
    return {probe: shown for probe, (shown, _) in _groups(run).items() if shown}


def left_out(run: Path) -> dict[str, dict[int, str]]:
    """Return why `read_all` has no result of a probe at steps where one was made, by probe and step."""
    return {probe: left for probe, (_, left) in _groups(run).items() if left}


def read_faults(run: Path) -> dict[str, dict[int, str]]:
    """Return why probes failed the last time that they were run, by probe and step."""
    found: dict[str, dict[int, str]] = {}
    now = identity(run)
    for path in _files(run, f"*{FAULT}"):
        result, step = _read(path, {"fault"}), path.name.removesuffix(FAULT)
        if result is not None and step.isdigit() and result.get("identity", now) == now:
            found.setdefault(path.parent.name, {})[int(step)] = str(result["fault"])
    return {probe: dict(sorted(faults.items())) for probe, faults in found.items()}


def _groups(run: Path) -> dict[str, tuple[dict[int, Result], dict[int, str]]]:
    """Return of each probe the results by step that belong with its newest, and why others do not."""
    now, found = identity(run), {}
    for probe, results in _by_probe(run).items():
        present = [(time, step, result) for time, step, result in results if result.get("identity", now) == now]
        newest = max(present, key=lambda each: each[:2], default=(0, 0, {}))[2]
        shown = {step: result for _, step, result in sorted(present, key=lambda each: each[:2]) if not unlike(newest, result)}
        left = {step: unlike(newest, result) or ALIKE["identity"] for _, step, result in results if step not in shown}
        found[probe] = dict(sorted(shown.items())), dict(sorted(left.items()))
    return found


def _by_probe(run: Path) -> dict[str, list[tuple[int, int, Result]]]:
    """Return all results that found something, with the time when each was last asked for and its step."""
    found: dict[str, list[tuple[int, int, Result]]] = {}
    for path in _files(run, "*.json"):
        name, result = _NAME.fullmatch(path.name), _read(path)
        if name is None or result is None or not isinstance(result.get("measures"), dict) or not result["measures"]:
            continue
        with suppress(OSError):
            found.setdefault(path.parent.name, []).append((path.stat().st_mtime_ns, int(name[1]), result))
    return found


def _files(run: Path, pattern: str) -> Iterator[Path]:
    try:
        yield from sorted((run / ANALYSIS).glob(f"*/{pattern}"))
    except OSError:
        return


def _read(path: Path, needed: frozenset[str] | set[str] = frozenset({"settings", "code", "version"})) -> Result | None:
    try:
        found = read_json(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and needed <= set(found) else None
