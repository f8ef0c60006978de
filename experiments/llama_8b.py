"""Llama 3 8B's shape, pretrained on C4: 8.03 billion parameters, for 64 TPU v5p chips.

jaxlm plan experiments/llama_8b.py --topology v5p:4x4x4            # memory, traffic and modelled step time, on any machine
jaxlm plan experiments/llama_8b.py --topology v5p:4x4x4 --search --output plan.json
jaxlm train experiments/llama_8b.py --overrides plan.json          # on the pod, in every host's process

What it is: rows of 8,192 tokens, 1M tokens a step, 160B tokens in all, 20 a parameter (arXiv:2203.15556); peak rate 3e-4 after
2,000 steps of warm-up, AdamW with decay 0.1. Not trained here: there is no result to report.

jaxlm plan experiments/llama_8b.py:long_context --topology v5p:4x4x4     # the same model, on to rows of 131,072 tokens

400 steps of 4M tokens, each row over the chips of a context axis, after YaRN's recipe (arXiv:2309.00071: 400 steps, rate 2e-5,
20 of warm-up, no decay). Planned on v5p:4x4x4: 34.8 of 95.7 GiB a chip, 253 GB sent a chip and step, 38.8 to 40 s a step at
the compiler's cycles, two thirds of it attention. Whole rows, one a chip, would fit (61.2 GiB), but in steps of 8M tokens.
"""

import dataclasses

from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.experiment import CheckpointConfig, EvaluationConfig, Experiment
from jaxlm.layout import MeshConfig
from jaxlm.model.presets import llama_8b
from jaxlm.model.rope_config import RopeScaling
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


def long_context(kind: str = "yarn", factor: float = 16.0) -> Experiment:
    """A short training on rows `factor` times as long, split over four chips each; `kind` is RopeScaling's, "linear" say."""
    begun = experiment()
    original = begun.model.max_length
    length = int(factor * original)
    scaling = RopeScaling(kind=kind, factor=factor, original_length=original)
    return dataclasses.replace(
        begun,
        name=f"llama-8b-{kind}-{length // 1024}k",
        steps=400,
        batch_size=32,
        model=dataclasses.replace(begun.model, max_length=length, rope_scaling=scaling),
        data=dataclasses.replace(begun.data, sequence_length=length),
        optimizer=OptimizerConfig(learning_rate=2e-5, warmup_steps=20, weight_decay=0.0),
        init_from="runs/llama-8b",
        mesh=MeshConfig(data=16, context=4),
        evaluation=EvaluationConfig(every=50, batches=4),
        checkpoint=CheckpointConfig(every=50),
    )
