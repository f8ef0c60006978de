"""A real Slurm cluster on this host: jobs that are preempted, and that reach their time limit, go on to the same end."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from records import facts

SCRIPT = Path(__file__).with_name("slurm.sh")
STEPS = 48
MISSING = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"Slurm is not installed here (no {', '.join(MISSING)}): .ci/slurm installs it"),
    pytest.mark.skipif(os.geteuid() != 0, reason="the test's Slurm daemons run as root"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster of two nodes, n1 and n2, that programs reach by SLURM_CONF."""
    place = tmp_path_factory.mktemp("slurm")
    for _ in range(20):  # three ports in a row that nothing listens to
        with socket.socket() as first, socket.socket() as second, socket.socket() as third:
            first.bind(("", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("", port + 1))
                third.bind(("", port + 2))
                break
            except (OSError, OverflowError):
                continue
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(place / "slurm.conf"))
        try:
            # Daemons keep what they inherit: a pipe of pytest's would never close.
            started = subprocess.run(["bash", SCRIPT, "start", place, str(port)], stdout=subprocess.DEVNULL, timeout=60)
            assert started.returncode == 0, "\n".join(log.read_text()[-2000:] for log in place.glob("*.log"))
            yield place
        finally:
            subprocess.run(["bash", SCRIPT, "stop", place], timeout=60)


def launch(file, run_dir, *options):
    command = [sys.executable, "-m", "jaxlm", "launch", file, "--run-dir", run_dir, *options]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def wait(what, condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come within {seconds} s"
        time.sleep(0.05)


def job_of(folder):
    return json.loads((folder / "launch" / "job.json").read_text())["id"]


def log_of(folder):
    return folder / "launch" / f"slurm-{job_of(folder)}.log"


def state(job):
    asked = ["squeue", "--noheader", "--states=all", "--jobs", job, "--format=%T"]
    return subprocess.run(asked, capture_output=True, text=True).stdout.strip()


def test_a_requeued_job_ends_with_the_rows_of_an_uninterrupted_one(cluster, tiny, tmp_path):
    file, folder = tiny(STEPS), tmp_path / "requeued"
    settings = ("--env", "XLA_FLAGS=--xla_backend_optimization_level=0", "--env", f"JAXLM_CACHE={tmp_path}/cache")
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        settings += ("--env", f"{name}={os.environ[name]}")
    launch(file, folder, "--on", "slurm", "--nodes", 2, "--mesh.cpu-devices", 1, *settings)
    job = job_of(folder)
    wait("the first step", lambda: len(facts(folder)) >= 1 or state(job) == "FAILED")
    subprocess.run(["scontrol", "requeue", job], check=True)
    wait("a second start", lambda: "start 2: 2 processes on n[1-2]" in log_of(folder).read_text())
    wait("the end", lambda: state(job) in ("COMPLETED", "FAILED"))
    said = log_of(folder).read_text()
    assert state(job) == "COMPLETED" and "continuing at step" in said, said

    whole = tmp_path / "whole"
    launch(file, whole, "--on", "local", "--processes", 2, "--devices", 1, *settings)
    assert len(facts(whole)) == STEPS and facts(folder) == facts(whole)
    listed = subprocess.run(
        [sys.executable, "-m", "jaxlm", "jobs", tmp_path], capture_output=True, text=True, env=os.environ | {"COLUMNS": "300"}
    ).stdout
    assert listed.count("COMPLETED") == 2 and listed.count(f"{STEPS}/{STEPS}") == 2


# Stands for Python in the job: writes down its environment; the second time it trains to the end.
TRAINER = """#!/usr/bin/env bash
trap 'exit 0' TERM
run=${@: -1}
env >"$run/seen-$SLURM_PROCID-${SLURM_RESTART_COUNT:-0}"
if [ -n "$SLURM_RESTART_COUNT" ]; then mkdir -p "$run/checkpoints/12"; exit 0; fi
for _ in $(seq 600); do sleep 0.1; done
exit 1
"""


def test_near_its_time_limit_a_job_saves_and_queues_again(cluster, tiny, tmp_path, monkeypatch):
    trainer, secrets, folder = tmp_path / "trainer", tmp_path / "secrets", tmp_path / "limited"
    trainer.write_text(TRAINER)
    trainer.chmod(0o755)
    secrets.write_text("HF_TOKEN=hush\n")
    secrets.chmod(0o600)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "louder")
    options = ("--nodes", 2, "--time", "00:10:00", "--python", trainer, "--env-file", secrets, "--env", "COLOUR=light blue")
    launch(tiny(), folder, "--on", "slurm", *options)
    job = job_of(folder)
    wait("both processes", lambda: len(list(folder.glob("seen-*-0"))) == 2)
    # What Slurm itself does --save-seconds before the limit.
    subprocess.run(["scancel", "--batch", "--signal=USR1", job], check=True)
    wait("the end", lambda: len(list(folder.glob("seen-*-1"))) == 2 and state(job) != "RUNNING")
    wait("the end", lambda: state(job) not in ("RUNNING", "COMPLETING"))
    said = log_of(folder).read_text()
    assert state(job) == "COMPLETED" and "before step 12: queued again" in said, said
    for rank in range(2):
        seen = dict(line.split("=", 1) for line in (folder / f"seen-{rank}-1").read_text().splitlines() if "=" in line)
        assert seen["JAXLM_COORDINATOR"] == f"127.0.0.1:{20000 + int(job)}" and seen["SLURM_NTASKS"] == "2"
        assert seen["HF_TOKEN"] == "hush" and seen["COLOUR"] == "light blue" and seen["JAX_PLATFORMS"] == "cpu"
        assert "AWS_SECRET_ACCESS_KEY" not in seen
    assert not any("hush" in path.read_text() for path in (folder / "launch").iterdir())
