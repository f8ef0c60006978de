"""Mixtral 8x7B's shape, pretrained on C4: 46.7 billion parameters, 12.9 of them active, for 256 TPU v5p chips.

jaxlm plan experiments/mixtral_8x7b.py --topology v5p:4x8x8        # memory, traffic and modelled step time, on any machine
jaxlm plan experiments/mixtral_8x7b.py --topology v5p:4x8x8 --search --output plan.json
jaxlm train experiments/mixtral_8x7b.py --overrides plan.json      # on the pod, in every host's process

What it is: the shape of arXiv:2401.04088, whose training is not published; 4M tokens a step, rows of 4,096, a peak rate of 3e-4
and 20 tokens an active parameter stand in. Capacity factor 1.25 bounds what a device may be sent; without one (None) no token
is dropped and neighbours' rows are gathered. Not trained here: there is no result to report.
"""

import dataclasses

from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.experiment import CheckpointConfig, EvaluationConfig, Experiment
from jaxlm.layout import MeshConfig
from jaxlm.model.presets import mixtral_8x7b
from jaxlm.train.optimizer import OptimizerConfig


def experiment() -> Experiment:
    """One expert of each layer on each of 8 chips, weights fully sharded over the 32 such groups."""
    model = mixtral_8x7b()
    return Experiment(
        name="mixtral-8x7b",
        steps=62_000,
        batch_size=1024,
        model=dataclasses.replace(model, moe=dataclasses.replace(model.moe, capacity_factor=1.25)),
        data=DataConfig(
            sources=("tfds:c4/en:train#text",), tokenizer=TokenizerConfig(kind="bpe", vocab_size=32_000), sequence_length=4096
        ),
        optimizer=OptimizerConfig(learning_rate=3e-4, warmup_steps=2000, weight_decay=0.1),
        remat="full",
        accumulate=2,
        mesh=MeshConfig(data=32, expert=8),
        evaluation=EvaluationConfig(every=1000, batches=50),
        checkpoint=CheckpointConfig(every=1000),
    )
