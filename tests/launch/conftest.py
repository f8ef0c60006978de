"""An experiment to launch, and programs that stand in for schedulers: they record what they are asked."""

import os

import pytest

TINY = """
from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.experiment import CheckpointConfig, EvaluationConfig, Experiment, LogConfig, SampleConfig
from jaxlm.model.config import ModelConfig
from jaxlm.train.optimizer import OptimizerConfig


def experiment():
    return Experiment(
        name="tiny",
        steps=STEPS,
        batch_size=8,
        model=ModelConfig(vocab_size=259, num_layers=2, hidden_size=32, num_heads=4, intermediate_size=64, max_length=64),
        data=DataConfig(
            sources=("text:TEXT",),
            validation_fraction=0.0,
            sequence_length=32,
            tokenizer=TokenizerConfig(kind="byte", vocab_size=259),
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=3),
        evaluation=EvaluationConfig(every=0, batches=1),
        checkpoint=CheckpointConfig(every=5),
        sample=SampleConfig(tokens=0),
        log=LogConfig(tensorboard=False),
    )
"""

# Writes down its arguments, then runs what the test has put beside it under its name.
STAND_IN = """#!/usr/bin/env bash
printf '%s\\x1f' "${0##*/}" "$@" >>"$FAKE/calls"
printf '\\x1e' >>"$FAKE/calls"
source "$FAKE/${0##*/}.answer"
"""


@pytest.fixture
def tiny(tmp_path):
    """Return a function that writes the experiment with this many steps to a file."""

    def write(steps=12):
        text = tmp_path / "text"
        text.mkdir(exist_ok=True)
        for k in range(6):
            (text / f"{k}.txt").write_text(" ".join(f"{n * k % 97} bottles" for n in range(400)))
        file = tmp_path / "tiny.py"
        file.write_text(TINY.replace("TEXT", f"{text}/*.txt").replace("STEPS", str(steps)))
        return file

    return write


class Programs:
    """Stand-ins on PATH."""

    def __init__(self, folder, monkeypatch):
        self.folder = folder
        folder.mkdir()
        monkeypatch.setenv("FAKE", str(folder))
        monkeypatch.setenv("COLUMNS", "300")  # tables without line breaks
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def add(self, name, answer=""):
        """Make `name` a program that runs this bash code."""
        (self.folder / f"{name}.answer").write_text(answer)
        (self.folder / name).write_text(STAND_IN)
        (self.folder / name).chmod(0o755)

    @property
    def calls(self):
        """What was asked so far, as lists of words, and forget it."""
        path = self.folder / "calls"
        text = path.read_text() if path.exists() else ""
        path.unlink(missing_ok=True)
        return [call.split("\x1f")[:-1] for call in text.split("\x1e")[:-1]]


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Stand-ins for the programs of schedulers."""
    return Programs(tmp_path / "programs", monkeypatch)
