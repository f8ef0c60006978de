"""A sweep from its file to its table: what is to be done, here or elsewhere, and its end."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxlm.config import to_dict
from jaxlm.data.storage import write_atomically
from jaxlm.errors import JaxlmError
from jaxlm.experiment import Experiment
from jaxlm.launch.job import show_command
from jaxlm.launch.local import Local
from jaxlm.launch.start import launch
from jaxlm.run.display import console
from jaxlm.run.loop import stop_signals
from jaxlm.run.sources import training_files
from jaxlm.run.standing import is_complete, sentence, standing
from jaxlm.sweep.asked import Asked, open_sweep
from jaxlm.sweep.display import SweepDisplay
from jaxlm.sweep.elsewhere import job_of, options_of, submit
from jaxlm.sweep.overview import show_table
from jaxlm.sweep.queue import Queue, Work
from jaxlm.sweep.read import Entry, Record, finished_otherwise, write_record
from jaxlm.sweep.share import shares
from jaxlm.sweep.table import tabulate_record, write_table
from jaxlm.sweep.trials import recipe

PYTHON = sys.executable  # of the trials


def run_sweep(file: Path, options: Any, asked: Asked, *, dry_run: bool = False) -> int:
    """Train what is not finished, here or at the target that `options` belongs to, and print the comparison.

    A trial that diverged has its result, and is left as it is unless asked to be tried again. Returns the exit status: 0 where
    all have a result or are submitted, 1 where something failed, 130 where it was told to stop. Raises JaxlmError for faults of
    the file and its arms before anything is written.
    """
    sources = training_files()
    _, record, experiments = open_sweep(file, asked)
    out, here = console(), isinstance(options, Local)
    left = _left(record, asked, out, here)
    if dry_run:
        _show_plan(record, left, experiments, options)
        return 0
    parts = shares(asked.max_parallel, on_processor=bool(options.devices)) if here else []
    record = write_record(record)
    if not left:
        done = all(standing(entry.run).kind == "finished" for entry in record.trials)
        words = f"all of {record.name} is finished" if done else f"nothing of {record.name} is left to do"
        out.print(words, markup=False, soft_wrap=True)
        status = 0
    elif here:
        works = [_work(record, entry, experiments[entry.label], options) for entry in left]
        status = _train(record, left, works, parts, out, asked, _forbids(left, experiments, sources))
    else:
        status = submit(left, experiments, options, out)
    table = tabulate_record(record, asked.metrics)
    write_table(record.folder, table)
    show_table(table)
    return status


def _trials(record: Record, only: str) -> list[Entry]:
    """Return trials seed by seed, so that an early end leaves whole comparisons."""
    return [entry for entry in sorted(record.trials, key=lambda entry: entry.seed) if not only or entry.arm == only]


def _left(record: Record, asked: Asked, out: Console, here: bool) -> list[Entry]:
    """Return the trials to be made, and say of those that are left out, or made again, why."""
    left, others = [], 0
    for entry in _trials(record, asked.only):
        stand = standing(entry.run)
        if is_complete(stand):
            continue
        said = ""
        if stand.diverged and not asked.retry:
            said = f"left as it is: {entry.label} diverged after {stand.step} of {stand.steps} steps; --retry tries it again"
        elif here and (job := job_of(entry.run, local=False)):
            said = f"skipped: {entry.label}{job}"
        elif stand.kind == "failed":
            out.print(f"trying again: {entry.label}, which {sentence(stand)}", markup=False, soft_wrap=True)
        if said:
            out.print(said, markup=False, soft_wrap=True)
            continue
        left.append(entry)
        others += next(finished_otherwise(entry.run.parents[1], entry.digest), None) is not None
    if others:
        trials = "1 trial was" if others == 1 else f"{others} trials were"
        out.print(f"{trials} finished by another version of the code: --any-code counts them", markup=False, soft_wrap=True)
    return left


def _forbids(left: Sequence[Entry], experiments: dict[str, Experiment], sources: dict[str, str]) -> Callable[[Work], str]:
    """Return a function that says why a trial may not begin: its run's name would not say what it would be made of.

    Each process imports the code, and reads the data, as they are when it begins.
    """
    digests = {entry.label: entry.digest for entry in left}

    def forbids(work: Work) -> str:
        now = training_files()
        if now != sources:
            changed = sorted(name for name in now.keys() | sources.keys() if now.get(name) != sources.get(name))
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            return f"the code has changed since this sweep began ({', '.join(changed[:3])}{more})"
        try:
            asks = recipe(experiments[work.label])
        except JaxlmError as fault:
            return f"its data can no longer be read: {fault}"
        if not digests[work.label].startswith(asks):
            return f"what {work.label} reads has changed since this sweep began: its data, or the run that it begins from"
        return ""

    return forbids


def _train(
    record: Record, left: Sequence[Entry], works: Sequence[Work], parts: list[Any], out: Console, asked: Asked,
    forbids: Callable[[Work], str],
) -> int:  # fmt: skip
    """Train trials on this machine; return the exit status."""
    trials = _trials(record, asked.only)
    done = sum(is_complete(standing(entry.run)) for entry in trials)
    out.print(
        f"{record.name}: {done} of {len(trials)} trials finished, {len(left)} to do, {len(parts)} at a time, "
        f"in {left[0].run.parent}", markup=False, soft_wrap=True,
    )  # fmt: skip
    display = SweepDisplay(out, len(trials), sum(work.steps for work in works), done)
    with stop_signals() as stop:
        queue = Queue(works, parts, display, forbids)
        try:
            endings = queue.run(stop)
        finally:
            display.close()
        stopped = stop()
    failed = [(entry, standing(entry.run)) for entry in left if endings[entry.label] == "failed"]
    for entry, stand in failed:
        words = "diverged" if stand.diverged else "failed"
        out.print(f"{words}: {entry.label} in {entry.run}: {stand.why}", markup=False, soft_wrap=True)
    broken = sum(not stand.diverged for _, stand in failed)
    if stopped:
        out.print("stopped: run the same command to continue", soft_wrap=True)
    elif queue.forbidden:
        out.print(f"{queue.forbidden}: nothing more was begun. Run the same command for the rest", markup=False, soft_wrap=True)
    elif broken:
        out.print(f"{broken} of {len(trials)} trials failed; the same command tries them again", soft_wrap=True)
    ended = all(ending == "finished" for label, ending in endings.items() if label not in {entry.label for entry, _ in failed})
    return 130 if stopped else 0 if ended and not broken else 1


def _work(record: Record, entry: Entry, experiment: Experiment, options: Local) -> Work:
    """Return what makes a trial's run, its configuration written into the sweep's folder."""
    config = record.folder / "configs" / f"{entry.run.name}.json"
    config.parent.mkdir(exist_ok=True)
    write_atomically(config, json.dumps(to_dict(experiment), indent=2) + "\n")
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


def _show_plan(record: Record, left: Sequence[Entry], experiments: dict[str, Experiment], options: Any) -> None:
    """Print what would be run."""
    for entry in left:
        print(f"==> {entry.label}")
        if isinstance(options, Local):
            config = record.folder / "configs" / f"{entry.run.name}.json"
            print(show_command(_command(config, entry.run, options)))
        elif job := job_of(entry.run):
            print(f"skipped{job}")
        else:
            launch(experiments[entry.label], options_of(options, entry.run), entry.run, dry_run=True)
    print(f"{len(left)} to do, {len(record.trials) - len(left)} finished or left out")
