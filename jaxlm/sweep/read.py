"""A sweep's file, and the record that a sweep leaves behind."""

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jaxlm.config import read_json
from jaxlm.data.storage import write_atomically
from jaxlm.errors import ConfigError, suggest
from jaxlm.experiment_file import call_function
from jaxlm.run.standing import standing
from jaxlm.sweep.combine import Trial, check_arms
from jaxlm.sweep.trials import RUNS, code_digest, digest, versions_of

RECORD = "sweep.json"


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep's file asks for."""

    name: str
    """The file's, and the function's where it is not sweep()."""
    about: str
    """The file's docstring."""
    file: Path
    trials: tuple[Trial, ...]
    control: str
    """The arm that the others are compared with."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A trial as the record has it."""

    arm: str
    seed: int
    changes: dict[str, Any]
    control: bool
    run: Path
    """Its run's directory."""
    digest: str
    """The directory's name where this version of the code has made it."""

    @property
    def label(self) -> str:
        """Names the trial in messages."""
        return f"{self.arm}, seed {self.seed}"

    @property
    def other_code(self) -> bool:
        """Whether the run is of another version of the code."""
        return self.run.name != self.digest


@dataclasses.dataclass(frozen=True)
class Record:
    """A sweep with the runs of its trials."""

    folder: Path
    """The sweep's own; it holds sweep.json and the table."""
    name: str
    about: str
    file: str
    control: str
    trials: tuple[Entry, ...]
    code: str
    """Digest of the code that decides results."""
    time: str
    """When it was first written so."""

    @property
    def arms(self) -> dict[str, list[Entry]]:
        """The trials of each arm, in order."""
        arms: dict[str, list[Entry]] = {}
        for entry in self.trials:
            arms.setdefault(entry.arm, []).append(entry)
        return arms


def load_sweep(path: Path, name: str = "") -> Sweep:
    """Run a sweep's file and return what its sweep() returns or yields; `FILE.py:NAME` calls another function of the file.

    `name` is what the sweep is called in the place of its file's. Every fault is a ConfigError with its place.
    """
    if path.suffix == ".json" or path.is_dir():
        kind = "the configuration of one run, which `jaxlm train` takes" if path.suffix == ".json" else "a folder"
        raise ConfigError(f"{path} is {kind}: a sweep is a .py file that defines sweep(). {_HOW}")
    if name and (name != Path(name).name or name.startswith(".")):
        raise ConfigError(f"--name {name} names no folder: give a name without slashes that does not begin with a dot")

    def take(found: Any) -> tuple[Trial, ...]:
        if not isinstance(found, Iterable) or isinstance(found, (str, dict)):
            raise ConfigError(f"sweep() returned a {type(found).__name__}, not trials: {_HOW}")
        trials = tuple(found)
        for trial in trials:
            if not isinstance(trial, Trial):
                raise ConfigError(f"sweep() gave a {type(trial).__name__} where a trial belongs: {_HOW}")
        check_arms(trials)
        controls = list(dict.fromkeys(trial.arm for trial in trials if trial.control))
        if len(controls) != 1:
            said = "no trial is" if not controls else f"{', '.join(map(repr, controls))} are"
            raise ConfigError(f"{said} marked as the control: exactly one arm is what others are compared with. {_HOW}")
        return trials

    trials, file, function = call_function(path, "sweep", "trials", take)
    control = next(trial.arm for trial in trials if trial.control)
    own = name or (file.stem if function == "sweep" else f"{file.stem}:{function}")
    about = _docstring(file)
    return Sweep(own, about, file, trials, control)


_HOW = "return trials(experiment(), grid({'optimizer.learning_rate': (1e-3, 3e-3)}), seeds=3) of jaxlm.sweep.combine"


def _docstring(file: Path) -> str:
    import ast

    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").strip()


def folder_of(runs: Path, name: str) -> Path:
    """Return the folder of the sweep called `name` below `runs`; a colon, which some file systems refuse, is a hyphen there."""
    return runs / name.replace(":", "-")


