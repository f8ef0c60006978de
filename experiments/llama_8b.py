"""Llama 3 8B's shape, pretrained on C4: 8.03 billion parameters, for 64 TPU v5p chips.

jaxlm plan experiments/llama_8b.py --topology v5p:4x4x4            # memory, traffic and modelled step time, on any machine
jaxlm plan experiments/llama_8b.py --topology v5p:4x4x4 --search --output plan.json
jaxlm train experiments/llama_8b.py --overrides plan.json          # on the pod, in every host's process

What it is: rows of 8,192 tokens, 1M tokens a step, 160B tokens in all, 20 a parameter (arXiv:2203.15556); peak rate 3e-4 after
2,000 steps of warm-up, AdamW with decay 0.1. Not trained here: there is no result to report.
"""

from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.experiment import CheckpointConfig, EvaluationConfig, Experiment
from jaxlm.layout import MeshConfig
from jaxlm.model.presets import llama_8b
from jaxlm.train.optimizer import OptimizerConfig


def experiment() -> Experiment:
    """Four copies, each fully sharded over 16 chips, two rows a chip: half the traffic of 64 ways (docs/plans.md)."""
    return Experiment(
        name="llama-8b",
        steps=152_000,
        batch_size=128,
        model=llama_8b(),
        data=DataConfig(
            sources=("tfds:c4/en:train#text",), tokenizer=TokenizerConfig(kind="bpe", vocab_size=128_000), sequence_length=8192
        ),
        optimizer=OptimizerConfig(learning_rate=3e-4, warmup_steps=2000, weight_decay=0.1),
        remat="full",
        mesh=MeshConfig(replica=4, data=16),
        evaluation=EvaluationConfig(every=1000, batches=50),
        checkpoint=CheckpointConfig(every=1000),
    )
