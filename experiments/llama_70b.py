"""Llama 3 70B's shape, pretrained on C4: 70.6 billion parameters, for 512 TPU v5p chips.

jaxlm plan experiments/llama_70b.py --topology v5p:8x8x8           # memory, traffic and modelled step time, on any machine
jaxlm plan experiments/llama_70b.py --topology v5p:8x8x8 --search --output plan.json
jaxlm train experiments/llama_70b.py --overrides plan.json         # on the pod, in every host's process

What it is: rows of 8,192 tokens, 4M tokens a step, 1.4T tokens in all, 20 a parameter (arXiv:2203.15556); peak rate 1.5e-4
after 2,000 steps of warm-up as for Llama 2 70B (arXiv:2307.09288), AdamW with decay 0.1. Not trained here: there is no result
to report.
"""

from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.experiment import CheckpointConfig, EvaluationConfig, Experiment
from jaxlm.layout import MeshConfig
from jaxlm.model.presets import llama_70b
from jaxlm.train.optimizer import OptimizerConfig


def experiment() -> Experiment:
    """Eight copies, each fully sharded over 64 chips, one row a chip: half the traffic of 64 x 8 ways (docs/plans.md)."""
    return Experiment(
        name="llama-70b",
        steps=336_000,
        batch_size=512,
        model=llama_70b(),
        data=DataConfig(
            sources=("tfds:c4/en:train#text",), tokenizer=TokenizerConfig(kind="bpe", vocab_size=128_000), sequence_length=8192
        ),
        optimizer=OptimizerConfig(learning_rate=1.5e-4, warmup_steps=2000, weight_decay=0.1),
        remat="full",
        mesh=MeshConfig(replica=8, data=64),
        evaluation=EvaluationConfig(every=2000, batches=50),
        checkpoint=CheckpointConfig(every=1000),
    )
