"""A sweep from its file to its table: what is to be done, here or elsewhere, and how all of it stands."""

import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Grid

from jaxlm.config import to_dict
from jaxlm.data.storage import write_atomically
from jaxlm.errors import ConfigError, JaxlmError, suggest
from jaxlm.experiment import Experiment
from jaxlm.launch.job import FOLDER, RECORD, read_job
from jaxlm.launch.jobs import state_of
from jaxlm.launch.local import Local
from jaxlm.launch.start import launch
from jaxlm.launch.tpu_vm import TpuVm
from jaxlm.run.display import console
from jaxlm.run.loop import stop_signals
from jaxlm.run.standing import sentence, standing
from jaxlm.sweep.display import SweepDisplay
from jaxlm.sweep.queue import Queue, Work
from jaxlm.sweep.read import Entry, Record, Sweep, load_sweep, settle, write_record
from jaxlm.sweep.share import shares
from jaxlm.sweep.table import Table, tabulate_record, write_table

PYTHON = sys.executable  # of the trials
_LIVE = ("RUNNING", "PENDING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED", "ACTIVE", "ACCEPTED", "CREATING",
         "PROVISIONING", "WAITING_FOR_RESOURCES")  # fmt: skip
_DONE = ("COMPLETED", "Completed")


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the command line says of a sweep beside its file."""

    runs: Path = Path("runs/sweeps")
    max_parallel: int = 1
    only: str = ""
    any_code: bool = False
    metrics: tuple[str, ...] = ("loss",)


def open_sweep(file: Path, asked: Asked) -> tuple[Sweep, Record, dict[str, Experiment]]:
    """Return a sweep, the runs of its trials (nothing is written), and the experiment of each by its label."""
    sweep = load_sweep(file)
    record = settle(sweep, asked.runs, any_code=asked.any_code)
    if asked.only and asked.only not in record.arms:
        raise ConfigError(f"--only {asked.only}: no arm.{suggest(asked.only, record.arms)} They are {', '.join(record.arms)}")
    return sweep, record, {e.label: t.experiment for e, t in zip(record.trials, sweep.trials, strict=True)}


def list_trials(file: Path, asked: Asked) -> None:
    """Print every trial with its changed fields and the name of its run."""
    _, record, _ = open_sweep(file, asked)
    grid, first = _grid("arm", "seed", "changes", "run"), {}
    for entry in record.trials:
        changes = ", ".join(f"{name}={json.dumps(value)}" for name, value in entry.changes.items()) or "-"
        same = first.setdefault(entry.run, entry)
        note = "" if same is entry else f"  (the run of {same.label})"
        if not asked.only or entry.arm == asked.only:
            name = f"{entry.arm} (control)" if entry.control else entry.arm
            grid.add_row(*map(_cell, (name, str(entry.seed), changes, entry.run.name + note)))
    _print(grid)


def show_status(file: Path, asked: Asked) -> None:
    """Print how every trial stands, and the comparison of those that are finished."""
    _, record, experiments = open_sweep(file, asked)
    grid = _grid("arm", "seed", "stands", "step", "run")
    for entry in (e for e in record.trials if not asked.only or e.arm == asked.only):
        stand = standing(entry.run)
        words = "waiting" if stand.kind in ("empty", "foreign") else sentence(stand)
        job = _job(entry.run) if stand.kind not in ("finished", "running") else ""
        step = f"{stand.step}/{experiments[entry.label].steps}"
        grid.add_row(*map(_cell, (entry.arm, str(entry.seed), words + job, step, entry.run.name)))
    _print(grid)
    print()
    show_table(tabulate_record(record, asked.metrics))


def run_sweep(file: Path, options: Any, asked: Asked, *, dry_run: bool = False) -> int:
    """Train what is not finished, here or at the target that `options` belongs to, and print the comparison.

    Returns the exit status: 0 where all is finished or submitted, 1 where something failed, 130 where it was told to stop.
    Raises JaxlmError for faults of the file and its arms before anything is written.
    """
    _, record, experiments = open_sweep(file, asked)
    out = console()
    left = [entry for entry in _distinct(record, asked.only) if standing(entry.run).kind != "finished"]
    if dry_run:
        _show_plan(record, left, experiments, options)
        return 0
    here = isinstance(options, Local)
    parts = shares(asked.max_parallel, on_processor=bool(options.devices)) if here else []
    record = write_record(record)
    if not left:
        out.print(f"all of {record.name} is finished", markup=False, soft_wrap=True)
        status = 0
    elif here:
        status = _train(record, left, experiments, options, parts, out, asked)
    else:
        status = _submit(left, experiments, options, out)
    table = tabulate_record(record, asked.metrics)
    write_table(record.folder, table)
    show_table(table)
    return status


def _distinct(record: Record, only: str) -> Iterator[Entry]:
    """Yield trials seed by seed, so that an early end leaves whole comparisons; of those that share a run, the first."""
    seen = set()
    for entry in sorted(record.trials, key=lambda entry: entry.seed):
        if entry.run not in seen and (not only or entry.arm == only):
            seen.add(entry.run)
            yield entry


def _train(
    record: Record, left: Sequence[Entry], experiments: dict[str, Experiment], options: Local, parts: list[Any], out: Console,
    asked: Asked,
) -> int:  # fmt: skip
    """Train trials on this machine; return the exit status."""
    works = [_work(record, entry, experiments[entry.label], options) for entry in left]
    trials = sum(1 for _ in _distinct(record, asked.only))
    for entry in left:
        stand = standing(entry.run)
        if stand.kind == "failed":
            out.print(f"trying again: {entry.label}, which {sentence(stand)}", markup=False, soft_wrap=True)
    out.print(
        f"{record.name}: {trials - len(left)} of {trials} trials finished, {len(left)} to do, {len(parts)} at a time, "
        f"in {left[0].run.parent}", markup=False, soft_wrap=True,
    )  # fmt: skip
    display = SweepDisplay(out, trials, sum(work.steps for work in works), trials - len(left))
    with stop_signals() as stop:
        try:
            endings = Queue(works, parts, display).run(stop)
        finally:
            display.close()
        stopped = stop()
    failed = [entry for entry in left if endings[entry.label] == "failed"]
    for entry in failed:
        out.print(f"failed: {entry.label} in {entry.run}: {standing(entry.run).why}", markup=False, soft_wrap=True)
    if stopped:
        out.print("stopped: run the same command to continue", soft_wrap=True)
    elif failed:
        out.print(f"{len(failed)} of {trials} trials failed; the same command tries them again", soft_wrap=True)
    return 130 if stopped else 0 if all(ending == "finished" for ending in endings.values()) else 1


def _work(record: Record, entry: Entry, experiment: Experiment, options: Local) -> Work:
    """Return what makes a trial's run, its configuration written into the sweep's folder."""
    config = record.folder / "configs" / f"{entry.run.name}.json"
    config.parent.mkdir(exist_ok=True)
    write_atomically(config, (json.dumps(to_dict(experiment), indent=2) + "\n").encode())
    return Work(entry.label, entry.run, experiment.steps, _command(config, entry.run, options))


def _command(config: Path, run: Path, options: Local) -> tuple[str, ...]:
    """Return the command of a trial: one process, or the launcher of several."""
    jaxlm = (PYTHON, "-m", "jaxlm")
    if options == Local():
        return *jaxlm, "train", str(config), "--run-dir", str(run)
    given = {"processes": options.processes, "devices": options.devices, "restarts": options.restarts, "grace": options.grace}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    words += [word for setting in options.env for word in ("--env", setting)]
    return *jaxlm, "launch", str(config), "--run-dir", str(run), *words


def _submit(left: Sequence[Entry], experiments: dict[str, Experiment], options: Any, out: Console) -> int:
    """Submit trials to a scheduler, one job each; return 1 where one was not taken."""
    each, faults = {entry.label: _options_of(options, entry.run) for entry in left}, []
    for entry in left:
        if job := _job(entry.run):
            out.print(f"skipped: {entry.label}{job}", markup=False, soft_wrap=True)
            continue
        out.print(f"{entry.label}:", markup=False, soft_wrap=True)
        try:
            launch(experiments[entry.label], each[entry.label], entry.run)
        except JaxlmError as fault:
            words = "for the same reason" if faults and str(fault) == faults[-1] else str(fault)
            faults.append(str(fault))
            out.print(f"not submitted: {entry.label}: {words}", markup=False, soft_wrap=True)
    return 1 if faults else 0


def _options_of(options: Any, run: Path) -> Any:
    """Return a target's options for one trial of many."""
    if isinstance(options, TpuVm):
        if options.watch:
            raise ConfigError("--watch stays with one run until its end: leave it out of a sweep, and repeat the command")
        if options.remote_run_dir:
            return dataclasses.replace(options, remote_run_dir=f"{options.remote_run_dir.rstrip('/')}/{run.name}")
    return options


