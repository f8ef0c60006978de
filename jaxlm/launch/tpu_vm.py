"""On the VMs of a Cloud TPU slice: a queued resource, and one process a worker over ssh, through gcloud."""

import re
import shlex
from pathlib import Path
from typing import Annotated

import jaxlm
from jaxlm.config import Range, config
from jaxlm.errors import ConfigError, LaunchError
from jaxlm.experiment import Experiment
from jaxlm.hardware import chip
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
    template,
    trusted,
)

SCRIPT, WORKER, SETTINGS, CANCELLED = "tpu_vm.sh", "tpu_worker.sh", "tpu_vm.env", "cancelled"
INSTALL = "install the Google Cloud CLI (https://cloud.google.com/sdk/docs/install) and log in with `gcloud auth login`"
SECRETS = "give the slice's service account the right to read it from Secret Manager instead"
QUEUE = ("gcloud", "compute", "tpus", "queued-resources")
CORES = ("v4", "v5p")  # whose types count two cores a chip, and JAX one device


@config
class TpuVm:
    """A slice of Cloud TPU VMs."""

    accelerator_type: str
    """The slice, for example v5litepod-16."""
    runtime_version: str
    """The VMs' image, for example v2-alpha-tpuv5-lite."""
    zone: str
    """Google Cloud zone, for example us-west4-a."""
    project: str = ""
    """Google Cloud project; empty: gcloud's own setting."""
    spot: bool = False
    """Take capacity that can be preempted."""
    remote_run_dir: str = ""
    """The run's directory on the workers, on a file system that all of them mount; empty: the same path as here."""
    python: str = ""
    """A Python on the workers that has jaxlm; empty: this checkout is installed on each of them."""
    watch: bool = False
    """Stay and request the slice again when it is preempted, start again when training died, delete it at the end."""
    restarts: Annotated[int, Range(0)] = 3
    """With --watch: times that training is started again after it died by itself; preemptions are not counted."""
    env: Env = ()


def num_devices(options: TpuVm, experiment: Experiment) -> int | None:
    """Return how many devices the slice has, or None for a type whose counting is not known here."""
    return device_count(options.accelerator_type)


def device_count(accelerator_type: str) -> int | None:
    """Return how many devices JAX sees in a slice of this type (v5litepod-16), or None where that is not known here."""
    kind, _, count = accelerator_type.rpartition("-")
    known = chip(kind) if kind and count.isdigit() else None
    if known is None or not known.is_tpu or known.name == "tpu7x":
        return None
    return int(count) // 2 if known.name in CORES else int(count)


def settle(options: TpuVm, experiment: Experiment) -> Experiment:
    """Return the experiment as the workers read it."""
    return experiment


def render(options: TpuVm, task: Task) -> Rendered:
    """Return the scripts, their settings and the command that runs them."""
    if not re.fullmatch(r"[a-z0-9]+-[a-z0-9]+-[a-z]", options.zone):
        raise ConfigError(f"--zone {options.zone} is no zone: it reads like us-west4-a")
    remote = options.remote_run_dir or str(task.run_dir)
    if not remote.startswith("/"):
        raise ConfigError(
            f"--remote-run-dir {remote} must be an absolute path on the workers, for example /mnt/shared/{remote}"
        )
    source = Path(jaxlm.__file__).parents[1]
    if not options.python and not (source / "pyproject.toml").is_file():
        raise ConfigError(
            "jaxlm does not run from a checkout that could be installed on the workers: name theirs with --python"
        )
    settings = (
        check_environment(options.env, SECRETS)
        | trusted(task)
        | {
            "TPU_NAME": task.name,
            "TPU_ZONE": options.zone,
            "TPU_PROJECT": options.project,
            "TPU_TYPE": options.accelerator_type,
            "TPU_VERSION": options.runtime_version,
            "TPU_SPOT": "yes" if options.spot else "",
            "JAXLM_RUN_DIR": remote,
            "JAXLM_STEPS": str(task.experiment.steps),
            "JAXLM_PYTHON": options.python,
            "JAXLM_SOURCE": "" if options.python else str(source),
            "JAXLM_TRAIN_ARGS": "--allow-config-change" if task.allow_config_change else "",
            "JAXLM_RESTARTS": str(options.restarts),
        }
    )
    text = "".join(f"{name}={shlex.quote(value)}\n" for name, value in settings.items())
    files = config_file(task) | {
        task.folder / SETTINGS: text,
        task.folder / SCRIPT: template(SCRIPT),
        task.folder / WORKER: template(WORKER),
    }
    command = ["bash", str(task.folder / SCRIPT), "watch" if options.watch else "start", str(task.folder / SETTINGS)]
    notes = []
    if not options.remote_run_dir:
        notes.append(
            f"the workers must all mount one file system at {task.run_dir}: otherwise name another with --remote-run-dir"
        )
    if num_devices(options, task.experiment) is None:
        notes.append(f"how many devices {options.accelerator_type} has is not known here: the mesh is checked on the workers")
    return Rendered(files, [command], notes)


def check(options: TpuVm) -> None:
    """Raise LaunchError where the target's program is missing."""
    need("gcloud", INSTALL)


def _where(options: TpuVm) -> list[str]:
    return [f"--zone={options.zone}", *([f"--project={options.project}"] if options.project else [])]


def state(options: TpuVm, job: Job) -> str:
    """Return the state of the slice, and of training on its first worker where there is one."""
    asked = [*QUEUE, "describe", job.name, *_where(options), "--format=value(state.state)"]
    try:
        slice_state = call(asked, timeout=60).strip()
    except LaunchError as fault:
        if "NOT_FOUND" in str(fault):
            return "gone: the slice was deleted"
        raise
    if slice_state != "ACTIVE":
        return slice_state
    return f"ACTIVE, {call(_ssh(options, job, f'bash jaxlm-{job.name}/{WORKER} state'), timeout=60).strip()}"


# Of a queued resource that has its slice, or will have it; SUSPENDED is one that has lost it.
_COMING = ("ACCEPTED", "CREATING", "PROVISIONING", "WAITING_FOR_RESOURCES")


def stage(state: str) -> Stage:
    """Return what the state of a slice, and of training on it, means for another job of the run."""
    slice_state, _, training = state.partition(", ")
    if slice_state == "ACTIVE":
        return {"running": "live", "complete": "done"}.get(training, "ended")
    return "live" if slice_state in _COMING else "ended"


def _ssh(options: TpuVm, job: Job, command: str) -> list[str]:
    return ["gcloud", "compute", "tpus", "tpu-vm", "ssh", job.name, *_where(options), "--worker=0", f"--command={command}"]


def tail(options: TpuVm, job: Job) -> list[str]:
    """Return the command that follows the first worker's output."""
    return _ssh(options, job, f"tail -n 100 -F jaxlm-{job.name}/train.log")


def cancel(options: TpuVm, job: Job) -> str:
    """Delete the slice, with its VMs; return what was done."""
    (job.run_dir / FOLDER / CANCELLED).touch()  # a watcher is not to request it again
    call([*QUEUE, "delete", job.name, *_where(options), "--force", "--quiet"])
    return f"deleted queued resource {job.name} with its VMs; the run directory stays as it is"
