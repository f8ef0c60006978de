"""On a Slurm cluster, as a batch job that continues by itself after preemption and at its time limit."""

import os
import re
import sys
from pathlib import Path
from typing import Annotated

from jaxlm.config import Range, config
from jaxlm.errors import ConfigError, LaunchError
from jaxlm.experiment import Experiment
from jaxlm.launch.job import (
    FOLDER,
    Env,
    Job,
    Rendered,
    Stage,
    Task,
    call,
    check_environment,
    config_file,
    need,
    new_job,
    template,
    trusted,
)

SCRIPT = "slurm.sh"
INSTALL = "run this on a login node of the cluster, or install Slurm's client commands (slurm-client)"
SECRETS = "put it into a file of NAME=VALUE lines that only you can read (chmod 600), and give that with --env-file PATH"
# What a job inherits of the submitting shell: where programs and libraries are, nothing that could be a credential.
INHERITED = ("HOME", "USER", "PATH", "LD_LIBRARY_PATH", "LANG", "VIRTUAL_ENV", "CONDA_PREFIX", "JAXLM_CACHE")
SHARED_TYPES = re.compile(r"nfs|lustre|gpfs|beegfs|ceph|gluster|panfs|wekafs|orangefs|pvfs|afs|fuse|9p|virtiofs")


@config
class Slurm:
    """A Slurm batch job."""

    nodes: Annotated[int, Range(1)] = 1
    """Nodes."""
    tasks_per_node: Annotated[int, Range(1)] = 1
    """Processes a node; one drives all GPUs of its node."""
    gpus_per_node: Annotated[int, Range(0)] = 0
    """GPUs a node; 0 trains on processors, mesh.cpu_devices virtual devices a process."""
    cpus_per_task: Annotated[int, Range(0)] = 0
    """Cores a process; 0: the cluster's default."""
    time: str = ""
    """Time limit, HH:MM:SS or D-HH:MM:SS, after which the job saves and queues again; empty: the partition's."""
    save_seconds: Annotated[int, Range(60, 3600)] = 120
    """Seconds before the limit at which the run is told to save."""
    partition: str = ""
    """Partition; empty: the cluster's default."""
    account: str = ""
    """Account to charge; empty: your default."""
    qos: str = ""
    """Quality of service; empty: your default."""
    constraint: str = ""
    """Features that nodes must have."""
    python: str = sys.executable
    """The Python that has jaxlm, under the same path on every node."""
    setup: str = ""
    """Shell script to read before anything starts, for example with `module load` lines."""
    env_file: str = ""
    """File of NAME=VALUE lines that only you can read (chmod 600), read by the job: the place for secrets."""
    env: Env = ()

    def check(self) -> None:
        """Raise ConfigError for a time limit that Slurm would read otherwise than it looks, and GPUs that do not divide."""
        if self.time and not re.fullmatch(r"(\d+-)?\d{1,2}:[0-5]\d:[0-5]\d", self.time):
            raise ConfigError(
                f"--time {self.time} is no time limit: use HH:MM:SS or D-HH:MM:SS, for example 04:00:00 or 2-00:00:00"
            )
        if self.time and _seconds(self.time) <= self.save_seconds:
            raise ConfigError(f"--time {self.time} leaves nothing before --save-seconds {self.save_seconds}: give more time")
        if self.gpus_per_node % self.tasks_per_node:
            raise ConfigError(
                f"--gpus-per-node {self.gpus_per_node} cannot be shared out to --tasks-per-node {self.tasks_per_node} evenly: "
                "take --tasks-per-node 1, whose process drives all GPUs of its node"
            )


def _seconds(time: str) -> int:
    days, _, clock = time.rpartition("-")
    hours, minutes, seconds = map(int, clock.split(":"))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def num_devices(options: Slurm, experiment: Experiment) -> int:
    """Return how many devices the job has."""
    return options.nodes * (options.gpus_per_node or options.tasks_per_node * experiment.mesh.cpu_devices)


def settle(options: Slurm, experiment: Experiment) -> Experiment:
    """Return the experiment as the job reads it."""
    return experiment


