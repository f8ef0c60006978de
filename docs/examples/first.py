"""A first experiment: a model of single bytes reads the Python standard library.

jaxlm train docs/examples/first.py

Claim: a hundred steps bring it from 8 bits per byte, a guess among 256, below 4.
"""

from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.experiment import CheckpointConfig, EvaluationConfig, Experiment, SampleConfig
from jaxlm.model.config import ModelConfig
from jaxlm.train.optimizer import OptimizerConfig


def experiment() -> Experiment:
    """Return what `jaxlm train` trains; every field can be changed on the command line."""
    return Experiment(
        name="first",
        steps=100,
        batch_size=8,
        model=ModelConfig(vocab_size=259, num_layers=2, hidden_size=128, num_heads=4, intermediate_size=256, max_length=256),
        data=DataConfig(sources=("stdlib",), sequence_length=128, tokenizer=TokenizerConfig(kind="byte", vocab_size=259)),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=10),
        evaluation=EvaluationConfig(every=50, batches=8),
        checkpoint=CheckpointConfig(every=50),
        sample=SampleConfig(prompts=("def ",), tokens=80),
    )
