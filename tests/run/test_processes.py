"""Several processes are one run: the same rows, whoever dies, stops or is missing, and a fault reaches all."""

import dataclasses
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from records import facts

from jaxlm.errors import ConfigError, ProcessError
from jaxlm.experiment import CheckpointConfig, EvaluationConfig, SampleConfig
from jaxlm.experiment_file import load_experiment
from jaxlm.run import processes
from jaxlm.run.loop import train
from jaxlm.run.metrics import read_rows
from jaxlm.run.processes import Settings, read_settings

STEPS = 12
# As `small` makes it.
EXPERIMENT = ["--steps", "12", "--checkpoint.every", "4", "--evaluation.every", "6", "--sample.tokens", "0"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def start(experiment_file, tmp_path_factory):
    """Return start(folder, *options, count, devices, small), which starts the processes of a run.

    Each option may be one a process; process `small` finds no room for its part of a checkpoint.
    """
    logs = tmp_path_factory.mktemp("logs")
    started = []

    def start(folder, *options, count=2, devices=4, small=None):
        where = f"127.0.0.1:{free_port()}"
        group = []
        for index in range(count):
            given = [option[index] if isinstance(option, tuple) else option for option in options]
            command = [sys.executable, "-m", "jaxlm", "train", str(experiment_file), "--run-dir", str(folder), *EXPERIMENT]
            command += ["--mesh.cpu-devices", str(devices), "--log.no-tensorboard", *given]
            if index == small:  # no file of this process can be longer than 32 KiB
                command = ["bash", "-c", 'ulimit -f 32 && exec "$@"', "bash", *command]
            settings = {"JAXLM_COORDINATOR": where, "JAXLM_NUM_PROCESSES": str(count), "JAXLM_PROCESS_ID": str(index)}
            with (logs / str(len(started))).open("w") as log:
                process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | settings)
            started.append(process)
            group.append((process, logs / str(len(started) - 1)))
        return group

    yield start
    for process in started:
        process.kill()
        process.wait()


def ended(group, within):
    """Wait for all processes; return (exit statuses, outputs)."""
    until = time.monotonic() + within
    for process, _ in group:
        process.wait(max(0.0, until - time.monotonic()))
    return [process.returncode for process, _ in group], [log.read_text() for _, log in group]


def until_new_steps(folder, count, group):
    before = len(facts(folder))
    while len(facts(folder)) < before + count:
        assert all(process.poll() is None for process, _ in group), [log.read_text() for _, log in group]
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """A run of two processes with four devices each."""
    folder = tmp_path_factory.mktemp("many") / "whole"
    statuses, outputs = ended(start(folder), within=240)
    assert statuses == [0, 0], outputs
    assert "step 12/12" in outputs[0] and "step" not in outputs[1] and "error" not in outputs[1]
    return folder


def assert_near(ours, theirs):
    assert len(ours) == len(theirs) == STEPS + 2
    for a, b in zip(ours, theirs, strict=True):
        assert a.get("batch_hash") == b.get("batch_hash")
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["bits_per_byte"] == pytest.approx(b["bits_per_byte"], rel=1e-5)


def small(experiment_file):
    """Return the experiment that `start` runs, for this process."""
    return dataclasses.replace(
        load_experiment(experiment_file), steps=STEPS, sample=SampleConfig(tokens=0),
        checkpoint=CheckpointConfig(every=4, keep=3), evaluation=EvaluationConfig(every=6, batches=2),
    )  # fmt: skip


def test_two_processes_are_as_one_and_one_continues_what_two_began(whole, experiment_file, tmp_path):
    alone = train(small(experiment_file), tmp_path / "alone")
    assert_near([row for row in alone if row["split"] != "goodput"], facts(whole))
    shutil.copytree(whole, tmp_path / "moved")
    for step in (8, 12):
        shutil.rmtree(tmp_path / "moved" / "checkpoints" / str(step))
    train(small(experiment_file), tmp_path / "moved")
    assert_near(facts(tmp_path / "moved"), facts(whole))
    assert facts(tmp_path / "moved")[:4] == facts(whole)[:4]  # not done again


def test_stopped_killed_and_continued_the_rows_are_the_same_to_the_bit(whole, start, tmp_path):
    seed = int(os.environ.get("JAXLM_KILL_SEED", time.time_ns() % 10_000))
    rng, folder = random.Random(seed), tmp_path / "run"
    group = start(folder)
    until_new_steps(folder, rng.randrange(1, 3), group)
    group[1][0].send_signal(signal.SIGTERM)  # all save and stop, whoever is asked
    statuses, outputs = ended(group, within=60)
    assert statuses == [0, 0] and "stopped and saved after step" in outputs[0], outputs

    group, victim = start(folder), rng.randrange(2)
    until_new_steps(folder, rng.randrange(1, 3), group)
    group[victim][0].send_signal(signal.SIGKILL)
    statuses, outputs = ended(group, within=60)
    assert statuses[victim] == -signal.SIGKILL and statuses[1 - victim] not in (0, -signal.SIGKILL), f"seed {seed}"
    # Process 0 is the leader. Where the survivor waits at a barrier of Orbax's, no connection breaks, and JAX itself ends it
    # for want of heartbeats.
    named = ("process 1 has failed: it died", "(stopped sending heartbeats):\n1") if victim else ("the leader",)
    assert any(words in outputs[1 - victim] for words in named), f"seed {seed}: {outputs}"

    statuses, outputs = ended(start(folder), within=240)
    assert statuses == [0, 0], outputs
    assert facts(folder) == facts(whole), f"differs with JAXLM_KILL_SEED={seed}"
    kinds = [row["seconds"] for row in read_rows(folder / "metrics.jsonl") if row["split"] == "goodput"]
    assert any(seconds["redone"] > 0 for seconds in kinds)