def render(options: Slurm, task: Task) -> Rendered:
    """Return the files and the sbatch command. Settings go by the environment, named one by one."""
    settings = check_environment(options.env, SECRETS)
    for field in ("setup", "env_file"):
        if getattr(options, field) and not os.path.isfile(getattr(options, field)):
            raise ConfigError(f"--{field.replace('_', '-')} {getattr(options, field)}: there is no such file")
    if options.env_file and Path(options.env_file).stat().st_mode & 0o077:
        raise ConfigError(f"--env-file {options.env_file} can be read by others: chmod 600 {options.env_file}")
    settings |= trusted(task) | {
        "JAXLM_RUN_DIR": str(task.run_dir),
        "JAXLM_STEPS": str(task.experiment.steps),
        "JAXLM_PYTHON": options.python,
    }
    optional = {
        "JAXLM_SETUP": options.setup and str(Path(options.setup).absolute()),
        "JAXLM_ENV_FILE": options.env_file and str(Path(options.env_file).absolute()),
        "JAXLM_TRAIN_ARGS": "--allow-config-change" if task.allow_config_change else "",
        "JAX_PLATFORMS": "" if options.gpus_per_node or "JAX_PLATFORMS" in settings else "cpu",
    }
    settings |= {name: value for name, value in optional.items() if value}
    script = task.folder / SCRIPT
    asked = {
        "job-name": task.name,
        "output": task.folder / "slurm-%j.log",
        "nodes": options.nodes,
        "ntasks-per-node": options.tasks_per_node,
        "gpus-per-node": options.gpus_per_node,
        "gpus-per-task": options.gpus_per_node // options.tasks_per_node if options.tasks_per_node > 1 else 0,
        "cpus-per-task": options.cpus_per_task,
        "time": options.time,
        "signal": f"B:USR1@{options.save_seconds}",
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "constraint": options.constraint,
        "export": ",".join([*(name for name in INHERITED if name in os.environ and name not in settings), *settings]),
    }
    command = ["env", *(f"{name}={value}" for name, value in settings.items()), "sbatch", "--parsable"]
    command += [f"--{name}={value}" for name, value in asked.items() if value] + [str(script)]
    notes = []
    kind = _file_system(task.run_dir)
    if kind and not SHARED_TYPES.search(kind):
        notes.append(
            f"{task.run_dir} is on a {kind} file system, which other nodes may not see: the run directory, the data cache "
            "(JAXLM_CACHE) and Python must be on a path that all nodes share"
        )
    return Rendered(config_file(task) | {script: template(SCRIPT)}, [command], notes)


def _file_system(path: Path) -> str:
    """Return the type of the file system that a path is or would be on; empty where it cannot be told."""
    while not path.exists():
        path = path.parent
    try:
        lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return ""
    real = path.resolve()
    holding = [(len(line[1]), line[2]) for line in lines if real.is_relative_to(line[1].replace("\\040", " "))]
    return max(holding)[1] if holding else ""


def check(options: Slurm) -> None:
    """Raise LaunchError where the target's program is missing."""
    need("sbatch", INSTALL)


def run(options: Slurm, task: Task, rendered: Rendered) -> Job:
    """Submit the job and return it."""
    try:
        said = call(rendered.commands[0], timeout=60)
    except LaunchError as fault:
        raise LaunchError(f"Slurm did not take the job. {fault}") from fault
    return new_job(task, "slurm", options, said.strip().split(";")[0], rendered.commands)


def state(options: Slurm, job: Job) -> str:
    """Return the state that Slurm gives: from the queue, from the accounts where it is no longer queued."""
    asked = (
        ["squeue", "--noheader", "--jobs", job.id, "--states=all", "--format=%T %r"],
        ["sacct", "--noheader", "--parsable2", "--allocations", "--jobs", job.id, "--format=State"],
    )
    faults = []
    for command in asked:
        try:
            said = call(command, timeout=20).strip()
        except LaunchError as fault:
            faults.append(str(fault))
            continue
        if said:
            word, _, reason = said.splitlines()[-1].partition(" ")
            return word if reason in ("", "None") else f"{word} ({reason})"
    if faults and all("nvalid job id" not in fault and "accounting storage is disabled" not in fault for fault in faults):
        raise LaunchError(faults[0])
    return "gone: Slurm no longer knows the job"


# Those of `squeue`'s job states after which a job does nothing more; of any other it may.
_ENDED = ("BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED",
          "RECONFIG_FAIL", "REVOKED", "TIMEOUT", "gone:")  # fmt: skip


def stage(state: str) -> Stage:
    """Return what a state that Slurm gave means for another job of the run."""
    word = state.split()[0].rstrip("+")
    return "done" if word == "COMPLETED" else "ended" if word in _ENDED else "live"


def tail(options: Slurm, job: Job) -> list[str]:
    """Return the command that follows the job's output."""
    return ["tail", "-n", "100", "-F", str(job.run_dir / FOLDER / f"slurm-{job.id}.log")]


def cancel(options: Slurm, job: Job) -> str:
    """Cancel the job; return what was done."""
    call(["scancel", job.id], timeout=60)
    return f"cancelled Slurm job {job.id}"
