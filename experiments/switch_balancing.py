"""What keeps the experts busy: nothing, the Switch loss, with a z-loss, the CV^2 of importance, a balancing bias.

jaxlm train experiments/switch_balancing.py --model.moe.load-balancing-loss 0
jaxlm sweep experiments/switch_balancing.py                      # every arm, three seeds, the table below
jaxlm report runs/sweeps/switch_balancing --out switch_balancing.html
python experiments/compare.py experiments/switch_balancing.py     # what a step of every arm takes
jaxlm show experiments/switch_balancing.py:pod --devices 512

Claim: without any, the router collapses onto few experts (arXiv:1701.06538, table 6); each of the others prevents it.
Dropless, so that what an unbalanced router costs is its own doing and not the dropped tokens'.

Result (8 experts in 2 of 4 layers, 0.5M tokens, 3 seeds; differences from the Switch loss at the same seed, intervals 95 %;
load variation and busiest expert over the whole run, dead experts a layer at its end):

    arm                       validation loss      load CV          busiest / mean    dead
    Switch loss               (4.493)              0.64 ± 0.05      2.2 ± 0.1         0
    none                      +0.030 ± 0.068       1.13 ± 0.12      3.4 ± 0.6         0.3
    Switch loss and z-loss    +0.013 ± 0.036       0.65 ± 0.04      2.2 ± 0.1         0
    importance CV^2 (0.1)     +0.050 ± 0.114       0.91 ± 0.48      2.6 ± 0.6         1.0
    sigmoid and bias (0.01)   +0.006 ± 0.105       0.51 ± 0.09      2.0 ± 0.2         0

Without any the load stays 1.8 times as uneven and here and there an expert dies, but the router does not collapse within
500 steps: that half of the claim does not show. With the CV^2 of importance one seed sent all to a single expert for fifty
steps, and two or three experts of eight stayed dead: it does not always prevent it. The bias has the least variation of loads,
its interval touching the Switch loss's. No difference in loss shows at this size.
"""

from collections.abc import Iterator

from switch_vs_dense import experiment as switch
from switch_vs_dense import pod as switch_base
from switch_vs_dense import with_moe

from jaxlm.experiment import Experiment
from jaxlm.sweep.combine import Trial, named, trials


def experiment() -> Experiment:
    """Eight experts, dropless, with the load-balancing loss."""
    return with_moe(switch(), capacity_factor=None)


def sweep() -> Iterator[Trial]:
    """The Switch loss, the control, without it, with more, and what stands in its place."""
    off = {"load_balancing_loss": 0.0}
    arms = {
        "Switch loss": {},
        "none": off,
        "Switch loss and z-loss": {"router_z_loss": 1e-3},
        "importance CV^2": off | {"importance_loss": 0.1},
        "sigmoid and bias": off | {"router": "sigmoid", "bias_update_rate": 1e-2},
    }
    variants = {arm: {f"model.moe.{name}": value for name, value in changes.items()} for arm, changes in arms.items()}
    return trials(experiment(), named(variants), seeds=3)


def pod() -> Experiment:
    """Switch-Base with a z-loss."""
    return with_moe(switch_base(), router_z_loss=1e-3)
