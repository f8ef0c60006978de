"""Sweeps of an experiment too small to matter, and a program that stands for its training without JAX."""

import json
import stat
import sys

import pytest

FILE = '''
"""Does width help?

A sweep for tests."""
from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.experiment import CheckpointConfig, EvaluationConfig, Experiment, LogConfig, SampleConfig
from jaxlm.model.config import ModelConfig
from jaxlm.sweep.combine import chain, grid, named, product, seeds, trials, zipped
from jaxlm.train.optimizer import OptimizerConfig


def experiment():
    return Experiment(
        name="tiny",
        steps=20,
        batch_size=8,
        model=ModelConfig(vocab_size=259, num_layers=2, hidden_size=32, num_heads=4, intermediate_size=64, max_length=64),
        data=DataConfig(
            sources=("text:TEXT",),
            validation_fraction=0.3,
            sequence_length=32,
            tokenizer=TokenizerConfig(kind="byte", vocab_size=259),
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=3),
        evaluation=EvaluationConfig(every=5, batches=2),
        checkpoint=CheckpointConfig(every=4),
        sample=SampleConfig(tokens=0),
        log=LogConfig(tensorboard=False),
    )


def sweep():
    return SWEEP
'''
TRIALS = 'trials(experiment(), grid({"model.intermediate_size": (64, 96)}), seeds=2)'

# Takes a step every 20 ms from where it was; ORDERS says, by arm and seed, at which step it is to fail, and how.
TRAINER = """#!PYTHON
import fcntl, json, os, signal, sys, time
from pathlib import Path
config, run = Path(sys.argv[4]), Path(sys.argv[6])
asked = json.loads(config.read_text())
label = asked["name"].partition(": ")[2] + f", seed {asked['seed']}"
orders = json.loads(Path(os.environ["ORDERS"]).read_text()).get(label, {})
lock = (run / "lock").open("w")
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
with Path(os.environ["ORDERS"]).with_name("starts").open("a") as starts:
    starts.write(f"{label} on {len(os.sched_getaffinity(0))}\\n")
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
(run / "config.json").write_text(config.read_text())
(run / "checkpoints").mkdir(exist_ok=True)
first = max((int(p.name) for p in (run / "checkpoints").iterdir()), default=0)
lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
with (run / "metrics.jsonl").open("w") as metrics:
    metrics.writelines(line + "\\n" for line in lines if json.loads(line)["step"] < first)
    for step in range(first, asked["steps"]):
        if orders.get("at") == step:
            print("error: out of ideas", flush=True)
            os.kill(os.getpid(), orders["signal"]) if "signal" in orders else sys.exit(orders["status"])
        time.sleep(orders.get("pace", 0.005))
        loss = 3.0 - step / 20 - asked["model"]["intermediate_size"] / 1000 + asked["seed"] / 10
        row = {"step": step, "split": "train", "loss": loss, "real_tokens": 256, "step_seconds": 0.1}
        metrics.write(json.dumps(row) + "\\n")
        if (step + 1) % 5 == 0:
            metrics.write(json.dumps({"step": step + 1, "split": "validation", "loss": loss}) + "\\n")
        metrics.flush()
        first = step + 1
        if told:
            break
    (run / "checkpoints" / str(first)).mkdir(exist_ok=True)
if first == asked["steps"]:
    (run / "summary.md").write_text("")
print("done", flush=True)
"""


@pytest.fixture
def sweep_file(tmp_path):
    """Return a function that writes a sweep's file."""

    def write(sweep=TRIALS, name="width.py"):
        text = tmp_path / "text"
        if not text.exists():
            text.mkdir()
            for k in range(6):
                (text / f"{k}.txt").write_text(" ".join(f"{n * k % 97} bottles" for n in range(300)))
        file = tmp_path / name
        file.write_text(FILE.replace("TEXT", f"{text}/*.txt").replace("SWEEP", sweep))
        return file

    return write


class Trainer:
    """The stand-in, and what it is ordered to do."""

    def __init__(self, folder):
        self.orders, self._starts = folder / "orders.json", folder / "starts"
        self.order()

    def order(self, **orders):
        """Set what each trial (`arm, seed k`) is to do; the others just train."""
        self.orders.write_text(json.dumps(orders))

    @property
    def starts(self):
        """What was started since this was last asked."""
        lines = self._starts.read_text().splitlines() if self._starts.exists() else []
        self._starts.unlink(missing_ok=True)
        return lines


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """Put the stand-in in the place of the Python that trains."""
    from jaxlm.sweep import start

    program = tmp_path / "trainer"
    program.write_text(TRAINER.replace("PYTHON", sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(start, "PYTHON", str(program))
    made = Trainer(tmp_path)
    monkeypatch.setenv("ORDERS", str(made.orders))
    return made
