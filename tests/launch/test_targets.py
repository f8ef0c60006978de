"""What each target would run, said before it is run; every fault in words before anything is submitted."""

import json
import subprocess
import sys
import time

import pytest
import yaml
from kubeflow_trainer_api.models.io_k8s_api_core_v1_config_map import IoK8sApiCoreV1ConfigMap
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

from jaxlm.cli import main
from jaxlm.config import from_dict
from jaxlm.experiment import Experiment
from jaxlm.experiment_file import load_experiment
from jaxlm.function_file import full_digest
from jaxlm.launch.job import SECRET
from jaxlm.launch.jobs import _launched, _progress
from jaxlm.launch.start import TARGETS, target_of

STAGES = {
    "slurm": {
        "live": ("RUNNING", "PENDING (Priority)", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED", "REQUEUED", "SPECIAL_EXIT"),
        "done": ("COMPLETED",), "ended": ("CANCELLED by 1000", "CANCELLED+", "TIMEOUT", "gone: Slurm no longer knows the job"),
    },
    "tpu-vm": {
        "live": ("ACTIVE, running", "WAITING_FOR_RESOURCES", "PROVISIONING"), "done": ("ACTIVE, complete",),
        "ended": ("ACTIVE, ended with exit status 1", "ACTIVE, not started", "SUSPENDED", "gone: the slice was deleted"),
    },
    "gke": {"live": ("RUNNING (1 ready, 0 restarts)", "PENDING (no pods yet, 0 restarts)"), "done": ("Completed",),
            "ended": ("Failed", "gone: the JobSet was deleted")},
    "xpk": {"live": ("RUNNING (1 ready, 0 restarts)",), "done": ("Completed",), "ended": ("Failed",)},
    "local": {"live": ("RUNNING",), "done": (), "ended": ("COMPLETED", "FAILED: process 0 was killed by SIGKILL", "STOPPED")},
}  # fmt: skip


@pytest.mark.parametrize("target", STAGES)
def test_what_a_state_means_for_another_job(target):
    assert set(STAGES) == set(TARGETS)
    for stage, states in STAGES[target].items():
        assert [TARGETS[target][1].stage(state) for state in states] == [stage] * len(states)


def test_no_arguments_name_this_machine():
    assert target_of([]) is target_of(["--on", "local"]) is TARGETS["local"][0]


TPU_VM = ("--accelerator-type", "v5litepod-8", "--runtime-version", "v2-alpha-tpuv5-lite", "--zone", "us-west4-a")
GKE = ("--image", "example/jaxlm:1", "--volume-claim", "shared")
XPK = ("--cluster", "big", "--tpu-type", "v5litepod-8", "--image", "example/jaxlm:1", "--run-root", "/mnt/runs")


def run(capsys, *arguments):
    """Return (exit status, output, errors) of a command line."""
    try:
        status = main([str(a) for a in arguments])
    except SystemExit as stop:
        status = stop.code
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def dry(capsys, file, run_dir, *arguments):
    """Return the files and the commands' text of a dry run, which must leave nothing behind."""
    status, out, said = run(capsys, "launch", file, "--run-dir", run_dir, *arguments, "--dry-run")
    assert status == 0, said
    assert not run_dir.exists()
    *parts, commands = ("\n" + out).split("\n==> ")
    assert commands.startswith("commands\n")
    files = dict(part.split("\n", 1) for part in parts if part.strip())
    return {path.removeprefix(f"{run_dir}/launch/"): text for path, text in files.items()}, commands.removeprefix("commands\n")


SLURM = """env \\
  'A=b c' \\
  D=e \\
  JAXLM_RUN_DIR=FOLDER \\
  JAXLM_STEPS=99 \\
  JAXLM_PYTHON=/opt/python \\
  sbatch \\
  --parsable \\
  --job-name=my-run \\
  --output=FOLDER/launch/slurm-%j.log \\
  --nodes=2 \\
  --ntasks-per-node=1 \\
  --gpus-per-node=4 \\
  --time=1-04:00:00 \\
  --signal=B:USR1@120 \\
  --partition=gpu \\
  --export=HOME,PATH,A,D,JAXLM_RUN_DIR,JAXLM_STEPS,JAXLM_PYTHON \\
  FOLDER/launch/slurm.sh
"""


def test_slurm_says_what_it_submits(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("jaxlm.launch.slurm.INHERITED", ("HOME", "PATH", "NOT_SET"))
    arguments = ("--on", "slurm", "--nodes", 2, "--gpus-per-node", 4, "--time", "1-04:00:00", "--partition", "gpu")
    arguments += ("--env", "A=b c", "--env", "D=e", "--python", "/opt/python", "--steps", 99)
    files, commands = dry(capsys, tiny(), tmp_path / "My_run", *arguments)
    assert commands == SLURM.replace("FOLDER", str(tmp_path / "My_run"))
    assert from_dict(Experiment, json.loads(files["config.json"])).steps == 99
    assert subprocess.run(["bash", "-n"], input=files["slurm.sh"], text=True).returncode == 0


def test_slurm_submits_and_asks(tiny, tmp_path, capsys, programs):
    programs.add("sbatch", 'echo "4711;cluster"; cat "${@: -1}" >/dev/null')
    launch = ("launch", tiny(), "--on", "slurm", "--run-dir", tmp_path / "run")
    status, _, said = run(capsys, *launch)
    assert status == 0 and "submitted Slurm job 4711" in said
    assert programs.calls[0][:2] == ["sbatch", "--parsable"]
    record = json.loads((tmp_path / "run/launch/job.json").read_text())
    assert (record["target"], record["id"], record["options"]["nodes"]) == ("slurm", "4711", 1)
    assert load_experiment(tmp_path / "run/launch/config.json") == load_experiment(tiny())

    programs.add("squeue", "echo 'PENDING Resources'")
    assert "PENDING (Resources)" in " ".join(run(capsys, "jobs", tmp_path)[1].split())
    assert programs.calls[-1][1:4] == ["--noheader", "--jobs", "4711"]
    status, _, said = run(capsys, *launch)
    assert status == 2 and "has a job already" in said and "jaxlm jobs cancel" in said
    programs.add("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    programs.add("sacct", "echo 'CANCELLED by 1000'")
    assert "CANCELLED" in run(capsys, "jobs", tmp_path)[1]
    programs.add("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    programs.add("sacct", "echo 'Connection refused' >&2; exit 1")
    assert "Unable to contact slurm controller" in " ".join(run(capsys, "jobs", tmp_path)[1].split())
    programs.add("scancel")
    assert run(capsys, "jobs", "cancel", tmp_path / "run")[:2] == (0, "cancelled Slurm job 4711\n")
    assert programs.calls[-1] == ["scancel", "4711"]
    programs.add("sbatch", "echo 'sbatch: error: invalid partition specified: x' >&2; exit 1")
    programs.add("squeue")
    programs.add("sacct")
    status, _, said = run(capsys, *launch, "--partition", "x")
    assert status == 2 and "Slurm did not take the job" in said and "invalid partition" in said


# A slice in a folder: scp copies into its home, ssh runs there; states come from a list.
GCLOUD = r"""
next() { head -n 1 "$FAKE/$1"; sed -i 1d "$FAKE/$1"; }
case "$*" in
  *queued-resources\ describe*)
    now=$(next states)
    if [ "$now" = NONE ]; then echo "ERROR: NOT_FOUND: no such resource" >&2; exit 1; fi
    echo "$now" ;;
  *tpu-vm\ scp*) for word in "$@"; do if [ -f "$word" ]; then cp "$word" "$FAKE/home/jaxlm-run/"; fi; done ;;
  *tpu-vm\ ssh*) cd "$FAKE/home"; bash -c "$(sed 's/.*--command=//' <<<"$*")" ;;
esac
"""
# Dies at its first start; then trains to the end.
TRAINER = """#!/usr/bin/env bash
echo "$@" >>"$FAKE/trained"
if [ "$(wc -l <"$FAKE/trained")" -eq 1 ]; then exit 9; fi
echo "$JAXLM_CLUSTER $COLOUR" >"$FAKE/saw"
mkdir -p "${@: -1}/checkpoints/12"
"""


def test_tpu_vm_requests_starts_and_starts_again(tiny, tmp_path, capfd, programs, monkeypatch):
    monkeypatch.setenv("TPU_PAUSE", "0.3")
    programs.add("gcloud", GCLOUD)
    home = programs.folder / "home"
    home.mkdir()
    trainer = programs.folder / "trainer"
    trainer.write_text(TRAINER)
    trainer.chmod(0o755)
    states = ["NONE", "WAITING_FOR_RESOURCES", "ACTIVE", "ACTIVE", "SUSPENDED", "SUSPENDED", "NONE", "ACTIVE"] + ["ACTIVE"] * 30
    (programs.folder / "states").write_text("\n".join(states) + "\n")
    remote = tmp_path / "remote"
    arguments = ("launch", tiny(), "--on", "tpu-vm", "--run-dir", tmp_path / "run", *TPU_VM, "--remote-run-dir", remote)
    status, _, said = run(capfd, *arguments, "--python", trainer, "--spot", "--watch", "--env", "COLOUR=light blue")
    assert status == 0, said
    calls = [" ".join(call[1:]) for call in programs.calls]
    short = [call.split(" run ")[0].removeprefix("compute tpus ") for call in calls if "describe" not in call]
    assert short.count("queued-resources create") == 2 and short.count("queued-resources delete") == 2
    assert short[0] == "queued-resources create" and short[-1] == "queued-resources delete"
    where = "--zone=us-west4-a"
    create = "compute tpus queued-resources create run --node-id=run --accelerator-type=v5litepod-8 "
    assert create + f"--runtime-version=v2-alpha-tpuv5-lite --spot {where}" in calls
    assert f"compute tpus tpu-vm ssh run {where} --worker=all --command=bash jaxlm-run/tpu_worker.sh start" in calls
    assert (programs.folder / "trained").read_text().splitlines()[-1] == f"-m jaxlm train config.json --run-dir {remote}"
    assert (programs.folder / "saw").read_text() == "auto light blue\n"
    assert load_experiment(home / "jaxlm-run/config.json").steps == 12

    (programs.folder / "states").write_text("ACTIVE\nNONE\n")
    assert "ACTIVE, complete" in " ".join(run(capfd, "jobs", tmp_path)[1].split())
    assert "deleted" in " ".join(run(capfd, "jobs", tmp_path)[1].split())
    assert run(capfd, "jobs", "cancel", tmp_path / "run")[0] == 0
    assert programs.calls[-1] == ["gcloud", *"compute tpus queued-resources delete run".split(), where, "--force", "--quiet"]


def manifests(text):
    """Return a manifest's ConfigMap and JobSet, as the models of the published schemas took them."""
    given = list(yaml.safe_load_all(text))
    for model, values in zip((IoK8sApiCoreV1ConfigMap, JobsetV1alpha2JobSet), given, strict=True):
        assert model.from_dict(values).to_dict() == values  # a field that the schema does not have is lost
    return given


@pytest.mark.parametrize(
    ("asked", "hosts", "environment"),
    [
        (("--tpu", "tpu-v5-lite-podslice", "--topology", "2x4", "--spot"), 2, {"JAXLM_CLUSTER": "auto"}),
        (
            ("--gpu", "nvidia-h100-80gb", "--gpus-per-node", 4, "--nodes", 2),
            2,
            {"JAXLM_COORDINATOR": "my-run-train-0-0.my-run:8482", "JAXLM_NUM_PROCESSES": "2"},
        ),
        (("--mesh.cpu-devices", 4, "--cpu", "4", "--memory", "8Gi"), 1, {"JAX_PLATFORMS": "cpu"}),
    ],
)
def test_gke_renders_a_jobset_that_its_schema_takes(asked, hosts, environment, tiny, tmp_path, capsys):
    secret = ("--secret-env", "WANDB_API_KEY=wandb/key", "--env", "A=b: {c} #d")
    files, commands = dry(capsys, tiny(), tmp_path / "My_run", "--on", "gke", *GKE, *asked, *secret)
    settings, jobset = manifests(files["jobset.yaml"])
    assert settings["data"]["config.json"] == files["config.json"].rstrip("\n") + "\n"
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["completions"] == job["parallelism"] == hosts
    container = job["template"]["spec"]["containers"][0]
    given = {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}
    assert environment.items() <= given.items() and given["A"] == "b: {c} #d"
    assert given["WANDB_API_KEY"] == {"secretKeyRef": {"name": "wandb", "key": "key"}}
    assert ("JAXLM_PROCESS_ID" in given) == ("JAXLM_COORDINATOR" in given)
    assert container["args"][-2:] == ["--run-dir", "/runs/my-run"]
    spelled = " ".join(commands.replace("\\\n", " ").split())
    assert spelled.endswith(f" kubectl --namespace=default apply --filename={tmp_path}/My_run/launch/jobset.yaml")
    with pytest.raises(AssertionError):
        manifests(files["jobset.yaml"].replace("backoffLimit", "backofLimit"))


@pytest.mark.parametrize(("trainer", "status"), [("exit 0", 75), ("mkdir -p $R/checkpoints/12", 0), ("exit 2", 2), ("", 75)])
def test_a_pod_tells_an_early_stop_from_a_finished_run(trainer, status, tiny, tmp_path, capsys):
    files, _ = dry(capsys, tiny(), tmp_path / "run", "--on", "gke", *GKE)
    settings, jobset = manifests(files["jobset.yaml"])
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    script = tmp_path / "pod.sh"
    script.write_text(settings["data"]["pod.sh"])
    command = [str(script) if word == "/etc/jaxlm/pod.sh" else word for word in pod["containers"][0]["command"]]
    assert str(script) in command
    stopped = trainer or "trap 'exit 0' TERM; touch $R/up; while :; do sleep 0.05; done"
    environment = {"PATH": "/usr/bin:/bin", "R": str(tmp_path), "JAXLM_RUN_DIR": str(tmp_path), "JAXLM_STEPS": "12"}
    process = subprocess.Popen([*command, "bash", "-c", stopped], env=environment)
    if not trainer:  # the pod is taken away
        while not (tmp_path / "up").exists():
            time.sleep(0.02)
        process.terminate()
    assert process.wait(20) == status


def test_gke_applies_and_asks(tiny, tmp_path, capsys, programs):
    programs.add("kubectl", 'case "$*" in *get\\ jobset*) cat "$FAKE/status";; esac')
    status, _, said = run(capsys, "launch", tiny(), "--on", "gke", "--run-dir", tmp_path / "run", *GKE, "--context", "big")
    assert status == 0, said
    kubectl = ["kubectl", "--context=big", "--namespace=default"]
    assert [call[:4] for call in programs.calls] == [[*kubectl, "delete"], [*kubectl, "apply"]]
    answers = {
        '{"status": {"terminalState": "Completed"}}': "Completed",
        '{"status": {"restarts": 2, "replicatedJobsStatus": [{"ready": 2}]}}': "RUNNING (2 ready, 2 restarts)",
        "{}": "PENDING (no pods yet, 0 restarts)",
    }  # fmt: skip
    for answer, words in answers.items():
        (programs.folder / "status").write_text(answer)
        assert words in " ".join(run(capsys, "jobs", tmp_path)[1].split())
    assert run(capsys, "jobs", "cancel", tmp_path / "run")[0] == 0
    assert programs.calls[-1][3:6] == ["delete", "jobset/run", "configmap/run"]


def test_xpk_carries_the_configuration_in_its_command(tiny, tmp_path, capsys):
    _, commands = dry(capsys, tiny(), tmp_path / "run", "--on", "xpk", *XPK, "--slices", 1, "--storage", "runs", "--spot")
    *options, command = commands.strip().split(" \\\n  ")
    assert options == [
        "xpk workload create", "--cluster=big", "--workload=run", "--tpu-type=v5litepod-8", "--num-slices=1",
        "--docker-image=example/jaxlm:1", "--storage=runs", "--max-restarts=20", "--restart-on-exit-codes=1,75",
        "--termination-grace-period-seconds=120", "--env=JAXLM_CACHE=/mnt/runs/cache", "--env=JAXLM_CLUSTER=auto",
        "--env=JAXLM_RUN_DIR=/mnt/runs/run", "--env=JAXLM_STEPS=12", "--spot",
    ]  # fmt: skip
    carried = command.removeprefix("'--command=").split(" > ")[0]
    decoded = subprocess.run(["bash", "-c", carried], capture_output=True, text=True, check=True).stdout
    assert from_dict(Experiment, json.loads(decoded)) == load_experiment(tiny())
    assert command.endswith("exec bash /tmp/pod.sh python3 -m jaxlm train /tmp/jaxlm.json --run-dir /mnt/runs/run'")


REFUSALS = {
    "a target that is not there": (("--on", "slrum"), "Did you mean 'slurm'?"),
    "no sbatch": (("--on", "slurm"), "sbatch is not on this machine's PATH: run this on a login node"),
    "no gcloud": (("--on", "tpu-vm", *TPU_VM), "gcloud is not on this machine's PATH: install the Google Cloud CLI"),
    "no kubectl": (("--on", "gke", *GKE), "kubectl is not on this machine's PATH"),
    "no xpk": (("--on", "xpk", *XPK), "pip install xpk"),
    "a mesh that does not divide": (("--on", "slurm", "--nodes", 16), "set --batch-size 16 (the job would have 16 devices)"),
    "a slice too large": (("--on", "xpk", *XPK, "--slices", 3), "(the job would have 24 devices)"),
    "minutes for a time": (("--on", "slurm", "--time", "90"), "use HH:MM:SS"),
    "a time without end": (("--on", "slurm", "--time", "00:01:00"), "give more time"),
    "GPUs that do not divide": (("--on", "slurm", "--gpus-per-node", 8, "--tasks-per-node", 3), "--tasks-per-node 1"),
    "no zone": (("--on", "tpu-vm", *TPU_VM, "--zone", "Iowa"), "it reads like us-west4-a"),
    "half a slice": (("--on", "gke", *GKE, "--tpu", "tpu-v5-lite-podslice"), "--topology 4x4"),
    "hosts that do not divide": (
        ("--on", "gke", *GKE, "--tpu", "t", "--topology", "2x4", "--chips-per-host", 3), "does not divide",
    ),
    "no setting": (("--on", "local", "--env", "COLOUR"), "NAME=VALUE"),
    "the launcher's own setting": (("--on", "local", "--env", "JAXLM_COORDINATOR=x:1"), "leave it out"),
    "a missing script": (("--on", "slurm", "--setup", "/no/such.sh"), "there is no such file"),
    "a run of another": (("--on", "local", "--init-from", "runs/nope"), "runs/nope is not a run directory"),
    "a run of another on a cluster": (("--on", "slurm", "--init-from", "runs/nope"), "runs/nope is not a run directory"),
    "a source of no kind": (("--on", "gke", *GKE, "--data.sources", "txt:book"), "unknown kind of source"),
    "a missing source here": (("--on", "local", "--data.sources", "text:/no/book.txt"), "there is no such file"),
    "a model that cannot learn": (
        ("--on", "gke", *GKE, "--model.moe.num-experts", 4, "--model.moe.renormalize"), "--model.moe.no-renormalize",
    ),
    "an option of another target": (("--on", "gke", *GKE, "--partition", "gpu"), "partition"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_come_first_and_say_the_fix(case, tiny, tmp_path, capsys, monkeypatch):
    arguments, fix = REFUSALS[case]
    file = tiny()
    monkeypatch.setenv("PATH", str(tmp_path))
    status, out, said = run(capsys, "launch", file, "--run-dir", tmp_path / "run", *arguments)
    assert status == 2 and fix in " ".join((out + said).split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("target", "way"), [
    (("slurm",), "--env-file PATH"), (("gke", *GKE), "--secret-env NAME=SECRET/KEY"),
    (("tpu-vm", *TPU_VM), "Secret Manager"), (("xpk", *XPK), "Secret Manager"), (("local",), "export it in your shell"),
])  # fmt: skip
def test_secrets_are_refused_and_not_repeated(target, way, tiny, tmp_path, capsys):
    status, out, said = run(
        capsys, "launch", tiny(), "--run-dir", tmp_path / "run", "--on", *target, "--env", "WANDB_API_KEY=hush", "--dry-run"
    )
    assert status == 2 and way in said and "hush" not in out + said
    named = ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "key", "OPENAI_APIKEY", "KEYS"]
    assert all(map(SECRET.search, named)) and not any(map(SECRET.search, ["MONKEY", "KEYBOARD", "XLA_FLAGS"]))


def test_a_file_of_secrets_is_for_its_owner(tiny, tmp_path, capsys):
    secrets = tmp_path / "secrets"
    secrets.write_text("HF_TOKEN=hush\n")
    secrets.chmod(0o644)
    arguments = ("launch", tiny(), "--run-dir", tmp_path / "run", "--on", "slurm", "--env-file", secrets, "--dry-run")
    assert f"chmod 600 {secrets}" in run(capsys, *arguments)[2]
    secrets.chmod(0o600)
    status, out, said = run(capsys, *arguments)
    assert status == 0 and f"JAXLM_ENV_FILE={secrets}" in out and "hush" not in out + said


def test_a_resolved_configuration_is_an_experiment(tiny, tmp_path, capsys):
    files, _ = dry(capsys, tiny(), tmp_path / "run", "--model.num-layers", 3)
    saved = tmp_path / "config.json"
    saved.write_text(files["config.json"])
    assert load_experiment(saved).model.num_layers == 3
    for text, words in (("{", "is not JSON"), ('{"nam": 1}', "Did you mean 'name'?"), ("[]", "must be an object")):
        saved.write_text(text)
        assert words in run(capsys, "diff", saved, saved)[2]
    assert "no experiment file" in run(capsys, "diff", tmp_path / "config.jsn", saved)[2]


def test_a_changed_configuration_is_refused_before_the_queue(tiny, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    files, _ = dry(capsys, tiny(), tmp_path / "other")
    (folder / "config.json").write_text(files["config.json"])
    (folder / "metrics.jsonl").write_text("{}\n")
    arguments = ("launch", tiny(), "--run-dir", folder, "--on", "slurm", "--seed", 1, "--dry-run")
    assert "seed: 0 in the run, 1 now" in run(capsys, *arguments)[2]
    assert "JAXLM_TRAIN_ARGS=--allow-config-change" in run(capsys, *arguments, "--allow-config-change")[1]
    other = (*arguments, "--allow-config-change", "--optimizer.kind", "lion")
    assert "optimizer.kind cannot change" in run(capsys, *other)[2]
    (folder / "run.json").write_text('{"starts": [{"imported": {"format": "gguf"}}]}')
    assert "was imported" in run(capsys, *arguments)[2]


def test_steps_are_those_of_whole_checkpoints(tmp_path):
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    (tmp_path / "checkpoints" / "70").write_text("no checkpoint")
    assert _progress(tmp_path) == "5/?"


def test_jobs_where_there_are_none(tmp_path, capsys):
    assert "no run under" in run(capsys, "jobs", tmp_path)[1]
    assert "there is no folder" in run(capsys, "jobs", tmp_path / "none")[2]
    assert "was not started by `jaxlm launch`" in run(capsys, "jobs", "tail", tmp_path)[2]
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch/job.json").write_text('{"target": "moon"}')
    assert "cannot be read" in run(capsys, "jobs", "cancel", tmp_path)[2]


def test_python_of_this_environment_is_the_one_that_runs(tiny, tmp_path, capsys):
    _, commands = dry(capsys, tiny(), tmp_path / "run", "--processes", 2, "--devices", 2)
    assert commands.count(f"{sys.executable} ") == 2 and commands.count("JAXLM_PROCESS_ID=1") == 1


def test_a_function_must_be_where_the_job_is(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rule = "def route(logits, token):\n    return logits\n"
    (tmp_path / "rule.py").write_text(rule)
    moe = ("--model.moe.num-experts", 2, "--model.moe.router")
    status, _, said = run(
        capsys, "launch", tiny(), "--on", "gke", "--run-dir", tmp_path / "run", *GKE, *moe, "rule.py:route", "--dry-run"
    )
    assert status == 2 and "the job does not get rule.py" in said and "/src/functions/rule.py:route" in said
    _, commands = dry(capsys, tiny(), tmp_path / "run", "--on", "slurm", *moe, "rule.py:route")
    assert f"JAXLM_TRUSTED={full_digest('rule.py:route')}" in commands and ",JAXLM_TRUSTED" in commands
    outside = tmp_path / "outside"
    outside.mkdir()
    monkeypatch.chdir(outside)
    files, _ = dry(capsys, tiny(), tmp_path / "run", "--on", "gke", *GKE, *moe, f"{tmp_path}/rule.py:route")
    assert full_digest(f"{tmp_path}/rule.py:route") in files["jobset.yaml"]


def test_jobs_are_found_at_any_depth_and_not_in_checkpoints(tmp_path):
    places = ["", "run", "group/run", "sweeps/trials/0a1b", "run/checkpoints/20", ".trash/run"]
    for place in places:
        (tmp_path / place / "launch").mkdir(parents=True)
        (tmp_path / place / "launch" / "job.json").write_text("{}")
    assert sorted(_launched(tmp_path)) == sorted(tmp_path / place for place in places[:4])
