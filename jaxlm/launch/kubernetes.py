"""On Kubernetes: a JobSet through kubectl. The same for Google's xpk is in xpk.py."""

import json
import math
import re
import textwrap
from typing import Annotated, Any

from jaxlm.config import Range, config
from jaxlm.errors import ConfigError, LaunchError
from jaxlm.experiment import Experiment
from jaxlm.launch.job import (
    Env,
    Job,
    Rendered,
    Several,
    Stage,
    Task,
    Template,
    call,
    check_environment,
    config_file,
    need,
    template,
    trusted,
)

MANIFEST, SCRIPT, PORT = "jobset.yaml", "pod.sh", 8482
EXCLUSIVE = "alpha.jobset.sigs.k8s.io/exclusive-topology"
INSTALL = "install kubectl (https://kubernetes.io/docs/tasks/tools) and `gcloud container clusters get-credentials CLUSTER`"
SECRETS = "keep it in a Kubernetes secret and name that: --secret-env NAME=SECRET/KEY"


@config
class Gke:
    """A JobSet on a Kubernetes cluster, with TPU slices, GPUs or plain processors."""

    image: str
    """Container image that has jaxlm (launch/Dockerfile makes one)."""
    volume_claim: str
    """Persistent volume claim that all pods can mount at once; the run's directory lives there."""
    mount: str = "/runs"
    """Where it is mounted; the run's directory is MOUNT/NAME."""
    tpu: str = ""
    """TPU slices: the node pool's label cloud.google.com/gke-tpu-accelerator, for example tpu-v5-lite-podslice."""
    topology: str = ""
    """Chips of a slice, for example 4x4: the label cloud.google.com/gke-tpu-topology."""
    chips_per_host: Annotated[int, Range(1, 8)] = 4
    """TPU chips of a node."""
    slices: Annotated[int, Range(1)] = 1
    """TPU slices."""
    gpu: str = ""
    """GPUs: the label cloud.google.com/gke-accelerator, for example nvidia-h100-80gb; without --tpu."""
    gpus_per_node: Annotated[int, Range(1)] = 8
    """GPUs of a node."""
    nodes: Annotated[int, Range(1)] = 1
    """Nodes, one pod each, without --tpu; a slice's follow from its topology."""
    cpu: str = ""
    """Processors a pod asks for, for example 4; empty: the cluster's default."""
    memory: str = ""
    """Memory a pod asks for, for example 16Gi; empty: the cluster's default."""
    spot: bool = False
    """Take spot nodes, which can be preempted."""
    restarts: Annotated[int, Range(0)] = 20
    """Times that all pods are started again after one was lost or failed."""
    grace: Annotated[int, Range(1)] = 120
    """Seconds that a pod has to save when it is taken away."""
    namespace: str = "default"
    """Kubernetes namespace."""
    context: str = ""
    """kubectl's context; empty: the current one."""
    env: Env = ()
    secret_env: Several = ()
    """An environment variable from a Kubernetes secret, NAME=SECRET/KEY; repeatable."""

    def check(self) -> None:
        """Raise ConfigError where the devices asked for contradict one another."""
        if self.tpu and self.gpu:
            raise ConfigError("--tpu and --gpu are both given: a pod has one kind of accelerator")
        if bool(self.tpu) != bool(self.topology):
            raise ConfigError(
                "TPU slices need both --tpu and --topology, for example --tpu tpu-v5-lite-podslice --topology 4x4"
            )
        if self.topology and not re.fullmatch(r"\d+(x\d+){1,2}", self.topology):
            raise ConfigError(f"--topology {self.topology} must be chips by chips, for example 4x4 or 4x4x8")
        if self.topology and _chips(self) % self.chips_per_host:
            raise ConfigError(
                f"--topology {self.topology} has {_chips(self)} chips, which --chips-per-host {self.chips_per_host} does not "
                f"divide: give the chips of the node pool's machine type, for example {math.gcd(_chips(self), 4)}"
            )
        if self.slices > 1 and not self.tpu:
            raise ConfigError("--slices is for TPUs: with GPUs or processors, say --nodes")
        if not self.mount.startswith("/"):
            raise ConfigError(f"--mount {self.mount} must be an absolute path")


def _chips(options: Gke) -> int:
    return math.prod(int(size) for size in options.topology.split("x"))


def _hosts(options: Gke) -> int:
    return _chips(options) // options.chips_per_host if options.tpu else options.nodes


def num_devices(options: Gke, experiment: Experiment) -> int:
    """Return how many devices the job has, as JAX counts them."""
    if options.tpu:
        halves = 2 if re.search(r"v3|tpu7x", options.tpu) else 1
        return _chips(options) * options.slices * halves
    return options.nodes * (options.gpus_per_node if options.gpu else experiment.mesh.cpu_devices)


def settle(options: Gke, experiment: Experiment) -> Experiment:
    """Return the experiment as the pods read it."""
    return experiment


