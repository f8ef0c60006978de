"""What a report is made of, read from folders: sweeps, runs, and those that cannot be read, which stop nothing."""

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jaxlm.analysis.store import read_all, read_faults
from jaxlm.errors import JaxlmError, suggest
from jaxlm.experiment import FREE_FIELDS, Experiment
from jaxlm.model.flops import train_flops_per_token
from jaxlm.run.directory import METRICS, load_config, read_starts
from jaxlm.run.failure import FAILURE
from jaxlm.run.standing import Standing, standing
from jaxlm.sweep.read import RECORD as SWEEP_RECORD
from jaxlm.sweep.read import Record, read_record
from jaxlm.sweep.trials import RUNS as TRIALS

UNREADABLE = ("broken", "foreign", "empty")


@dataclass(frozen=True)
class Run:
    """One run: where it belongs in a comparison, how it stands, and everything it wrote down."""

    folder: Path
    group: int
    arm: str
    seed: int
    changes: dict[str, Any]
    standing: Standing
    rows: list[dict[str, Any]] = field(repr=False)
    starts: list[dict[str, Any]] = field(repr=False)
    failure: dict[str, Any] = field(repr=False)
    analysis: dict[str, dict[int, dict[str, Any]]] = field(repr=False)
    faults: dict[str, dict[int, str]] = field(repr=False)
    """Why probes failed, by probe and step."""
    experiment: Experiment | None = field(repr=False)

    @property
    def path(self) -> str:
        """The folder as it was found, for people."""
        return str(self.folder)

    @functools.cached_property
    def flops_per_step(self) -> float | None:
        """FLOPs of one training step; None where the configuration cannot be read."""
        experiment = self.experiment
        if experiment is None:
            return None
        length = experiment.data.sequence_length
        return train_flops_per_token(experiment.model, length, experiment.trained_share) * experiment.rows * length


@dataclass(frozen=True)
class Group:
    """Arms that are compared with one control: a sweep, or the runs that were given by themselves."""

    name: str
    about: str
    file: str
    control: str
    code: str
    arms: tuple[str, ...]
    missing: tuple[tuple[str, int, str], ...]
    """(arm, seed, folder) of trials that have no run yet."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Material:
    """Everything a report says, before it is drawn."""

    groups: tuple[Group, ...]
    runs: tuple[Run, ...]
    unread: tuple[tuple[str, str, str], ...]
    """(folder, kind, why) of what was found and is no readable run."""

    def of(self, group: int, arm: str | None = None) -> list[Run]:
        """Return the runs of a group, or of one arm of it, seed by seed."""
        return [run for run in self.runs if run.group == group and arm in (None, run.arm)]


def gather(paths: Sequence[Path], control: str = "") -> Material:
    """Read sweeps and runs; a folder that is neither is searched one level down.

    Of runs given by themselves, those whose configurations differ in nothing but seed and place form an arm; they are
    compared with the arm `control` (empty: the first). Raises JaxlmError where a path is not there, or nothing can be read.
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
        _add_loose(loose, groups, runs, unread)
    if control:
        groups = [_with_control(group, control, len(groups)) for group in groups]
    if not runs and not any(group.missing for group in groups):
        found = "; ".join(f"{folder}: {kind}, {why}" for folder, kind, why in unread[:5]) or "no folders in them"
        raise JaxlmError(f"no run can be read in {', '.join(map(str, paths))} ({found}): give the folder of a run or a sweep")
    return Material(groups=tuple(groups), runs=tuple(runs), unread=tuple(unread))


def _with_control(group: Group, control: str, groups: int) -> Group:
    if control in group.arms:
        return replace(group, control=control)
    if groups > 1:
        return group
    raise JaxlmError(f"no arm is called {control!r}.{suggest(control, group.arms)} The arms: {', '.join(group.arms)}")


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
        if not folder.exists():
            missing.append((trial.arm, trial.seed, str(folder)))
            continue
        run = _read(folder, len(groups), trial.arm, trial.seed, dict(trial.changes))
        if run.standing.kind in UNREADABLE:
            if run.standing.kind != "empty":
                unread.append((str(folder), run.standing.kind, run.standing.why))
            missing.append((trial.arm, trial.seed, str(folder)))
        else:
            runs.append(run)
    arms = tuple(dict.fromkeys(trial.arm for trial in record.trials))
    others = [trial.label for trial in record.trials if trial.other_code]
    notes = (f"Of another version of the code than the sweep's {record.code[:6]}: {'; '.join(others)}.",) if others else ()
    groups.append(Group(record.name, record.about, record.file, record.control, record.code, arms, tuple(missing), notes))


def _add_loose(folders: Sequence[Path], groups: list[Group], runs: list[Run], unread: list[tuple[str, str, str]]) -> None:
    read = [_read(folder, len(groups), "", 0, {}) for folder in dict.fromkeys(folders)]
    unread += [(run.path, run.standing.kind, run.standing.why) for run in read if run.standing.kind in UNREADABLE]
    read = [run for run in read if run.standing.kind not in UNREADABLE]
    arms: dict[str, list[Run]] = {}
    for run in read:
        arms.setdefault(_arm_key(run), []).append(run)
    names = _names([members[0] for members in arms.values()])
    for name, members in zip(names, arms.values(), strict=True):
        runs += [replace(run, arm=name, seed=_seed(run)) for run in members]
    if read:
        groups.append(Group("", "", "", names[0], "", tuple(names), ()))


def _seed(run: Run) -> int:
    return run.standing.seed if run.standing.seed is not None else 0


def _settings(run: Run) -> dict[str, Any]:
    """Return the fields of a configuration that decide a result, but for the seed."""
    return {k: v for k, v in run.standing.config.items() if k != "seed" and not k.startswith(FREE_FIELDS)}


def _arm_key(run: Run) -> str:
    return json.dumps(_settings(run), sort_keys=True, default=str) if run.standing.config else run.path


def _names(runs: Sequence[Run]) -> list[str]:
    """Return a name for each arm: of its run, with what sets it apart from others of that name."""
    first = [run.standing.name or run.folder.name for run in runs]
    names = []
    for run, name in zip(runs, first, strict=True):
        same = [other for other, theirs in zip(runs, first, strict=True) if theirs == name]
        if len(same) > 1:
            settings = [_settings(other) for other in same]
            apart = [k for k in settings[0] if any(s.get(k) != settings[0][k] for s in settings)]
            own = _settings(run)
            said = ", ".join(f"{k.rpartition('.')[2]} {own.get(k)}" for k in apart[:3])
            name += f" ({said or run.folder.name})"
        names.append(name if name not in names else f"{name} [{run.folder.name}]")
    return names


def _read(folder: Path, group: int, arm: str, seed: int, changes: dict[str, Any]) -> Run:
    stands = standing(folder)
    experiment = None
    if stands.kind not in UNREADABLE:
        try:
            experiment = load_config(folder)
        except JaxlmError:
            experiment = None
    return Run(
        folder=folder, group=group, arm=arm, seed=seed, changes=changes, standing=stands, rows=list(_rows(folder / METRICS)),
        starts=[start for start in read_starts(folder) if isinstance(start, dict)], failure=_object(folder / FAILURE),
        analysis=read_all(folder), faults=read_faults(folder), experiment=experiment,
    )  # fmt: skip


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a record that can be read: its standing says where it is damaged."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int) and isinstance(row.get("split"), str):
            yield row


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
