"""What a report is made of, read from folders: sweeps, runs, and those that cannot be read, which stop nothing."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxlm.analysis.store import read_all, read_faults
from jaxlm.errors import JaxlmError, suggest
from jaxlm.experiment import FREE_FIELDS
from jaxlm.report.material import Group, Material, Run
from jaxlm.report.naming import arm_names
from jaxlm.run.directory import METRICS, load_config, read_starts
from jaxlm.run.failure import FAILURE
from jaxlm.run.standing import read_object, standing
from jaxlm.run.tail import parse_row
from jaxlm.sweep.read import RECORD as SWEEP_RECORD
from jaxlm.sweep.read import Record, read_record
from jaxlm.sweep.trials import RUNS as TRIALS

UNREADABLE = ("broken", "foreign", "empty")


def gather(paths: Sequence[Path], control: str = "", arms_by: Sequence[str] = ()) -> Material:
    """Read sweeps and runs; a folder that is neither is searched one level down.

    Of runs given by themselves, those whose configurations differ in nothing but seed and place form an arm, or those that
    agree in the fields `arms_by`. Arms are compared with `control` (empty: the sweep's, or the first that was validated).
    Raises JaxlmError where a path or the control is not there, or nothing can be read.
    """
    groups: list[Group] = []
    runs: list[Run] = []
    unread: list[tuple[str, str, str]] = []
    loose: list[Path] = []
    for path in paths:
        if not path.is_dir():
            near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise JaxlmError(f"{path} is no folder: give the folder of a run or of a sweep.{suggest(path.name, near)}")
        for folder in _found(path):
            if not (folder / SWEEP_RECORD).exists():
                loose.append(folder)
                continue
            try:
                record = read_record(folder)
            except JaxlmError as fault:
                unread.append((str(folder), "broken", str(fault)))
                continue
            _add_sweep(record, groups, runs, unread)
    if loose:
        _add_loose(loose, arms_by, groups, runs, unread)
    if control:
        groups = _with_control(groups, control)
    if not runs and not any(group.missing for group in groups):
        found = "; ".join(f"{folder}: {kind}, {why}" for folder, kind, why in unread[:5]) or "no folders in them"
        raise JaxlmError(f"no run can be read in {', '.join(map(str, paths))} ({found}): give the folder of a run or a sweep")
    return Material(
        groups=tuple(groups), runs=tuple(replace(run, place=place) for place, run in enumerate(runs)), unread=tuple(unread)
    )


def _with_control(groups: Sequence[Group], control: str) -> list[Group]:
    arms = list(dict.fromkeys(arm for group in groups for arm in group.arms))
    if control not in arms:
        raise JaxlmError(f"no arm is called {control!r}.{suggest(control, arms)} The arms: {', '.join(arms)}")
    return [replace(group, control=control) if control in group.arms else group for group in groups]


def _found(path: Path) -> list[Path]:
    """Return the folder itself where it is a sweep or a run, else what is right below it, or itself where that is neither."""
    if (path / SWEEP_RECORD).exists() or standing(path).kind not in ("foreign", "empty"):
        return [path]
    below = [child for child in sorted(path.iterdir()) if child.is_dir() and not child.name.startswith(".")]
    sweeps = [child for child in below if (child / SWEEP_RECORD).exists()]
    below = [child for child in below if not (sweeps and child.name == TRIALS)]  # where the runs of sweeps live
    return below if sweeps or any(standing(child).kind != "foreign" for child in below) else [path]


def _add_sweep(record: Record, groups: list[Group], runs: list[Run], unread: list[tuple[str, str, str]]) -> None:
    missing = []
    for trial in record.trials:
        folder = trial.run
        if not os.path.exists(folder):
            missing.append((trial.arm, trial.seed, str(folder)))
            continue
        run = _read(folder, len(groups), trial.arm, trial.seed, dict(trial.changes))
        if run.standing.kind in UNREADABLE:
            if run.standing.kind != "empty":
                unread.append((str(folder), run.standing.kind, run.standing.why))
            missing.append((trial.arm, trial.seed, str(folder)))
        else:
            runs.append(run)
    changes = {arm: entries[0].changes for arm, entries in record.arms.items()}
    others = [trial.label for trial in record.trials if trial.other_code]
    notes = (f"Of another version of the code than the sweep's {record.code[:6]}: {'; '.join(others)}.",) if others else ()
    groups.append(
        Group(
            record.name, record.about, record.file, record.control, record.code, tuple(changes), tuple(missing), notes, changes
        )
    )


def _add_loose(
    folders: Sequence[Path], arms_by: Sequence[str], groups: list[Group], runs: list[Run], unread: list[tuple[str, str, str]]
) -> None:
    read = [_read(folder, len(groups), "", 0, {}) for folder in dict.fromkeys(folders)]
    unread += [(run.path, run.standing.kind, run.standing.why) for run in read if run.standing.kind in UNREADABLE]
    read = [run for run in read if run.standing.kind not in UNREADABLE]
    known = dict.fromkeys(name for run in read for name in run.standing.config)
    for name in arms_by:
        if read and name not in known:
            raise JaxlmError(f"no configuration has the field {name!r} of --arms-by.{suggest(name, known)}")
    arms: dict[str, list[Run]] = {}
    for run in read:
        arms.setdefault(_arm_key(run, arms_by), []).append(run)
    own = [members[0].standing.name or members[0].folder.name for members in arms.values()]
    names = arm_names(own, [_settings(members[0]) for members in arms.values()], arms_by)
    for name, members in zip(names, arms.values(), strict=True):
        runs += [replace(run, arm=name, seed=run.standing.seed or 0) for run in members]
    if read:
        measured = {run.arm for run in runs if run.group == len(groups) and run.finished and run.standing.last}
        control = next((name for name in names if name in measured), names[0])
        groups.append(Group("", "", "", control, "", tuple(names), ()))


def _settings(run: Run) -> dict[str, Any]:
    """Return the fields of a configuration that decide a result, but for the seed."""
    return {k: v for k, v in run.standing.config.items() if k != "seed" and not k.startswith(FREE_FIELDS)}


def _arm_key(run: Run, fields: Sequence[str]) -> str:
    if not run.standing.config:
        return run.path
    settings = {name: run.standing.config.get(name) for name in fields} if fields else _settings(run)
    return json.dumps(settings, sort_keys=True, default=str)


def _read(folder: Path, group: int, arm: str, seed: int, changes: dict[str, Any]) -> Run:
    stands = standing(folder)
    experiment = None
    if stands.kind not in UNREADABLE:
        try:
            experiment = load_config(folder)
        except JaxlmError:
            experiment = None
    return Run(
        folder=folder, group=group, arm=arm, seed=seed, changes=changes, standing=stands, rows=_rows(folder / METRICS),
        starts=[start for start in read_starts(folder) if isinstance(start, dict)], failure=_object(folder / FAILURE),
        analysis=read_all(folder), faults=read_faults(folder), experiment=experiment,
    )  # fmt: skip


def _rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a record that can be read: its standing says where it is damaged."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline was not finished
    except OSError:
        return []
    return [row for line in lines if (row := parse_row(line)) is not None]


def _object(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except (OSError, ValueError):
        return {}