def _job(run: Path) -> str:
    """Return how a run's job stands where that forbids another: it lives, is done, or cannot be asked; else nothing."""
    if not (run / FOLDER / RECORD).exists():
        return ""
    try:
        job = read_job(run)
        state = state_of(job)
    except JaxlmError as fault:
        return f" (its job cannot be asked after, and two would be one too many: {fault})"
    word = state.replace(",", " ").split()[0] if state else ""
    return f" ({job.target} job {job.id}: {state})" if word in _LIVE or (word in _DONE and job.target != "local") else ""


def _show_plan(record: Record, left: Sequence[Entry], experiments: dict[str, Experiment], options: Any) -> None:
    """Print what would be run."""
    for entry in left:
        print(f"==> {entry.label}")
        if isinstance(options, Local):
            config = record.folder / "configs" / f"{entry.run.name}.json"
            print(" ".join(_command(config, entry.run, options)))
        elif job := _job(entry.run):
            print(f"skipped{job}")
        else:
            launch(experiments[entry.label], _options_of(options, entry.run), entry.run, dry_run=True)
    print(f"{len(left)} to do, {sum(1 for _ in _distinct(record, '')) - len(left)} finished or left out")


def show_table(table: Table) -> None:
    """Print a sweep's comparison, with what it cost in hours."""
    grid = _grid(*table.heading, "hours")
    for row in table.rows:
        grid.add_row(*map(_cell, [*row, f"{table.hours[row[0]]:,.2f}"]))
    _print(grid)
    for note in table.numbers["notes"]:
        print(note)


def _grid(*columns: str) -> Grid:
    grid = Grid(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        grid.add_column(name, overflow="fold")
    return grid


def _cell(text: str) -> str:
    return text.replace("[", "\\[")


def _print(grid: Grid) -> None:
    out = Console(highlight=False)
    out.width = max(out.width, 160) if not os.isatty(1) else out.width
    out.print(grid)
