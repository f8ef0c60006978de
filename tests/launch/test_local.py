"""Runs on this machine: who is told of what, and what is written down."""

import json
import os

import pytest

from jaxlm.errors import ConfigError, LaunchError
from jaxlm.experiment_file import load_experiment
from jaxlm.launch import local
from jaxlm.launch.job import Task, new_job, read_job

# Stands for Python: says what it was told, and fails as often as the test wants.
TRAINER = """#!/usr/bin/env bash
echo "$JAXLM_PROCESS_ID of $JAXLM_NUM_PROCESSES at $JAXLM_COORDINATOR on $JAX_PLATFORMS $COLOUR: $*"
starts=$(dirname "$4")/starts-$JAXLM_PROCESS_ID
echo start >>"$starts"
if [ "$JAXLM_PROCESS_ID" = "$WHO" ] && [ "$(wc -l <"$starts")" -le "$TIMES" ]; then exit "$STATUS"; fi
"""


@pytest.fixture
def trained(tiny, tmp_path, monkeypatch):
    """Return a function that runs stand-ins for processes, of which WHO fails TIMES times, and returns the task."""
    trainer = tmp_path / "trainer"
    trainer.write_text(TRAINER)
    trainer.chmod(0o755)
    monkeypatch.setattr(local, "PYTHON", str(trainer))

    def run(options, **failing):
        for name, value in failing.items():
            monkeypatch.setenv(name, str(value))
        task = Task(local.settle(options, load_experiment(tiny())), tmp_path / "run")
        task.folder.mkdir(parents=True)
        (task.folder / "config.json").write_text(task.config)
        local.run(options, task, new_job(task, "local", options, str(os.getpid()), local.render(options, task).commands))
        return task

    return run


def starts(task_folder, number):
    return (task_folder / f"starts-{number}").read_text().count("start")


def test_each_process_is_told_who_it_is(trained, capfd):
    task = trained(local.Local(processes=2, devices=3, env=("COLOUR=light blue",)))
    said = [(task.folder / f"process-{k}.log").read_text().splitlines()[1].split(" ") for k in range(2)]
    assert said[0][:3] == ["0", "of", "2"] and said[1][:3] == ["1", "of", "2"]
    assert said[0][4] == said[1][4] and said[0][4].startswith("127.0.0.1:")
    assert said[0][5:9] == ["on", "cpu", "light", "blue:"]
    assert json.loads((task.folder / "config.json").read_text())["mesh"]["cpu_devices"] == 3
    assert "0 of 2" in capfd.readouterr().out
    assert local.state(local.Local(), read_job(task.run_dir)) == "COMPLETED"


def test_a_set_in_which_one_died_is_started_again(trained, capfd):
    task = trained(local.Local(processes=2, devices=1, restarts=2), WHO=1, TIMES=2, STATUS=7)
    assert [starts(task.folder, k) for k in range(2)] == [3, 3]
    assert "process 1 ended with exit status 7: starting all again (1 more times at most)" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("failing", "words", "times"),
    [
        ({"WHO": 1, "TIMES": 9, "STATUS": 7}, "process 1 of 2 ended with exit status 7; its last lines", 2),
        ({"WHO": 0, "TIMES": 9, "STATUS": 2}, "for the reason given above", 1),  # trying again would fail again
    ],
)
def test_what_fails_in_the_end_is_told(failing, words, times, trained, tmp_path):
    with pytest.raises(LaunchError, match=words):
        trained(local.Local(processes=2, devices=1, restarts=1), **failing)
    assert starts(tmp_path / "run/launch", 1) == times
    assert "FAILED: process" in local.state(local.Local(), read_job(tmp_path / "run"))


def test_gpus_are_shared_out(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,4,5")
    task = Task(load_experiment(tiny()), tmp_path)
    commands = local.render(local.Local(processes=2), task).commands
    assert ["CUDA_VISIBLE_DEVICES=0,1" in command for command in commands] == [True, False]
    assert "CUDA_VISIBLE_DEVICES=4,5" in commands[1]
    assert local.num_devices(local.Local(processes=2), task.experiment) == 4
    with pytest.raises(ConfigError, match="cannot share out the 4 GPUs"):
        local.render(local.Local(processes=3), task)
