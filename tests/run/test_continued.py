"""A run goes on with the tokenizer and the data that it began with, or says what is other."""

import dataclasses

import pytest

from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.errors import ConfigError
from jaxlm.experiment import CheckpointConfig, EvaluationConfig, LogConfig, SampleConfig
from jaxlm.experiment_file import load_experiment
from jaxlm.run.directory import CHECKPOINTS, TOKENIZER
from jaxlm.run.loop import train
from jaxlm.train.optimizer import OptimizerConfig
from jaxlm.train.saved import saved_steps

QUIET = {
    "evaluation": EvaluationConfig(every=0), "sample": SampleConfig(tokens=0), "log": LogConfig(tensorboard=False),
    "checkpoint": CheckpointConfig(every=0), "optimizer": OptimizerConfig(warmup_steps=0),
}  # fmt: skip


@pytest.fixture
def begun(experiment_file, texts, tmp_path):
    """An experiment whose tokenizer is learnt from its text, the folder of its run, which has ended, and its text."""
    text = tmp_path / "text"
    text.mkdir()
    for file in sorted(texts.glob("*.txt")):
        (text / file.name).write_text(file.read_text())
    base = load_experiment(experiment_file)
    learnt = TokenizerConfig(kind="bpe", vocab_size=512)
    data = dataclasses.replace(base.data, sources=(f"text:{text}/*.txt",), tokenizer=learnt)
    model = dataclasses.replace(base.model, vocab_size=512)
    experiment = dataclasses.replace(base, steps=2, data=data, model=model, **QUIET)
    train(experiment, tmp_path / "run")
    return experiment, tmp_path / "run", text


def test_other_text_under_the_same_configuration(begun, capsys):
    experiment, folder, text = begun
    longer = dataclasses.replace(experiment, steps=4)
    kept = (folder / TOKENIZER).read_bytes()
    (text / "more.txt").write_text("zebra quagga " * 3000)
    for allowed in (False, True):
        with pytest.raises(ConfigError, match=r"another tokenizer .*--data.tokenizer.path .*tokenizer.model"):
            train(longer if allowed else experiment, folder, allow_config_change=allowed)
        assert (folder / TOKENIZER).read_bytes() == kept
    # As the message has it.
    with_its_own = dataclasses.replace(experiment.data.tokenizer, path=str(folder / TOKENIZER))
    mended = dataclasses.replace(longer, data=dataclasses.replace(experiment.data, tokenizer=with_its_own))
    capsys.readouterr()
    train(mended, folder, allow_config_change=True)
    assert "changed: what the data's sources hold" in capsys.readouterr().err
    assert saved_steps(folder / CHECKPOINTS)[-1] == 4 and (folder / TOKENIZER).read_bytes() == kept
    (text / "more.txt").write_text("quagga zebra " * 3000)
    with pytest.raises(ConfigError, match="is not what it was trained on: its sources hold something else now"):
        train(dataclasses.replace(mended, steps=4), folder)


def test_another_tokenizer_than_that_of_the_run_it_begins_from(begun, tmp_path):
    experiment, folder, text = begun
    (text / "more.txt").write_text("zebra quagga " * 3000)
    with pytest.raises(ConfigError, match=r"init_from = .* another tokenizer .*--data.tokenizer.path .*tokenizer.model"):
        train(dataclasses.replace(experiment, init_from=str(folder)), tmp_path / "next")
