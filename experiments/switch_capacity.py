"""How many places an expert has: capacity factor 1.0, 1.25, 2.0, and no limit.

jaxlm train experiments/switch_capacity.py --model.moe.capacity-factor 1.0
jaxlm sweep experiments/switch_capacity.py                        # every arm, three seeds, the table below
jaxlm report runs/sweeps/switch_capacity --out switch_capacity.html
python experiments/compare.py experiments/switch_capacity.py      # what a step of every arm takes
jaxlm show experiments/switch_capacity.py:pod --devices 512

Claim (arXiv:2101.03961, table 1): more places drop fewer tokens and cost time, while quality moves by 0.008 nats at most.

Result (8 experts in 2 of 4 layers, 0.5M tokens, 3 seeds; loss minus that of factor 1.25 at the same seed, intervals 95 %):

    arm              validation loss                detectable    dropped in training
    capacity 1.0     +0.013 (-0.034 to 0.059)       0.061         26.5 %
    capacity 1.25    (4.4956)                                     15.9 %
    capacity 2.0     +0.014 (-0.046 to 0.075)       0.079          5.8 %
    dropless         +0.004 (-0.084 to 0.092)       0.116          0

Drops fall as they should and no difference in loss shows, as in the paper. Time does not rise with places on a CPU, where the
loop over experts computes the tokens that are there and not the places (docs/results.md).
"""

from collections.abc import Iterator

from switch_vs_dense import experiment as switch
from switch_vs_dense import pod as switch_base
from switch_vs_dense import with_moe

from jaxlm.experiment import Experiment
from jaxlm.sweep.combine import Trial, named, trials


def experiment() -> Experiment:
    """Eight experts, capacity factor 1.25."""
    return switch()


def sweep() -> Iterator[Trial]:
    """Factor 1.25, the control, then fewer places, more, and as many as it takes."""
    factors = {f"capacity {f}": f for f in (1.25, 1.0, 2.0)} | {"dropless": None}
    return trials(experiment(), named({arm: {"model.moe.capacity_factor": f} for arm, f in factors.items()}), seeds=3)


def pod() -> Experiment:
    """Switch-Base with capacity factor 1.0."""
    return with_moe(switch_base(), capacity_factor=1.0)