def test_a_fault_of_one_process_reaches_all_before_any_device_is_used(start, tmp_path):
    began = time.monotonic()
    statuses, outputs = ended(start(tmp_path / "run", "--model.hidden-size", ("32", "33"), devices=1), within=120)
    assert statuses == [2, 2] and time.monotonic() - began < 100
    assert "process 1: model.hidden_size = 33 does not divide" in outputs[0]
    assert "error" not in outputs[1] and not (tmp_path / "run").exists()


def test_a_save_that_fails_for_one_process_ends_all_at_once(start, tmp_path):
    """Orbax alone has the others wait for five minutes and more for the part that is not there."""
    began = time.monotonic()
    statuses, outputs = ended(start(tmp_path / "run", devices=1, small=1), within=120)
    assert statuses == [2, 2] and time.monotonic() - began < 100, outputs
    assert "process 1 has failed: could not write a checkpoint" in outputs[0]
    assert "process 1: error: could not write a checkpoint" in outputs[1] and "File too large" in outputs[1]


def test_a_coordinator_that_is_not_there_is_named():
    settings = Settings(f"127.0.0.1:{free_port()}", 2, 1, join_seconds=1, heartbeat_seconds=30)
    with pytest.raises(
        ProcessError, match=rf"process 1 of 2 could not reach the coordinator at {settings.coordinator} within 1 s"
    ):
        processes.join(settings)
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="process 0 cannot listen on port .* choose another port"):
            processes.join(settings._replace(coordinator=f"127.0.0.1:{taken.getsockname()[1]}", index=0))


ADDRESS = {"JAXLM_COORDINATOR": "n1:99"}
THIRD = ADDRESS | {"JAXLM_NUM_PROCESSES": "4", "JAXLM_PROCESS_ID": "2"}


def test_settings():
    assert read_settings({}) is None
    assert read_settings(THIRD) == Settings("n1:99", 4, 2, 300, 30)
    assert read_settings(ADDRESS | {"SLURM_NTASKS": "4", "SLURM_PROCID": "2"}) == read_settings(THIRD)
    assert read_settings(THIRD | {"SLURM_PROCID": "9"}) == read_settings(THIRD)
    assert read_settings(THIRD | {"JAXLM_JOIN_TIMEOUT": "7", "JAXLM_HEARTBEAT_TIMEOUT": "5"})[3:] == (7, 5)
    assert read_settings({"JAXLM_CLUSTER": "auto"}) == Settings("", 0, 0, 300, 30)
    assert read_settings(ADDRESS | {"JAXLM_NUM_PROCESSES": "1", "JAXLM_PROCESS_ID": "0"}) is None


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (ADDRESS, "without JAXLM_NUM_PROCESSES and JAXLM_PROCESS_ID"),
        (ADDRESS | {"JAXLM_NUM_PROCESSES": "2"}, "without JAXLM_PROCESS_ID"),
        (ADDRESS | {"SLURM_PROCID": "0"}, "without SLURM_NTASKS"),
        ({"JAXLM_PROCESS_ID": "1"}, "JAXLM_PROCESS_ID without JAXLM_COORDINATOR"),
        (THIRD | {"JAXLM_PROCESS_ID": "two"}, "JAXLM_PROCESS_ID=two is not a whole number of 0 or more"),
        (THIRD | {"JAXLM_PROCESS_ID": "4"}, "not below JAXLM_NUM_PROCESSES=4: processes are numbered 0 to 3"),
        (THIRD | {"JAXLM_NUM_PROCESSES": "0"}, "whole number of 1 or more"),
        (THIRD | {"JAXLM_COORDINATOR": "n1"}, "no address: set it to HOST:PORT"),
        (THIRD | {"JAXLM_COORDINATOR": "n1:99999"}, "no address"),
        (THIRD | {"JAXLM_JOIN_TIMEOUT": "soon"}, "JAXLM_JOIN_TIMEOUT=soon"),
        ({"JAXLM_CLUSTER": "slurm"}, 'set it to "auto"'),
    ],
)
def test_faults_in_the_settings(environ, message):
    with pytest.raises(ConfigError, match=message):
        read_settings(environ)
