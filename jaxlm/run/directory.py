"""A run's directory: what was asked, what came of it, and who is writing there now."""

from __future__ import annotations  # `Experiment` is imported where one is made

import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jaxlm
from jaxlm import locks
from jaxlm.config import digest, from_dict, read_json, to_dict
from jaxlm.data.storage import write_atomically
from jaxlm.errors import CheckpointError, ConfigError, suggest

if TYPE_CHECKING:  # it brings JAX, and listing thousands of runs should not wait for that
    from jaxlm.experiment import Experiment

CONFIG, RECORD, METRICS, CHECKPOINTS, TOKENIZER = "config.json", "run.json", "metrics.jsonl", "checkpoints", "tokenizer.model"
SUMMARY = "summary.md"
"""What a run leaves last of all."""
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "array_record", "sentencepiece", "numpy")


@contextmanager
def opened_for_writing(folder: Path) -> Iterator[None]:
    """Create the run directory where it is missing and hold its lock; ConfigError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for _ in range(10):
            if lock := locks.take(folder / "lock"):
                break
            time.sleep(0.05)  # `in_use` holds it for a moment, too
        else:
            raise ConfigError(f"another process is training in {folder}: wait for it, or choose another --run-dir")
    except OSError as fault:
        raise ConfigError(
            f"the run directory {folder} cannot be written: {fault.strerror}. Choose another with --run-dir PATH"
        ) from fault
    with lock:
        yield


def in_use(folder: Path) -> bool:
    """Return whether a process is training in a run directory now."""
    try:
        return locks.is_taken(folder / "lock")
    except OSError:
        return False


# Fields that decide which arrays a run's state consists of: no permission lets it go on with others.
STATE_FIELDS = ("lora.rank", "lora.targets", "router.freeze", "optimizer.kind")


def settle_config(folder: Path, experiment: Experiment, *, allow_change: bool) -> list[tuple[str, Any, Any]]:
    """Write the resolved configuration of a new run, or of one that is continued, and return the changes `check_continuation`
    allowed."""
    changes = check_continuation(folder, experiment, allow_change=allow_change)
    write_atomically(folder / CONFIG, json.dumps(to_dict(experiment), indent=2) + "\n")
    return changes


def check_continuation(folder: Path, experiment: Experiment, *, allow_change: bool) -> list[tuple[str, Any, Any]]:
    """Compare an experiment with the run in `folder`, where one has begun; nothing is written.

    Returns the differences that were allowed. Raises ConfigError with all of them where they would make it another
    experiment and `allow_change` is not set, and CheckpointError for an imported model. A start that was refused before its
    first step binds nobody.
    """
    path, changes = folder / CONFIG, []
    metrics, saves = folder / METRICS, folder / CHECKPOINTS
    from jaxlm.experiment import changed_fields

    begun = (metrics.exists() and metrics.stat().st_size > 0) or (saves.is_dir() and any(saves.iterdir()))
    if begun and imported_from(folder):
        raise CheckpointError(
            f"{folder} was imported: it holds a model without the state of an optimizer, which no training continues. Begin a "
            f"run of its own from it: --run-dir runs/NAME --init-from {folder}"
        )
    if begun and path.exists():
        changes = changed_fields(load_config(folder), experiment)
        if fixed := [name for name, *_ in changes if name.startswith(STATE_FIELDS)]:
            raise ConfigError(
                f"{folder} holds a state of other parts: {', '.join(fixed)} cannot change. Begin one in another --run-dir"
            )
        if changes and not allow_change:
            lines = "\n".join(f"  {name}: {before!r} in the run, {now!r} now" for name, before, now in changes)
            raise ConfigError(
                f"{folder} holds a run of another configuration:\n{lines}\n"
                "Undo the change, choose another --run-dir, or continue it all the same with --allow-config-change"
            )
    return changes


def load_config(folder: Path) -> Experiment:
    """Return the experiment of a run; CheckpointError where the directory is none, or not readable as one."""
    from jaxlm.experiment import Experiment

    path = folder / CONFIG
    try:
        values = read_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as fault:
        near = [p.parent.name for p in folder.parent.glob(f"*/{CONFIG}")] if folder.parent.is_dir() else []
        raise CheckpointError(f"{folder} is not a run directory: it has no {CONFIG}.{suggest(folder.name, near)}") from fault
    except OSError as fault:
        raise CheckpointError(f"{path} cannot be read: {fault.strerror}") from fault
    except ValueError as fault:
        raise CheckpointError(f"{path} {fault}. Take it from a copy of the run: nothing else says what was asked") from fault
    if isinstance(values, dict) and "model" not in values and {"model_type", "architectures"} & set(values):
        raise CheckpointError(
            f"{folder} is a Hugging Face model, not a run: `jaxlm import {folder} --to runs/{folder.absolute().name}` makes one"
        )
    try:
        return _with_own_tokenizer(from_dict(Experiment, values), folder)
    except ConfigError as fault:
        raise CheckpointError(
            f"{path} is not a configuration of this version of jaxlm ({jaxlm.__version__}): {fault}"
        ) from fault


def _with_own_tokenizer(experiment: Experiment, folder: Path) -> Experiment:
    """Return the experiment with the run's copy of a tokenizer that is not where it was: the run may have been moved."""
    tokenizer, own = experiment.data.tokenizer, folder / TOKENIZER
    if not tokenizer.path or os.path.exists(tokenizer.path) or not own.exists():
        return experiment
    data = dataclasses.replace(experiment.data, tokenizer=dataclasses.replace(tokenizer, path=str(own.absolute())))
    return dataclasses.replace(experiment, data=data)


def read_starts(folder: Path) -> list[dict[str, Any]]:
    """Return what run.json says of every start of a run, oldest first; nothing where it is missing or damaged."""
    try:
        starts = read_json((folder / RECORD).read_bytes())["starts"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else []


def imported_from(folder: Path) -> dict[str, Any]:
    """Return what run.json says of the origin of an imported model; nothing for a run that was trained."""
    starts = read_starts(folder)
    origin = starts[0].get("imported") if starts else None
    return origin if isinstance(origin, dict) else {}


def record_start(folder: Path, experiment: Experiment, facts: dict[str, Any]) -> int:
    """Add to run.json how the run was started (or continued): command as typed, code version, packages, devices, mesh.

    Returns the number of the start, from 0.
    """
    starts = read_starts(folder)
    commit, difference = _git()
    if difference:
        write_atomically(folder / f"uncommitted-{len(starts)}.diff", difference)
    starts.append(
        {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": sys.argv,
            "config_digest": digest(experiment),
            "git_commit": commit,
            "git_dirty": bool(difference),
            "python": platform.python_version(),
            "versions": versions(),
            **facts,
        }
    )
    write_atomically(folder / RECORD, json.dumps({"starts": starts}, indent=2) + "\n")
    return len(starts) - 1


def versions() -> dict[str, str]:
    """Return the versions of jaxlm and of the packages that decide what a step computes."""
    return {"jaxlm": jaxlm.__version__} | {name: metadata.version(name) for name in PACKAGES}


def _git() -> tuple[str | None, str]:
    """Return the commit of the code's own checkout and its uncommitted changes; (None, "") where there is no checkout."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=Path(jaxlm.__file__).parent, capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
            return None
        return done.stdout

    commit = git("rev-parse", "HEAD")
    return (commit.strip(), git("diff", "HEAD") or "") if commit else (None, "")
