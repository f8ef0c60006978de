"""Results of probes in a run's directory: RUN/analysis/PROBE/STEP.json, and whether one still holds.

Why a probe failed stands beside, in STEP.fault.json, so that it never takes the place of what was found before.
"""

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jaxlm
from jaxlm.analysis.measure import as_measure
from jaxlm.analysis.probe_files import FOLDER, Probe
from jaxlm.analysis.series import Reads, Series, related
from jaxlm.config import to_dict
from jaxlm.data.storage import write_atomically
from jaxlm.errors import CheckpointError, ConfigError
from jaxlm.run.directory import CHECKPOINTS
from jaxlm.train import checkpoint

ANALYSIS, FAULT = "analysis", ".fault.json"
# Rooms whose code decides what a probe finds, beside its own file.
DECISIVE = ("analysis", "data", "decode", "eval", "model", "objective", "ops")

Result = dict[str, Any]


def path_of(run: Path, probe: str, step: int) -> Path:
    """Return where a probe's result at a step is kept."""
    return run / ANALYSIS / probe / f"{step}.json"


@functools.cache
def code_version() -> str:
    """Return a digest of the code of ours that decides what any probe finds."""
    root, found = Path(jaxlm.__file__).parent, hashlib.sha256()
    for path in sorted(path for room in DECISIVE for path in (root / room).rglob("*.py") if path.parent != FOLDER):
        found.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return found.hexdigest()[:16]


def write_result(
    series: Series, probe: Probe, step: int, reads: Reads, seconds: float, found: Any, not_suited: str = ""
) -> Result:
    """Keep what a probe found at a step, with all that decides it; ConfigError where that is no dictionary of measures."""
    if not isinstance(found, Mapping):
        raise ConfigError(f"probe() of {probe.name} returned a {type(found).__name__}: it must return a dictionary of measures")
    measures = {}
    for name, value in found.items():
        try:
            measures[str(name)] = as_measure(value).to_dict()
        except ConfigError as fault:
            raise ConfigError(f"probe {probe.name}, {name}: {fault}") from fault
    saves = series.folder / CHECKPOINTS
    result = _decisive(probe) | {
        "probe": probe.name, "title": probe.title, "step": step, "seconds": round(seconds, 3),
        "reads": {str(other): checkpoint.fingerprint(saves, other) for other in sorted({step, *reads.checkpoints})},
        "relations": reads.relations, "steps": list(reads.steps), "rows": series.rows.digest if reads.rows else None,
        "training": series.training_digest() if reads.training else None, "measures": measures,
    }  # fmt: skip
    if not_suited:
        result["not_suited"] = not_suited
    path = path_of(series.folder, probe.name, step)
    _write(path, result)
    path.with_suffix(FAULT).unlink(missing_ok=True)
    return result


def write_fault(series: Series, probe: Probe, step: int, fault: str) -> None:
    """Keep why a probe failed at a step; it is tried again the next time."""
    path = path_of(series.folder, probe.name, step).with_suffix(FAULT)
    _write(path, _decisive(probe) | {"probe": probe.name, "title": probe.title, "step": step, "fault": fault})


def _decisive(probe: Probe) -> Result:
    settings = to_dict(probe.settings) if probe.settings is not None else {}
    files = {name: _content(Path(value)) for name, value in settings.items() if isinstance(value, str) and value}
    return {
        "settings": settings, "files": {name: content for name, content in files.items() if content}, "code": probe.code,
        "version": code_version(),
    }  # fmt: skip


def _content(path: Path) -> str:
    """Return a digest of the file that a setting names, or of the newest checkpoint of a run; an empty text for other words."""
    try:
        if path.is_file():
            return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        steps = checkpoint.saved_steps(path / CHECKPOINTS)
        return checkpoint.fingerprint(path / CHECKPOINTS, steps[-1]) if steps else ""
    except (OSError, CheckpointError, ValueError):  # such a word is no name of a file, or the probe will say what is wrong
        return ""


def _write(path: Path, result: Result) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(result, allow_nan=False).encode())


def valid_result(series: Series, probe: Probe, step: int) -> Result | None:
    """Return the result of a probe at a step where it would come out the same today, and None where it must be made anew.

    A checkpoint that it read beside its own, and that was retired since, is no reason: it could not be read again.
    """
    result = _read(path_of(series.folder, probe.name, step))
    if result is None or any(result.get(name) != value for name, value in _decisive(probe).items()):
        return None
    try:
        if not _same_checkpoints(series, result, step):
            return None
        if result["rows"] is not None and result["rows"] != series.rows.digest:
            return None
        if result["training"] is not None and result["training"] != series.training_digest():
            return None
    except (KeyError, TypeError, ValueError, AttributeError):  # written by something else
        return None
    return result


def _same_checkpoints(series: Series, result: Result, step: int) -> bool:
    if not set(series.steps) <= set(result["steps"] or series.steps):
        return False
    for name, other in result["relations"].items():
        kind, _, seen_from = name.partition(" ")
        if not _still_related(kind, other, related(kind, int(seen_from), series.steps), series.steps):
            return False
    saves = series.folder / CHECKPOINTS
    there = {other: known for other, known in result["reads"].items() if int(other) in series.steps}
    return all(checkpoint.fingerprint(saves, int(other)) == known for other, known in there.items())


def _still_related(kind: str, then: int | None, now: int | None, steps: Sequence[int]) -> bool:
    """Return whether the checkpoint that was meant is the same, or was retired and none nearer has taken its place."""
    if then == now or then is None or then in steps or kind == "last":
        return then == now
    return now is None or (now < then if kind == "previous" else now > then)


def _read(path: Path) -> Result | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"settings", "code", "version"} <= set(found) else None


def _all(run: Path, ending: str) -> Iterator[tuple[str, int, Result]]:
    """Yield (probe, step, what its file holds), in order."""
    try:
        paths = [path for path in (run / ANALYSIS).glob(f"*/*{ending}") if path.name.removesuffix(ending).isdigit()]
    except OSError:
        return
    for path in sorted(paths, key=lambda path: (path.parent.name, int(path.name.removesuffix(ending)))):
        if (result := _read(path)) is not None:
            yield path.parent.name, int(path.name.removesuffix(ending)), result


def read_all(run: Path) -> dict[str, dict[int, Result]]:
    """Return all results in a run's directory by probe and step, in order, without what cannot be read or found nothing."""
    found: dict[str, dict[int, Result]] = {}
    for probe, step, result in _all(run, ".json"):
        if isinstance(result.get("measures"), dict) and result["measures"]:
            found.setdefault(probe, {})[step] = result
    return found


def read_faults(run: Path) -> dict[str, dict[int, str]]:
    """Return why probes failed the last time that they were run, by probe and step."""
    found: dict[str, dict[int, str]] = {}
    for probe, step, result in _all(run, FAULT):
        found.setdefault(probe, {})[step] = str(result.get("fault"))
    return found
