"""What a run that fails leaves behind, and when it goes."""

import dataclasses
import json

import pytest

from jaxlm.errors import ConfigError
from jaxlm.experiment_file import load_experiment
from jaxlm.run import loop
from jaxlm.run.failure import FAILURE, failure_recorded
from jaxlm.run.loop import train


def test_a_fault_is_written_down_and_goes_on(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 6, "split": "train"}\n{"step": 5, "split": "validation"}\n')
    with pytest.raises(ZeroDivisionError), failure_recorded(tmp_path):
        1 / 0  # noqa: B018
    said = json.loads((tmp_path / FAILURE).read_text())
    assert (said["kind"], said["message"], said["step"]) == ("ZeroDivisionError", "division by zero", 7)
    assert said["traceback"][-1] == "ZeroDivisionError: division by zero" and said["time"].startswith("20")


def test_a_broken_record_does_not_take_the_place_of_the_fault(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 6, "split": "train"}\nnothing\n{"step": 7, "split": "validation"}\n')
    with pytest.raises(ZeroDivisionError), failure_recorded(tmp_path):
        1 / 0  # noqa: B018
    assert json.loads((tmp_path / FAILURE).read_text())["kind"] == "ZeroDivisionError"


def test_being_told_to_stop_is_no_failure_nor_is_a_full_disk_a_second_one(tmp_path):
    with pytest.raises(KeyboardInterrupt), failure_recorded(tmp_path):
        raise KeyboardInterrupt
    assert not (tmp_path / FAILURE).exists()
    with pytest.raises(ZeroDivisionError), failure_recorded(tmp_path / "gone"):
        1 / 0  # noqa: B018


def test_a_run_that_fails_says_so_until_it_begins_again(experiment_file, tmp_path, monkeypatch):
    experiment = load_experiment(experiment_file)
    with monkeypatch.context() as broken:
        broken.setattr(loop, "_run", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(experiment, tmp_path)
    assert json.loads((tmp_path / FAILURE).read_text())["kind"] == "ZeroDivisionError"
    monkeypatch.setattr(loop, "_run", lambda *_: [])
    train(experiment, tmp_path)
    assert not (tmp_path / FAILURE).exists()


def test_a_start_that_is_refused_does_not_mark_the_run_that_is_there(experiment_file, tmp_path, monkeypatch):
    experiment = load_experiment(experiment_file)
    monkeypatch.setattr(loop, "_run", lambda *_: [])
    train(experiment, tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 6, "split": "train"}\n')
    with pytest.raises(ConfigError, match="another configuration"):
        train(dataclasses.replace(experiment, seed=1), tmp_path)
    assert not (tmp_path / FAILURE).exists()
