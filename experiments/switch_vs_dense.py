"""Switch layers of 2 to 16 experts against the dense model of equal active size, step for step.

jaxlm train experiments/switch_vs_dense.py                        # 8 experts; --model.moe.num-experts 0 is the dense model
jaxlm sweep experiments/switch_vs_dense.py                        # every arm, three seeds, the table below
jaxlm report runs/sweeps/switch_vs_dense --out switch_vs_dense.html
python experiments/compare.py experiments/switch_vs_dense.py      # what a step of every arm takes
jaxlm show experiments/switch_vs_dense.py:pod --devices 512       # the same at Switch-Base's shape

Claim (arXiv:2101.03961, figures 1 and 6): at equal FLOPs a token and equal steps, loss falls with the number of experts; 64
experts reach T5-Base's final loss in a seventh of the steps.

Result (1.05M active parameters, 0.5M tokens of Python, 3 seeds, differences from the dense model of the same seed, 95 %):

    arm          validation loss                 detectable    speed-up in steps      dropped in training
    2 experts    -0.033 (-0.055 to -0.011)       0.029         1.05 (1.00 to 1.10)     2.5 %
    4 experts    -0.043 (-0.111 to  0.026)       0.090         1.08 (0.96 to 1.19)     9.0 %
    8 experts    -0.057 (-0.182 to  0.068)       0.164         1.09 (0.86 to 1.32)    15.9 %
    16 experts   -0.035 (-0.099 to  0.028)       0.083         1.08 (1.00 to 1.15)    28.2 %

Every arm of every seed ends below the dense model of that seed, though only the interval of 2 experts leaves out zero, and no
difference holds once four are looked at (Holm); that more experts gain more does not show. Many tokens are dropped while the
router learns to spread its load; whether that is what holds the larger arms back is not shown either (switch_capacity.py).
"""

import dataclasses
from collections.abc import Iterator

import switch_base

from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.experiment import CheckpointConfig, EvaluationConfig, Experiment, LogConfig, SampleConfig
from jaxlm.layout import MeshConfig
from jaxlm.model.config import ModelConfig
from jaxlm.model.moe_config import MoeConfig
from jaxlm.sweep.combine import Trial, named, trials
from jaxlm.train.optimizer import OptimizerConfig


def experiment() -> Experiment:
    """Eight experts in every second layer, capacity factor 1.25, all rows of the batch one group."""
    return Experiment(
        name="switch",
        steps=500,
        batch_size=8,
        model=ModelConfig(
            vocab_size=2048, num_layers=4, hidden_size=128, num_heads=4, intermediate_size=512, max_length=128,
            activation="relu", moe=MoeConfig(num_experts=8, every=2, rows_per_group=8),
        ),
        data=DataConfig(sources=("stdlib",), tokenizer=TokenizerConfig(kind="bpe", vocab_size=2048), sequence_length=128),
        optimizer=OptimizerConfig(learning_rate=3e-3, schedule="inverse_sqrt", warmup_steps=50),
        evaluation=EvaluationConfig(every=25, batches=16),
        checkpoint=CheckpointConfig(every=0, keep=1),
        sample=SampleConfig(tokens=0),
        log=LogConfig(tensorboard=False),
    )  # fmt: skip


def with_moe(base: Experiment, **changes) -> Experiment:
    """Return the experiment with fields of its mixture changed."""
    moe = dataclasses.replace(base.model.moe, **changes)
    return dataclasses.replace(base, model=dataclasses.replace(base.model, moe=moe))


def sweep() -> Iterator[Trial]:
    """The dense model, the control, and 2 to 16 experts."""
    arms = {"dense": 0} | {f"{n} experts": n for n in (2, 4, 8, 16)}
    return trials(experiment(), named({arm: {"model.moe.num_experts": n} for arm, n in arms.items()}), seeds=3)


def pod() -> Experiment:
    """Switch-Base on C4, as in switch_base.py, for 512 chips."""
    return dataclasses.replace(switch_base.experiment(), mesh=MeshConfig(expert=64, model=2))
