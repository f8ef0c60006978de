"""How many places an expert has: capacity factor 1.0, 1.25, 2.0, and no limit.

jaxlm train experiments/switch_capacity.py --model.moe.capacity-factor 1.0
python experiments/compare.py experiments/switch_capacity.py      # every arm, three seeds, the table below
jaxlm show experiments/switch_capacity.py:pod --devices 512

Claim (arXiv:2101.03961, table 1): more places drop fewer tokens and cost time, while quality moves by 0.008 nats at most.
"""

from switch_vs_dense import experiment as switch
from switch_vs_dense import pod as switch_base
from switch_vs_dense import with_moe

from jaxlm.experiment import Experiment


def experiment() -> Experiment:
    """Eight experts, capacity factor 1.25, all rows of the batch one group."""
    return with_moe(switch(), capacity_factor=1.25)


def arms() -> dict[str, Experiment]:
    """The control first."""
    factors = {f"capacity {f}": f for f in (1.25, 1.0, 2.0)} | {"dropless": None}
    return {name: with_moe(experiment(), capacity_factor=factor) for name, factor in factors.items()}


def pod() -> Experiment:
    """Switch-Base with capacity factor 1.0."""
    return with_moe(switch_base(), capacity_factor=1.0)
