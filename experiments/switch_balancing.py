"""What keeps the experts busy: nothing, the Switch loss, with a z-loss, the CV^2 of importance, a balancing bias.

jaxlm train experiments/switch_balancing.py --model.moe.load-balancing-loss 0
python experiments/compare.py experiments/switch_balancing.py     # every arm, three seeds, the table below
jaxlm show experiments/switch_balancing.py:pod --devices 512

Claim: without any, the router collapses onto few experts (arXiv:1701.06538, table 6); each of the others prevents it.
Dropless, so that what an unbalanced router costs is its own doing and not the dropped tokens'.
"""

from switch_vs_dense import experiment as switch
from switch_vs_dense import pod as switch_base
from switch_vs_dense import with_moe

from jaxlm.experiment import Experiment


def experiment() -> Experiment:
    """Eight experts, dropless, with the load-balancing loss."""
    return switch()


def arms() -> dict[str, Experiment]:
    """The control first."""
    return {
        "Switch loss": experiment(),
        "none": with_moe(experiment(), load_balancing_loss=0.0),
        "Switch loss and z-loss": with_moe(experiment(), router_z_loss=1e-3),
        "importance CV^2": with_moe(experiment(), load_balancing_loss=0.0, importance_loss=0.1),
        "sigmoid and bias": with_moe(experiment(), load_balancing_loss=0.0, router="sigmoid", bias_update_rate=1e-2),
    }


def pod() -> Experiment:
    """Switch-Base with a z-loss."""
    return with_moe(switch_base(), router_z_loss=1e-3)
