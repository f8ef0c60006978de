"""On this machine: one process, or several that share its processor or its accelerators."""

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from jaxlm import locks
from jaxlm.config import Range, config
from jaxlm.errors import ConfigError, LaunchError
from jaxlm.experiment import Experiment
from jaxlm.launch.job import CONFIG, FOLDER, Env, Job, Rendered, Stage, Task, check_environment, config_file
from jaxlm.launch.supervise import Processes

LOCK = "lock"
PYTHON = sys.executable  # of the processes
SECRETS = "export it in your shell instead, from where the processes inherit it"


@config
class Local:
    """Processes on this machine."""

    processes: Annotated[int, Range(1, 256)] = 1
    """Processes; the host's GPUs are shared out among them."""
    devices: Annotated[int, Range(0, 256)] = 0
    """Virtual CPU devices of each process; 0: the host's accelerators, or mesh.cpu_devices of its processor."""
    restarts: Annotated[int, Range(0)] = 0
    """Times that all are started again after one died; a fault of the configuration is not tried again."""
    grace: Annotated[float, Range(1)] = 30.0
    """Seconds between SIGTERM and SIGKILL for the others once one has died."""
    env: Env = ()


def num_devices(options: Local, experiment: Experiment) -> int | None:
    """Return how many devices the processes have together, or None where the processes themselves must count."""
    if options.devices:
        return options.processes * options.devices
    gpus = visible_gpus()
    if gpus:
        return len(gpus)
    has_tpu = os.path.exists("/dev/accel0") or os.path.exists("/dev/vfio/0")
    return None if has_tpu and os.environ.get("JAX_PLATFORMS") != "cpu" else options.processes * experiment.mesh.cpu_devices


def settle(options: Local, experiment: Experiment) -> Experiment:
    """Return the experiment as its processes will read it: `devices` is theirs."""
    if not options.devices:
        return experiment
    return dataclasses.replace(experiment, mesh=dataclasses.replace(experiment.mesh, cpu_devices=options.devices))


def render(options: Local, task: Task) -> Rendered:
    """Return the file and the processes' command, each with its environment; the port is drawn at the start."""
    check_environment(options.env, SECRETS)
    command = task.train(PYTHON, task.folder / CONFIG, task.run_dir)
    commands = []
    for settings in _environments(options, port="PORT"):
        commands.append((["env", *(f"{name}={value}" for name, value in settings.items())] if settings else []) + command)
    return Rendered(config_file(task), commands)


def _environments(options: Local, port: int | str) -> list[dict[str, str]]:
    """Return what each process's environment has beyond this one's."""
    common = check_environment(options.env, SECRETS)
    if options.devices:
        common["JAX_PLATFORMS"] = "cpu"
    if options.processes == 1:
        return [common]
    gpus = [] if options.devices else visible_gpus()
    each = len(gpus) // options.processes
    if gpus and each * options.processes != len(gpus):
        raise ConfigError(
            f"--processes {options.processes} cannot share out the {len(gpus)} GPUs of this machine evenly: "
            f"take a divisor of {len(gpus)}, or virtual devices with --devices"
        )
    common |= {"JAXLM_COORDINATOR": f"127.0.0.1:{port}", "JAXLM_NUM_PROCESSES": str(options.processes)}
    return [
        common
        | {"JAXLM_PROCESS_ID": str(k)}
        | ({"CUDA_VISIBLE_DEVICES": ",".join(gpus[k * each : (k + 1) * each])} if gpus else {})
        for k in range(options.processes)
    ]


def visible_gpus() -> list[str]:
    """Return the GPUs that a process started here would see, as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    if os.environ.get("JAX_PLATFORMS", "") == "cpu" or shutil.which("nvidia-smi") is None:
        return []
    asked = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.stdout.split() if done.returncode == 0 else []


def run(options: Local, task: Task, job: Job) -> None:
    """Run the processes until all are done, or raise LaunchError with who died, how, and its last words."""
    with _held(task.folder):
        job.write()
        death = None
        for left in range(options.restarts, -1, -1):
            environments = [os.environ | own for own in _environments(options, _free_port())]
            command = task.train(PYTHON, task.folder / CONFIG, task.run_dir)
            processes = Processes(command, environments, task.folder, options.grace)
            death = processes.run()
            if death is None or processes.stopped or death.status == 2:
                break
            if left:
                print(f"process {death.number} {death.how}: starting all again ({left} more times at most)", flush=True)
        stopped = processes.stopped and not any(processes.statuses)
        failed = death is not None and not stopped
        ended = f"FAILED: process {death.number} {death.how}" if failed else "STOPPED" if stopped else "COMPLETED"
        dataclasses.replace(job, ended=ended).write()
    if failed and death.status == processes.statuses[0] == 2:  # process 0 has said in words what is wrong
        raise LaunchError(f"the run ended for the reason given above and in {processes.paths[0]}")
    if failed:
        last = f"; its last lines ({death.log}):\n{death.last_lines}" if death.last_lines else f" ({death.log})"
        raise LaunchError(f"process {death.number} of {options.processes} {death.how}{last}")


def _free_port() -> int:
    """Return a port that nothing listens to; another program could take it before the coordinator does, which then says so."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold the lock that says that the launcher lives; the kernel lets go of it however the launcher ends."""
    lock = locks.take(folder / LOCK)
    if lock is None:
        raise LaunchError(f"{folder.parent} is being trained by another `jaxlm launch`: wait for it")
    with lock:
        yield


def _alive(job: Job) -> bool:
    path = job.run_dir / FOLDER / LOCK
    try:
        return locks.is_taken(path)
    except OSError as fault:
        raise LaunchError(f"{path} cannot be looked at: {fault.strerror}") from fault


def state(options: Local, job: Job) -> str:
    """Return RUNNING, or how it ended."""
    if _alive(job):
        return "RUNNING"
    return job.ended or "ended with its launcher: this machine or the launcher was stopped"


def stage(state: str) -> Stage:
    """Return what a state means for another job of the run, whose directory says itself whether it is finished."""
    return "live" if state == "RUNNING" else "ended"


def tail(options: Local, job: Job) -> list[str]:
    """Return the command that follows the job's output."""
    return ["tail", "-n", "100", "-F", str(job.run_dir / FOLDER / "process-0.log")]


def cancel(options: Local, job: Job) -> str:
    """Ask the launcher to stop its processes, which save first; return what was done."""
    if not _alive(job):
        raise LaunchError(f"{job.run_dir} is not running: {state(options, job)}")
    os.kill(int(job.id), signal.SIGTERM)
    return f"asked process {job.id} to save and stop"
