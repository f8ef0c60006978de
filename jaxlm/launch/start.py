"""Starting a run somewhere: check, render, show or submit, write down."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxlm.data.storage import write_atomically
from jaxlm.errors import ConfigError, JaxlmError, LaunchError, suggest
from jaxlm.experiment import Experiment
from jaxlm.experiment_mesh import check_devices
from jaxlm.function_file import parse
from jaxlm.launch import kubernetes, local, slurm, tpu_vm, xpk
from jaxlm.launch.job import FOLDER, RECORD, Rendered, Task, new_job, read_job, show_command
from jaxlm.run.directory import check_continuation
from jaxlm.run.functions import named
from jaxlm.run.preflight import check_functions, check_inputs, check_runs, check_spellings, check_trainable

# What a target can be asked, by its options and its module.
TARGETS = {
    "local": (local.Local, local),
    "slurm": (slurm.Slurm, slurm),
    "tpu-vm": (tpu_vm.TpuVm, tpu_vm),
    "gke": (kubernetes.Gke, kubernetes),
    "xpk": (xpk.Xpk, xpk),
}


def target_of(arguments: Sequence[str]) -> type:
    """Return the class of options of the target that a command line names with --on, or raise ConfigError."""
    name = "local"
    for word, following in zip(arguments, [*arguments, ""][1:], strict=True):
        if word == "--on":
            name = following
        elif word.startswith("--on="):
            name = word.removeprefix("--on=")
    if name not in TARGETS:
        raise ConfigError(f"--on {name} is no target.{suggest(name, TARGETS)} They are {', '.join(TARGETS)}")
    return TARGETS[name][0]


def launch(
    experiment: Experiment, options: Any, run_dir: Path, *, dry_run: bool = False, allow_config_change: bool = False
) -> None:
    """Start, or continue, a run at the target that `options` belongs to; with `dry_run` only show what would be done.

    Every fault that can be found here is a JaxlmError before anything is written or submitted.
    """
    name, module = next((name, module) for name, (kind, module) in TARGETS.items() if isinstance(options, kind))
    task = Task(module.settle(options, experiment), Path(os.path.abspath(run_dir)), allow_config_change)
    devices = module.num_devices(options, experiment)
    if devices is not None:
        try:
            check_devices(task.experiment, devices, slices=getattr(options, "slices", 1))
        except ConfigError as fault:
            raise ConfigError(f"{fault} (the job would have {devices} devices)") from fault
    rendered = module.render(options, task)
    _check_training(name, task)
    out = Console(stderr=True, highlight=False)
    for note in rendered.notes:
        out.print(f"[yellow]note:[/] {note}", soft_wrap=True)
    if dry_run:
        _show(rendered)
        return
    if name != "local":
        module.check(options)
    _refuse_second(task)
    _write(task, rendered)
    if name == "local":
        job = new_job(task, name, options, str(os.getpid()), rendered.commands)
        local.run(options, task, job)
    elif name == "slurm":
        job = slurm.run(options, task, rendered)
        job.write()
        out.print(f"submitted Slurm job {job.id}, written down in {task.folder / RECORD}", soft_wrap=True)
        _tell(task, out)
    else:
        new_job(task, name, options, task.name, rendered.commands).write()  # before: `watch` may take days
        for command in rendered.commands:
            _follow(command)
        _tell(task, out)


def _show(rendered: Rendered) -> None:
    """Print what would be written and run."""
    for path, content in rendered.files.items():
        print(f"==> {path}\n{content}")
    print("==> commands")
    for command in rendered.commands:
        print(show_command(command))


def _check_training(target: str, task: Task) -> None:
    """Raise the JaxlmError that `train` would raise there before its first step, as far as that is known here.

    On this machine all of it is; a Slurm cluster has the runs of this machine, and perhaps other data; elsewhere only names
    can be checked.
    """
    experiment = task.experiment
    check_continuation(task.run_dir, experiment, allow_change=task.allow_config_change)
    check_trainable(experiment.model)
    if target == "local":
        check_inputs(experiment, task.run_dir)
    else:
        check_spellings(experiment.data)
    if target == "slurm":
        check_runs(experiment, task.run_dir)
    if target not in ("local", "slurm"):
        _check_shipped(experiment)
    if target == "local" or all(parse(value).file.is_file() for value in named(experiment).values()):
        check_functions(experiment)


def _check_shipped(experiment: Experiment) -> None:
    """Raise ConfigError where a job that has only its image or a copy of jaxlm would not find a function's file."""
    for field, value in named(experiment).items():
        file, name, _ = parse(value)
        if not (file.is_absolute() and file.is_file()):
            raise ConfigError(
                f"{field} = {value}: the job does not get {file}, for only jaxlm itself is sent. Put the file into the image "
                "or onto the storage that all of its processes mount, at a path that it has here too, outside of the working "
                f"directory, and name it by that: /src/functions/{file.name}:{name}"
            )


def _refuse_second(task: Task) -> None:
    """Raise LaunchError where a job of this run is queued or running: two would write the same files."""
    if not (task.folder / RECORD).exists():
        return
    job = read_job(task.run_dir)
    if job.target not in ("local", "slurm"):
        return  # starting again is how those are looked after
    options, module = options_of(job), TARGETS[job.target][1]
    try:
        state = module.state(options, job)
    except JaxlmError as fault:
        raise LaunchError(
            f"whether job {job.id} of {task.run_dir} still runs cannot be told, and two would be one too many: {fault}"
        ) from fault
    if state and module.stage(state) == "live":
        raise LaunchError(
            f"{task.run_dir} has a job already: {job.target} {job.id} is {state}. Wait for it, or stop it with "
            f"`jaxlm jobs cancel {task.run_dir}`"
        )


def options_of(job: Any) -> Any:
    """Return the options that a recorded job was started with, or raise LaunchError."""
    if job.target not in TARGETS:
        raise LaunchError(f"{job.run_dir / FOLDER / RECORD} names a target that this version does not know: {job.target}")
    try:
        return TARGETS[job.target][0](**job.options)
    except ConfigError as fault:
        raise LaunchError(f"{job.run_dir / FOLDER / RECORD} was not written by this version of jaxlm: {fault}") from fault


def _write(task: Task, rendered: Rendered) -> None:
    try:
        task.folder.mkdir(parents=True, exist_ok=True)
        for path, content in rendered.files.items():
            write_atomically(path, content)
    except OSError as fault:
        raise ConfigError(
            f"the run directory {task.run_dir} cannot be written: {fault.strerror}. Choose another with --run-dir PATH"
        ) from fault


def _follow(command: Sequence[str]) -> None:
    """Run a command in the foreground, its words on this terminal."""

    done = subprocess.run(list(command))
    if done.returncode:
        raise LaunchError(f"`{show_command(command)}` failed with exit status {done.returncode}: its words stand above")


def _tell(task: Task, out: Console) -> None:
    near = os.path.relpath(task.run_dir)
    folder = str(task.run_dir) if near.startswith("..") else near
    out.print(f"follow it with `jaxlm jobs tail {folder}`, stop it with `jaxlm jobs cancel {folder}`", soft_wrap=True)
