"""Trials as jobs of schedulers and slices, one each: submitted once, and left alone while they live."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxlm.errors import ConfigError, JaxlmError
from jaxlm.experiment import Experiment
from jaxlm.launch.job import FOLDER, RECORD, read_job
from jaxlm.launch.jobs import stage_of, state_of
from jaxlm.launch.start import launch
from jaxlm.launch.tpu_vm import TpuVm
from jaxlm.sweep.read import Entry


def submit(left: Sequence[Entry], experiments: dict[str, Experiment], options: Any, out: Console) -> int:
    """Submit trials to a scheduler, one job each; return 1 where one was not taken."""
    each, faults = {entry.label: options_of(options, entry.run) for entry in left}, []
    for entry in left:
        if job := job_of(entry.run):
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


def options_of(options: Any, run: Path) -> Any:
    """Return a target's options for one trial of many."""
    if isinstance(options, TpuVm):
        if options.watch:
            raise ConfigError("--watch stays with one run until its end: leave it out of a sweep, and repeat the command")
        if options.remote_run_dir:
            return dataclasses.replace(options, remote_run_dir=f"{options.remote_run_dir.rstrip('/')}/{run.name}")
    return options


def job_of(run: Path, *, local: bool = True) -> str:
    """Return how a run's job stands where that forbids another: it lives, is done, or cannot be asked; else nothing.

    Without `local` one of this machine forbids none, where the run's lock says whether it is being trained.
    """
    if not (run / FOLDER / RECORD).exists():
        return ""
    try:
        job = read_job(run)
        state = state_of(job) if local or job.target != "local" else ""
    except JaxlmError as fault:
        return f" (its job cannot be asked after, and two would be one too many: {fault})"
    return f" ({job.target} job {job.id}: {state})" if stage_of(job, state) != "ended" else ""
