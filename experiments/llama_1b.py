"""Llama 3.2 1B's shape, pretrained on C4: 1.24 billion parameters, for 64 TPU v5p chips.

jaxlm plan experiments/llama_1b.py --topology v5p:4x4x4            # memory, traffic and modelled step time, on any machine
jaxlm plan experiments/llama_1b.py --topology v5e:4x4 --search     # the same on 16 chips: which mesh, remat, accumulation
jaxlm train experiments/llama_1b.py                                # on the pod, in every host's process

What it is: a batch of 1M tokens and 30B tokens in all, 24 a parameter (arXiv:2203.15556); AdamW with decay 0.1 and beta2 0.95
as published for models of this family (arXiv:2302.13971), cosine to a tenth. Not trained here: there is no result to report.
"""

from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.experiment import CheckpointConfig, EvaluationConfig, Experiment
from jaxlm.layout import MeshConfig
from jaxlm.model.presets import llama_1b
from jaxlm.train.optimizer import OptimizerConfig


def experiment() -> Experiment:
    """Fully sharded data parallelism alone: a device computes 8 rows and gathers the weights of one layer at a time."""
    return Experiment(
        name="llama-1b",
        steps=30_000,
        batch_size=512,
        model=llama_1b(),
        data=DataConfig(
            sources=("tfds:c4/en:train#text",), tokenizer=TokenizerConfig(kind="bpe", vocab_size=128_000), sequence_length=2048
        ),
        optimizer=OptimizerConfig(learning_rate=6e-4, warmup_steps=2000, weight_decay=0.1),
        remat="full",
        mesh=MeshConfig(data=64),
        evaluation=EvaluationConfig(every=1000, batches=50),
        checkpoint=CheckpointConfig(every=1000),
    )
