"""A run's directory with checkpoints of drawn parameters: nothing is trained; and a probe that costs nothing."""

from pathlib import Path

from mixtures import draw
from models import tiny

from jaxlm.analysis import store
from jaxlm.analysis.probe_files import load_probes
from jaxlm.analysis.walk import analyze
from jaxlm.config import to_dict
from jaxlm.data.byte_tokenizer import BYTE_VOCAB_SIZE, ByteTokenizer
from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.experiment import Experiment, SampleConfig
from jaxlm.run import directory
from jaxlm.train.checkpoint_writer import CheckpointWriter

SIZES = '''"""Sizes of parameters.

A probe for tests: cheap, and asks for other checkpoints.
"""
import numpy as np
from jaxlm.analysis.measure import Measure
from jaxlm.config import config


@config
class Settings:
    scale: float = 1.0
    fails_at: int = -1
    with_last: bool = False
    with_rows: bool = False
    texts: str = ""


SETTINGS = Settings()


def probe(view, settings):
    if view.step == settings.fails_at:
        raise ZeroDivisionError("no reason")
    size = settings.scale * float(np.square(np.asarray(view.params.embed)).sum())
    before = view.previous
    found = {"size": size, "change": 0.0 if before is None else size - float(np.square(np.asarray(before.params.embed)).sum())}
    if settings.with_last:
        found["last"] = float(view.last.step)
    if settings.with_rows:
        found["tokens"] = Measure([len(view.rows.tokens), view.rows.tokens.sum()], ("what",), {"what": ["rows", "sum"]})
    return found
'''

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


def walk(run, file, *settings, **options):
    """Run a probe's file at the checkpoints of a run, or of several."""
    return analyze([run] if not isinstance(run, list) else run, load_probes([str(file)], settings), **options)


def measured(run, step, probe="sizes"):
    """Return the values that a run's results show of a step."""
    return {name: value["values"] for name, value in store.read_all(run)[probe][step]["measures"].items()}