def render(options: Gke, task: Task) -> Rendered:
    """Return the manifest and the commands that replace the job by it."""
    values = {
        "name": task.name,
        "config": textwrap.indent(task.config.rstrip("\n"), " " * 4),
        "script": textwrap.indent(template(SCRIPT).rstrip("\n"), " " * 4),
        "restarts": options.restarts,
        "slices": options.slices,
        "hosts": _hosts(options),
        "grace": options.grace,
        "image": json.dumps(options.image),
        "mount": json.dumps(options.mount),
        "claim": json.dumps(options.volume_claim),
        "command": json.dumps(task.train("python3", "/etc/jaxlm/config.json", f"{options.mount}/{task.name}")),
        "environment": json.dumps(_environment(options, task)),
        "resources": json.dumps(_resources(options)),
        "node_selector": json.dumps(_node_selector(options)),
        "tolerations": json.dumps(_tolerations(options)),
        # A slice is a node pool, which its job must have to itself.
        "annotations": json.dumps({EXCLUSIVE: "cloud.google.com/gke-nodepool"} if options.tpu else {}),
    }  # JSON is YAML, whatever a value holds
    manifest = task.folder / MANIFEST
    text = Template(template(MANIFEST)).substitute(values)
    kubectl = _kubectl(options)
    commands = [
        [*kubectl, "delete", "jobset", task.name, "--ignore-not-found", "--cascade=foreground"],
        [*kubectl, "apply", f"--filename={manifest}"],
    ]
    return Rendered(config_file(task) | {manifest: text}, commands)


def _environment(options: Gke, task: Task) -> list[dict[str, Any]]:
    values = check_environment(options.env, SECRETS) | trusted(task)
    values |= {"JAXLM_RUN_DIR": f"{options.mount}/{task.name}", "JAXLM_STEPS": str(task.experiment.steps)}
    values.setdefault("JAXLM_CACHE", f"{options.mount}/cache")  # prepared data, once for all pods
    if options.tpu:
        values["JAXLM_CLUSTER"] = "auto"
    elif options.nodes > 1:
        # The first pod of the first job, by the name that JobSet gives it.
        values["JAXLM_COORDINATOR"] = f"{task.name}-train-0-0.{task.name}:{PORT}"
        values["JAXLM_NUM_PROCESSES"] = str(options.nodes)
    if not options.tpu and not options.gpu:
        values.setdefault("JAX_PLATFORMS", "cpu")
    entries: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in values.items()]
    if "JAXLM_COORDINATOR" in values:
        index = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
        entries.append({"name": "JAXLM_PROCESS_ID", "valueFrom": index})
    for entry in options.secret_env:
        found = re.fullmatch(r"([A-Za-z_][A-Za-z0-9_]*)=([a-z0-9.-]+)/([A-Za-z0-9._-]+)", entry)
        if found is None:
            raise ConfigError("--secret-env takes NAME=SECRET/KEY: the variable, the Kubernetes secret, and the key in it")
        name, secret, key = found.groups()
        entries.append({"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}})
    return entries


def _resources(options: Gke) -> dict[str, str]:
    wanted = {
        "google.com/tpu": str(options.chips_per_host) if options.tpu else "",
        "nvidia.com/gpu": str(options.gpus_per_node) if options.gpu else "",
        "cpu": options.cpu,
        "memory": options.memory,
    }
    return {name: amount for name, amount in wanted.items() if amount}


def _node_selector(options: Gke) -> dict[str, str]:
    wanted = {
        "cloud.google.com/gke-tpu-accelerator": options.tpu,
        "cloud.google.com/gke-tpu-topology": options.topology,
        "cloud.google.com/gke-accelerator": options.gpu,
        "cloud.google.com/gke-spot": "true" if options.spot else "",
    }
    return {name: value for name, value in wanted.items() if value}


def _tolerations(options: Gke) -> list[dict[str, str]]:
    keys = ["google.com/tpu"] * bool(options.tpu) + ["nvidia.com/gpu"] * bool(options.gpu)
    tolerated = [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in keys]
    spot = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
    return tolerated + [spot] * options.spot


def _kubectl(options: Gke) -> list[str]:
    return ["kubectl", *([f"--context={options.context}"] if options.context else []), f"--namespace={options.namespace}"]


def check(options: Gke) -> None:
    """Raise LaunchError where the target's program is missing."""
    need("kubectl", INSTALL)


def jobset_state(kubectl: list[str], name: str) -> str:
    """Return the state of a JobSet in words."""
    try:
        status = json.loads(call([*kubectl, "get", "jobset", name, "--output=json"], timeout=30)).get("status", {})
    except LaunchError as fault:
        if "NotFound" in str(fault):
            return "gone: the JobSet was deleted"
        raise
    if status.get("terminalState"):
        return status["terminalState"]
    jobs = status.get("replicatedJobsStatus", [])
    counts = {word: sum(job.get(word, 0) for job in jobs) for word in ("ready", "active", "failed")}
    shown = ", ".join(f"{count} {word}" for word, count in counts.items() if count) or "no pods yet"
    return f"{'RUNNING' if counts['ready'] else 'PENDING'} ({shown}, {status.get('restarts', 0)} restarts)"


def stage(state: str) -> Stage:
    """Return what a JobSet's state means for another job of the run."""
    return "done" if state == "Completed" else "live" if state.startswith(("RUNNING", "PENDING")) else "ended"


def jobset_logs(kubectl: list[str], name: str, container: str) -> list[str]:
    """Return the command that follows the output of a JobSet's process 0."""
    labels = f"jobset.sigs.k8s.io/jobset-name={name},jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
    return [*kubectl, "logs", "--follow", "--tail=100", f"--container={container}", f"--selector={labels}"]


def state(options: Gke, job: Job) -> str:
    """Return the JobSet's state."""
    return jobset_state(_kubectl(options), job.name)


def tail(options: Gke, job: Job) -> list[str]:
    """Return the command that follows process 0's output."""
    return jobset_logs(_kubectl(options), job.name, "train")


def cancel(options: Gke, job: Job) -> str:
    """Delete the JobSet and its configuration; return what was done."""
    call([*_kubectl(options), "delete", f"jobset/{job.name}", f"configmap/{job.name}", "--ignore-not-found"])
    return f"deleted JobSet {job.name}: its pods save within {options.grace} s"
