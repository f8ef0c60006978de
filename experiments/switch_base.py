"""Switch-Base as a decoder, on C4: 128 experts in every second of 12 layers, 3.7 billion parameters, for 64 TPU v5e chips.

jaxlm plan experiments/switch_base.py --topology v5e:8x8           # memory, traffic and modelled step time, on any machine
jaxlm plan experiments/switch_base.py --topology v5e:8x8 --search --capacity-factors 1.0 2.0 --output plan.json
jaxlm train experiments/switch_base.py --overrides plan.json       # on the pod, in every host's process

What it is: the shape, batch (1M tokens), optimizer (Adafactor, inverse square root) and losses of arXiv:2101.03961 with
next-token prediction in place of filling in spans. What its claim comes to in the small is in switch_vs_dense.py. Not trained
here at this scale: there is no result to report.
"""

from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.experiment import CheckpointConfig, EvaluationConfig, Experiment
from jaxlm.layout import MeshConfig
from jaxlm.model.presets import switch_base
from jaxlm.train.optimizer import OptimizerConfig


def experiment() -> Experiment:
    """Two experts of each layer on each of 64 chips: tokens move, experts stay."""
    return Experiment(
        name="switch-base",
        steps=100_000,
        batch_size=2048,
        model=switch_base(),
        data=DataConfig(
            sources=("tfds:c4/en:train#text",), tokenizer=TokenizerConfig(kind="bpe", vocab_size=32_128), sequence_length=512
        ),
        optimizer=OptimizerConfig(kind="adafactor", learning_rate=1e-2, schedule="inverse_sqrt", warmup_steps=10_000),
        remat="full",
        mesh=MeshConfig(expert=64),
        evaluation=EvaluationConfig(every=1000, batches=50),
        checkpoint=CheckpointConfig(every=1000),
    )