def settle(sweep: Sweep, runs: Path, *, any_code: bool = False) -> Record:
    """Return the sweep with the runs that its trials have or will have below `runs`; nothing is written.

    With `any_code` a trial that another version of the code has finished, and this one has not, takes that run. Raises
    ConfigError or DataError where a trial's data cannot be found.
    """
    entries, code, keys = [], code_digest(), {}
    if folder_of(runs, sweep.name).name == RUNS:
        raise ConfigError(f"a sweep cannot be called {RUNS!r}, which is where runs live: rename {sweep.file}, or give a --name")
    for trial in sweep.trials:
        name = digest(trial.experiment, code, keys)
        run = runs / RUNS / name
        if any_code and standing(run).kind != "finished":
            run = next(finished_otherwise(runs, name), run)
        entries.append(Entry(trial.arm, trial.experiment.seed, trial.changes, trial.control, run, name))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    folder, file = folder_of(runs, sweep.name), str(sweep.file.absolute())
    return Record(folder, sweep.name, sweep.about, file, sweep.control, tuple(entries), code, now)


def finished_otherwise(runs: Path, name: str) -> Iterator[Path]:
    """Yield the finished runs of what `name` (a digest) asks that other versions of the code have made."""
    yield from (other for other in versions_of(runs, name) if standing(other).kind == "finished")


def write_record(record: Record) -> Record:
    """Write the record where it has changed, whole or not at all, and return it as it now stands in its folder.

    Raises ConfigError where another file's sweep is recorded there.
    """
    try:
        before = read_record(record.folder)
    except ConfigError:
        before = None
    if before is not None and os.path.exists(before.file) and not os.path.samefile(before.file, record.file):
        raise ConfigError(
            f"{record.folder} records the sweep of {before.file}, and this is {record.file}: give one of them another name "
            "with --name, or the two another --runs"
        )
    if before is not None and dataclasses.replace(before, time=record.time) == record:
        return before
    trials = [
        {
            "arm": entry.arm, "seed": entry.seed, "changes": entry.changes, "control": entry.control,
            "run": f"../{RUNS}/{entry.run.name}", "digest": entry.digest,
        }
        for entry in record.trials
    ]  # fmt: skip
    values = {name: getattr(record, name) for name in ("name", "about", "file", "control", "code", "time")} | {"trials": trials}
    try:
        record.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(record.folder / RECORD, json.dumps(values, indent=2) + "\n")
    except OSError as fault:
        raise ConfigError(f"{record.folder} cannot be written: {fault.strerror}. Choose another place with --runs") from fault
    return record


def read_record(folder: Path) -> Record:
    """Return the record of the sweep in a folder; ConfigError where there is none, or none that can be read."""
    path = folder / RECORD
    try:
        values = read_json(path.read_bytes())
        texts = {name: str(values[name]) for name in ("name", "about", "file", "control", "code", "time")}
        entries = [
            Entry(
                str(v["arm"]),
                int(v["seed"]),
                dict(v["changes"]),
                bool(v["control"]),
                _beside(folder, v["run"]),
                str(v["digest"]),
            )
            for v in values["trials"]
        ]
        if texts["control"] not in (entry.arm for entry in entries):
            raise ValueError(f"its control {texts['control']!r} is no arm of it")
    except (FileNotFoundError, NotADirectoryError) as fault:
        near = suggest(folder.name, [p.parent.name for p in folder.parent.glob(f"*/{RECORD}")])
        raise ConfigError(
            f"{folder} is not a sweep's folder: it has no {RECORD}.{near} `jaxlm sweep FILE.py` makes one"
        ) from fault
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as fault:
        raise ConfigError(
            f"{path} cannot be read as a sweep's record ({type(fault).__name__}: {fault}): run the sweep again"
        ) from fault
    return Record(
        folder, texts["name"], texts["about"], texts["file"], texts["control"], tuple(entries), texts["code"], texts["time"]
    )


def _beside(folder: Path, run: str) -> Path:
    """Return the run's path without a step down and up again: the record's own folder may be named in many ways."""
    return Path(os.path.normpath(folder / run))
