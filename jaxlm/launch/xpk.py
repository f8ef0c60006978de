"""On GKE through Google's xpk, which writes the JobSet itself and keeps the cluster's queues."""

import base64
import shlex
from typing import Annotated

from jaxlm.config import Range, config
from jaxlm.errors import ConfigError
from jaxlm.experiment import Experiment
from jaxlm.launch.job import (
    Env,
    Job,
    Rendered,
    Several,
    Stage,
    Task,
    call,
    check_environment,
    config_file,
    need,
    template,
    trusted,
)
from jaxlm.launch.kubernetes import SCRIPT, jobset_logs, jobset_state
from jaxlm.launch.kubernetes import stage as jobset_stage
from jaxlm.launch.tpu_vm import device_count

INSTALL = "install it with `pip install xpk` (https://github.com/AI-Hypercomputer/xpk), and kubectl and gcloud beside it"
SECRETS = "keep it in Google's Secret Manager, and let the cluster's service account read it"
EARLY = 75  # pod.sh's exit status for a run that stopped before its last step; xpk is told to restart on it, and on a death


@config
class Xpk:
    """An xpk workload on TPU slices."""

    cluster: str
    """Cluster that xpk made."""
    tpu_type: str
    """A slice, for example v5litepod-16."""
    image: str
    """Container image that has jaxlm (launch/Dockerfile makes one)."""
    run_root: str
    """Folder in the container for the run's directory, on a storage that all pods mount, for example /mnt/shared/runs."""
    storage: Several = ()
    """An xpk storage to attach, for example the one mounted at run_root; repeatable."""
    slices: Annotated[int, Range(1)] = 1
    """TPU slices."""
    zone: str = ""
    """Google Cloud zone; empty: gcloud's own setting."""
    project: str = ""
    """Google Cloud project; empty: gcloud's own setting."""
    spot: bool = False
    """Take spot capacity, which can be preempted."""
    restarts: Annotated[int, Range(0)] = 20
    """Times that all pods are started again after one was lost or failed."""
    grace: Annotated[int, Range(1)] = 120
    """Seconds that a pod has to save when it is taken away."""
    env: Env = ()


def num_devices(options: Xpk, experiment: Experiment) -> int | None:
    """Return how many devices the slices have together, or None for a type whose counting is not known here."""
    devices = device_count(options.tpu_type)
    return devices and devices * options.slices


def settle(options: Xpk, experiment: Experiment) -> Experiment:
    """Return the experiment as the pods read it."""
    return experiment


def render(options: Xpk, task: Task) -> Rendered:
    """Return the xpk command. The configuration travels inside it, for xpk ships no files."""
    if not options.run_root.startswith("/"):
        raise ConfigError(f"--run-root {options.run_root} must be an absolute path in the container")
    run_dir = f"{options.run_root}/{task.name}"
    settings = (
        {"JAXLM_CACHE": f"{options.run_root}/cache"}
        | check_environment(options.env, SECRETS)
        | trusted(task)
        | {
            "JAXLM_CLUSTER": "auto",
            "JAXLM_RUN_DIR": run_dir,
            "JAXLM_STEPS": str(task.experiment.steps),
        }
    )
    carried = {"/tmp/jaxlm.json": task.config, "/tmp/pod.sh": template(SCRIPT)}
    steps = [f"echo {base64.b64encode(text.encode()).decode()} | base64 -d > {path}" for path, text in carried.items()]
    # xpk sends SIGTERM to the shell that runs this: it must become the script that passes it on.
    steps.append(shlex.join(["exec", "bash", "/tmp/pod.sh", *task.train("python3", "/tmp/jaxlm.json", run_dir)]))
    asked = [("cluster", options.cluster), ("workload", task.name), ("tpu-type", options.tpu_type)]
    asked += [("num-slices", options.slices), ("docker-image", options.image), ("zone", options.zone)]
    asked += [("project", options.project), *(("storage", name) for name in options.storage)]
    asked += [("max-restarts", options.restarts), ("restart-on-exit-codes", f"1,{EARLY}")]
    asked += [("termination-grace-period-seconds", options.grace)]
    asked += [("env", f"{name}={value}") for name, value in settings.items()]
    command = ["xpk", "workload", "create", *(f"--{name}={value}" for name, value in asked if value != "")]
    command += ["--spot"] * options.spot + [f"--command={' && '.join(steps)}"]
    return Rendered(config_file(task), [command])


def check(options: Xpk) -> None:
    """Raise LaunchError where one of the target's programs is missing."""
    need("xpk", INSTALL)


def state(options: Xpk, job: Job) -> str:
    """Return the state of the workload's JobSet, in the cluster that kubectl now points to (xpk sets it)."""
    return jobset_state(["kubectl"], job.name)


def stage(state: str) -> Stage:
    """Return what the state of the workload's JobSet means for another job of the run."""
    return jobset_stage(state)


def tail(options: Xpk, job: Job) -> list[str]:
    """Return the command that follows process 0's output."""
    return jobset_logs(["kubectl"], job.name, "jax-tpu")


def cancel(options: Xpk, job: Job) -> str:
    """Delete the workload; return what was done."""
    where = [f"--{name}={value}" for name, value in (("zone", options.zone), ("project", options.project)) if value]
    call(["xpk", "workload", "delete", f"--cluster={options.cluster}", f"--workload={job.name}", "--force", *where])
    return f"deleted workload {job.name}"
