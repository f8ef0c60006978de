"""What the soak runs: models of a few thousand parameters, so that nearly all of a command's life is what may be interrupted.

The soak copies this file beside the data that it has written (`soak_jobs.write_inputs`), and its commands name a function each.
"""

from dataclasses import replace
from pathlib import Path

from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.experiment import CheckpointConfig, EvaluationConfig, Experiment, LogConfig, SampleConfig
from jaxlm.layout import MeshConfig
from jaxlm.model.config import ModelConfig
from jaxlm.model.moe_config import MoeConfig
from jaxlm.sweep.combine import grid, trials
from jaxlm.train.optimizer import OptimizerConfig

HERE = Path(__file__).parent
BYTES = TokenizerConfig(kind="byte", vocab_size=259)
MODEL = {"vocab_size": 259, "num_layers": 2, "hidden_size": 32, "num_heads": 4, "intermediate_size": 64, "max_length": 64}


def dense() -> Experiment:
    """A dense model on two devices, with all that a run writes."""
    return Experiment(
        name="dense", steps=30, batch_size=8, model=ModelConfig(**MODEL), mesh=MeshConfig(cpu_devices=2),
        data=DataConfig(
            sources=(f"text:{HERE}/text/*.txt",), validation_fraction=0.3, sequence_length=32, tokenizer=BYTES,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=3),
        evaluation=EvaluationConfig(every=10, batches=2), checkpoint=CheckpointConfig(every=5, keep=3),
        sample=SampleConfig(tokens=0),
    )  # fmt: skip


def mixture() -> Experiment:
    """A mixture whose experts lie on two devices."""
    model = ModelConfig(**MODEL, moe=MoeConfig(num_experts=4, experts_per_token=1, capacity_factor=1.25))
    return replace(dense(), name="mixture", model=model, mesh=MeshConfig(cpu_devices=2, expert=2))


def pair() -> Experiment:
    """The dense model for two processes of one device each; shorter, for each of its starts is two."""
    return replace(dense(), name="pair", steps=20, mesh=MeshConfig(cpu_devices=1), log=LogConfig(tensorboard=False))


def preferences() -> Experiment:
    """DPO against a reference whose log-probabilities are computed once; `--init-from` names it."""
    data = DataConfig(
        sources=(f"jsonl:{HERE}/sums.jsonl",), form="preferences", sequence_length=32, validation_fraction=0.2, tokenizer=BYTES
    )
    return replace(
        dense(), name="preferences", steps=20, data=data, init_from="unnamed", evaluation=EvaluationConfig(every=10),
        optimizer=OptimizerConfig(learning_rate=3e-3, weight_decay=0.0, schedule="constant"),
    )  # fmt: skip


def text() -> Experiment:
    """Text of eight sources, with a tokenizer trained on them: eight blocks to be written."""
    data = DataConfig(
        sources=tuple(f"text:{HERE}/books/{k}.txt#4096" for k in range(8)), validation_fraction=0.2, sequence_length=32,
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=512),
    )  # fmt: skip
    return replace(dense(), name="text", model=ModelConfig(**(MODEL | {"vocab_size": 512})), data=data)


def pairs() -> Experiment:
    """Prompts with two answers, of two sources, each enough for processes that encode."""
    data = DataConfig(
        sources=tuple(f"jsonl:{HERE}/answers-{k}.jsonl" for k in range(2)), form="preferences", sequence_length=64,
        validation_fraction=0.2, tokenizer=BYTES,
    )  # fmt: skip
    return replace(preferences(), name="pairs", data=data)


def sweep() -> tuple:
    """Two widths with two seeds each."""
    data = DataConfig(sources=(f"text:{HERE}/text/*.txt",), validation_fraction=0.3, sequence_length=32, tokenizer=BYTES)
    base = replace(
        dense(), name="sweep", steps=20, data=data, mesh=MeshConfig(cpu_devices=1), log=LogConfig(tensorboard=False),
        checkpoint=CheckpointConfig(every=10),
    )  # fmt: skip
    return trials(base, grid({"model.intermediate_size": (32, 64)}), seeds=2)
