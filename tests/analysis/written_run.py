"""A run's directory with checkpoints of drawn parameters: nothing is trained."""

from pathlib import Path

from mixtures import draw
from models import tiny

from jaxlm.config import to_dict
from jaxlm.data.byte_tokenizer import BYTE_VOCAB_SIZE, ByteTokenizer
from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.experiment import Experiment, SampleConfig
from jaxlm.run import directory
from jaxlm.train.checkpoint import CheckpointWriter

MODEL = tiny(vocab_size=BYTE_VOCAB_SIZE, num_layers=1, hidden_size=16, num_heads=2, num_kv_heads=2, attention_kernel="plain")


def write_run(folder: Path, texts: Path, steps: tuple[int, ...] = (0, 10, 20), tokenizer: bool = True) -> Experiment:
    """Write a run that has checkpoints at `steps`, each of other parameters, on the text files in `texts`."""
    experiment = Experiment(
        name=folder.name, steps=max(steps) + 1, batch_size=4, model=MODEL, sample=SampleConfig(tokens=0),
        data=DataConfig(
            sources=(f"text:{texts}/*.txt",), validation_fraction=0.4, sequence_length=24,
            tokenizer=TokenizerConfig(kind="byte", vocab_size=BYTE_VOCAB_SIZE),
        ),
    )  # fmt: skip
    folder.mkdir(parents=True)
    directory.settle_config(folder, experiment, allow_change=False)
    if tokenizer:
        ByteTokenizer().save(folder / directory.TOKENIZER)
    add_checkpoints(folder, experiment, steps)
    return experiment


def add_checkpoints(folder: Path, experiment: Experiment, steps: tuple[int, ...]) -> None:
    """Write checkpoints of drawn parameters."""
    writer = CheckpointWriter(folder / directory.CHECKPOINTS, keep=100)
    for step in steps:
        writer.save_params(draw(MODEL, seed=step), step, {"jaxlm": "test", "experiment": to_dict(experiment)})
    writer.close()


def write_texts(folder: Path) -> Path:
    """Write a few text files, some of which are held out."""
    folder.mkdir()
    for number in range(10):
        (folder / f"{number}.txt").write_text(f"text {number}: " + "some words, and 123 numbers. " * (3 + number))
    return folder
