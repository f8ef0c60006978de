"""A run of a few steps on a little text, made once."""

import sysconfig
from pathlib import Path

import pytest

EXPERIMENT = '''
"""A tiny run for tests."""
from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.experiment import CheckpointConfig, EvaluationConfig, Experiment, SampleConfig
from jaxlm.model.config import ModelConfig
from jaxlm.train.optimizer import OptimizerConfig


def experiment():
    return Experiment(
        name="tiny",
        steps=30,
        batch_size=8,
        model=ModelConfig(vocab_size=259, num_layers=2, hidden_size=32, num_heads=4, intermediate_size=64, max_length=64),
        data=DataConfig(
            sources=("text:TEXT",),
            validation_fraction=0.3,
            sequence_length=32,
            tokenizer=TokenizerConfig(kind="byte", vocab_size=259),
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=3),
        evaluation=EvaluationConfig(every=10, batches=2),
        checkpoint=CheckpointConfig(every=7, keep=3),
        sample=SampleConfig(prompts=("def ",), tokens=8),
    )
'''


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """Twenty short real documents."""
    folder = tmp_path_factory.mktemp("texts")
    library = Path(sysconfig.get_paths()["stdlib"])
    for source in sorted(library.glob("*.py"))[:20]:
        (folder / f"{source.stem}.txt").write_text(source.read_text(encoding="utf-8", errors="replace")[:4000])
    return folder


@pytest.fixture(scope="session")
def experiment_file(texts, tmp_path_factory):
    """The experiment above in a file."""
    file = tmp_path_factory.mktemp("experiments") / "tiny.py"
    file.write_text(EXPERIMENT.replace("TEXT", f"{texts}/*.txt"))
    return file


@pytest.fixture(scope="session")
def finished(experiment_file, tmp_path_factory):
    """The directory of a finished run on eight devices."""
    from jaxlm.experiment_file import load_experiment
    from jaxlm.run.loop import train

    folder = tmp_path_factory.mktemp("runs") / "finished"
    train(load_experiment(experiment_file), folder)
    return folder
