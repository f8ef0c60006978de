"""Folders of runs as training leaves them, but for arrays."""

import json
from pathlib import Path

from jaxlm.config import digest, to_dict
from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.experiment import Experiment
from jaxlm.model.config import ModelConfig
from jaxlm.run.goodput import KINDS, row_of


def experiment(name="tiny", steps=30, seed=0, **fields):
    """A small experiment; `fields` are the model's."""
    model = {"vocab_size": 259, "num_layers": 2, "hidden_size": 32, "num_heads": 4, "intermediate_size": 64, "max_length": 64}
    data = DataConfig(sequence_length=32, tokenizer=TokenizerConfig(kind="byte", vocab_size=259))
    return Experiment(name=name, steps=steps, seed=seed, batch_size=8, model=ModelConfig(**(model | fields)), data=data)


def record(done, start=0, loss=3.0, every=10):
    """Rows of `done` training steps from `start` on, validations, and what their time went to."""
    rows = []
    for step in range(start, done):
        rows.append({"step": step, "split": "train", "loss": loss + 1 / (step + 1), "tokens_per_second": 1000.0 + step})
        if (step + 1) % every == 0:
            rows.append({"step": step + 1, "split": "validation", "loss": loss + 1 / (step + 1), "bits_per_byte": loss / 0.69})
            spent = dict.fromkeys(KINDS, 0.0) | {"stepping": 2.0 * (step + 1), "compiling": 5.0}
            rows.append({"step": step + 1, "split": "goodput", **row_of(spent, 0, [])})
    return rows


def write_rows(folder: Path, rows):
    """Write metrics.jsonl."""
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_run(folder: Path, *, done=30, saves=(20, 30), loss=3.0, starts=1, **given):
    """Make the folder of a run of which `done` steps are taken; `given` is the experiment's."""
    made = experiment(**given)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(to_dict(made), indent=2) + "\n")
    start = {"time": "2026-01-02T03:04:05+00:00", "config_digest": digest(made), "git_commit": "ab" * 20, "devices": "8 x cpu"}
    (folder / "run.json").write_text(json.dumps({"starts": [start] * starts}) + "\n")
    (folder / "lock").touch()
    write_rows(folder, record(done, loss=loss))
    for step in saves:
        (folder / "checkpoints" / str(step)).mkdir(parents=True)
    return folder
