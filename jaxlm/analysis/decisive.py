"""What decides a result of a probe, and whether it would come out the same today."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlm.analysis.probe_files import Probe
from jaxlm.analysis.series import ROWS, Series, related
from jaxlm.config import digest, read_json, to_dict
from jaxlm.errors import CheckpointError
from jaxlm.experiment import FREE_FIELDS
from jaxlm.function_file import identity as same
from jaxlm.run.directory import CHECKPOINTS, CONFIG, read_starts
from jaxlm.train import checkpoint
from jaxlm.train.saved import saved_steps

Result = dict[str, Any]
# By what results of one probe belong together: those of other settings, rows, code or trainings make no curve with them.
# Of the latter three a checkpoint's result says nothing where the probe did not ask for them there.
ALIKE = {
    "identity": "a former training", "settings": "other settings", "files": "other files that its settings name",
    "asked": "other rows or sources",
    "code": "another version of the probe", "version": "another version of the code",
    "settled": "another platform, version of JAX or tokenizer",
}  # fmt: skip
ALIKE_WHERE_ASKED = {"rows": "other rows", "training": "other training text", "experiment": "another configuration of the run"}


def variant(series: Series, probe: Probe) -> str:
    """Return what sets the names of results apart from those of the usual rows and settings, 8 digits; "" for these."""
    settings = to_dict(probe.settings)
    if settings == to_dict(probe.default) and series.asked == {"rows": ROWS, "sources": []}:
        return ""
    return hashlib.sha256(json.dumps([settings, series.asked], sort_keys=True).encode()).hexdigest()[:8]


def decisive(series: Series, probe: Probe, step: int) -> Result:
    """Return what decides a result before the probe has read anything; CheckpointError where the step says nothing known."""
    settings = to_dict(probe.settings) if probe.settings is not None else {}
    files = {name: _content(Path(value)) for name, value in _texts(settings, "") if value}
    return {
        "settings": settings, "files": {name: content for name, content in files.items() if content}, "code": probe.code,
        "version": probe.version, "asked": series.asked, "identity": identity(series.folder), "settled": series.settled(step),
    }  # fmt: skip


def identity(run: Path) -> str:
    """Return a digest of which training a run's directory holds, from its first start and what it was asked.

    More steps, or fields that no result depends on, do not make it another.
    """
    start = next(iter(read_starts(run)), {})
    first = [start.get("time"), start.get("config_digest")] if isinstance(start, dict) else []
    try:
        asked = dict(_leaves(read_json((run / CONFIG).read_bytes()), ""))
    except (OSError, ValueError):
        asked = {}
    asked = {name: same(value) for name, value in asked.items() if not name.startswith(FREE_FIELDS) and name != "steps"}
    return hashlib.sha256(json.dumps([first, asked], sort_keys=True).encode()).hexdigest()[:16]


def asked_for(series: Series) -> Result:
    """Return what else decides a result, of what the probe asked for."""
    reads = series.reads
    return {
        "rows": series.rows.digest if reads.rows else None,
        "training": series.training_digest() if reads.training else None,
        "experiment": digest(series.experiment) if reads.experiment else None,
    }


def holds(series: Series, probe: Probe, step: int, result: Result) -> bool:
    """Return whether a result at a step would come out the same today.

    A checkpoint that it read beside its own, and that was retired since, is no reason against it: it cannot be read again.
    """
    if any(result.get(name) != value for name, value in decisive(series, probe, step).items()):
        return False
    now = {
        "rows": lambda: series.rows.digest, "training": series.training_digest, "experiment": lambda: digest(series.experiment)
    }  # fmt: skip
    try:
        return _same_checkpoints(series, result) and all(result[name] in (None, now[name]()) for name in now if result[name])
    except (KeyError, TypeError, ValueError, AttributeError):  # written by something else
        return False


def unlike(one: Result, other: Result) -> str:
    """Return in words why two results of a probe do not belong together; an empty text where they do."""
    for name, said in ALIKE.items():
        if one.get(name) != other.get(name):
            return said
    for name, said in ALIKE_WHERE_ASKED.items():
        if None not in (one.get(name), other.get(name)) and one[name] != other[name]:
            return said
    return ""


def _same_checkpoints(series: Series, result: Result) -> bool:
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


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield dotted names and what stands there; an item of a list goes by its number."""
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, (list, tuple)) else None
    if inner is None:
        yield name, value
        return
    for key, each in inner:
        yield from _leaves(each, f"{name}.{key}" if name else str(key))


def _texts(settings: Any, name: str) -> Iterator[tuple[str, str]]:
    yield from ((where, value) for where, value in _leaves(settings, name) if isinstance(value, str))


def _content(path: Path) -> str:
    """Return a digest of the file, folder or run (its newest checkpoint) that a setting names; "" for other words."""
    try:
        if path.is_file():
            return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        steps = saved_steps(path / CHECKPOINTS)
        if steps:
            return checkpoint.fingerprint(path / CHECKPOINTS, steps[-1])
        return _listing(path) if path.is_dir() else ""
    except (OSError, CheckpointError, ValueError):  # such a word is no name of a file, or the probe will say what is wrong
        return ""


def _listing(folder: Path) -> str:
    """Return a digest of the names, sizes and times of the files directly in a folder."""
    files = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir() if path.is_file())
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]
