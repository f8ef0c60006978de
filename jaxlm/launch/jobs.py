"""The jobs of runs: what the scheduler says of them now, their output, their end."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jaxlm.errors import CheckpointError, ConfigError, LaunchError
from jaxlm.launch.job import FOLDER, RECORD, Job, Stage, read_job
from jaxlm.launch.start import TARGETS, options_of
from jaxlm.run.directory import CHECKPOINTS, load_config
from jaxlm.train.saved import saved_steps


def list_jobs(folder: Path) -> None:
    """Print the job of every run under `folder`, with its state as the scheduler tells it now."""
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}: name the one that holds the runs, or begin with `jaxlm launch`")
    runs = list(_launched(folder))
    if not runs:
        print(f"no run under {folder} was started by `jaxlm launch`")
        return
    with ThreadPoolExecutor(8) as pool:  # schedulers may take seconds to answer
        rows = sorted(pool.map(_row, runs))
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("started", "run", "on", "job", "step", "state"):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)


def _launched(folder: Path) -> Iterator[Path]:
    """Yield every folder with a job's record, at any depth, a sweep's trials among them."""
    for place, inside, _ in os.walk(folder):
        if os.path.isfile(os.path.join(place, FOLDER, RECORD)):
            yield Path(place)
        inside[:] = (name for name in inside if name not in (CHECKPOINTS, FOLDER) and not name.startswith("."))


def _row(run_dir: Path) -> tuple[str, ...]:
    try:
        job = read_job(run_dir)
    except LaunchError as fault:
        return "", str(run_dir), "", "", "", f"unknown: {fault}"
    try:
        state = state_of(job)
    except LaunchError as fault:
        state = f"unknown, the scheduler cannot be asked: {fault}"
    return job.time.replace("+00:00", "Z"), str(run_dir), job.target, job.id, _progress(run_dir), state


def _progress(run_dir: Path) -> str:
    """Return the newest saved step and the last one, as far as this machine sees the run's directory."""
    steps = saved_steps(run_dir / CHECKPOINTS)
    try:
        last = load_config(run_dir / FOLDER).steps
    except (CheckpointError, ConfigError):
        last = "?"
    return f"{steps[-1]}/{last}" if steps else f"-/{last}"


def state_of(job: Job) -> str:
    """Return the state of a job as its scheduler tells it now; LaunchError where it cannot be asked."""
    return TARGETS[job.target][1].state(options_of(job), job) if job.target in TARGETS else "of an unknown target"


def stage_of(job: Job, state: str) -> Stage:
    """Return what a job's state, as its scheduler told it, means for another job of the run."""
    return TARGETS[job.target][1].stage(state) if job.target in TARGETS and state else "ended"


def tail_job(run_dir: Path) -> None:
    """Follow the output of a run's process 0, until interrupted."""
    job = read_job(run_dir)
    options = options_of(job)
    command = TARGETS[job.target][1].tail(options, job)
    try:
        os.execvp(command[0], command)
    except FileNotFoundError as fault:
        raise LaunchError(f"{command[0]} is not on this machine's PATH") from fault


def cancel_job(run_dir: Path) -> None:
    """Stop a run's job; what it has saved stays."""
    job = read_job(run_dir)
    print(TARGETS[job.target][1].cancel(options_of(job), job))
