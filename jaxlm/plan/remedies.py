"""What to change where a step does not fit in memory, cheapest first, tried on the compiler."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from jaxlm.config import difference
from jaxlm.errors import ConfigError, JaxlmError
from jaxlm.experiment import Experiment
from jaxlm.experiment_mesh import check_devices, work_of
from jaxlm.layout import MESH_AXES
from jaxlm.plan.compiled import Compiled, compile_for
from jaxlm.plan.topology import Topology
from jaxlm.train import arrange

# How many changes are compiled before giving up, and how many that fit are enough.
TRIES, ENOUGH = 6, 2
# Estimates are rough: a change is worth compiling if by them it needs up to so much of the memory there is.
MARGIN = 1.2


@dataclasses.dataclass(frozen=True)
class Remedy:
    """A change that makes a step fit."""

    flags: str
    cost: str
    """What it costs, in words."""
    laid_out: float
    """Bytes a device, by the compiler."""


def flags(before: Experiment, after: Experiment) -> str:
    """Return the command line's flags that make one experiment of the other."""
    return " ".join(_flag(name.replace("_", "-"), value) for name, _, value in difference(before, after))


def _flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        *parents, last = name.split(".")
        return "--" + ".".join([*parents, last if value else f"no-{last}"])
    return f"--{name} {' '.join(map(str, value)) if isinstance(value, (list, tuple)) else value}"


def find_remedies(experiment: Experiment, topology: Topology, failed: Compiled, out: Console) -> list[Remedy]:
    """Return changes that the compiler confirms to fit, cheapest first; none where those that it tried did not.

    Arithmetic (`arrange.estimate`) says which are worth compiling.
    """
    devices, chip, slices = topology.num_devices, topology.chip, topology.slices
    shape = check_devices(experiment, devices, chip, slices)
    needed, available = failed.facts["required"], chip.memory_bytes
    now = arrange.estimate(work_of(experiment, chip), shape, chip, slices).memory
    found: list[Remedy] = []
    tried = 0
    for changed, cost in changes(experiment, shape):
        try:
            other = check_devices(changed, devices, chip, slices)
        except ConfigError:
            continue
        then = arrange.estimate(work_of(changed, chip), other, chip, slices).memory
        # What the estimate does not see, temporaries mostly, shrinks with a microbatch's rows.
        unseen = max(0.0, needed - sum(now.values())) * min(1.0, experiment.accumulate / changed.accumulate)
        if sum(then.values()) + unseen > MARGIN * available:
            continue
        if tried == TRIES or len(found) == ENOUGH:
            break
        tried += 1
        text = flags(experiment, changed)
        try:
            compiled = compile_for(changed, topology, stage="schedule", label=f"trying {text}", out=out)
        except JaxlmError:
            continue
        if compiled.facts["fits"]:
            found.append(Remedy(text, cost, compiled.facts.get("laid_out", 0)))
    return found


def changes(experiment: Experiment, shape: dict[str, int]) -> Iterator[tuple[Experiment, str]]:
    """Yield changed experiments with what each costs, cheapest first."""
    rows = experiment.batch_size // experiment.layout.ways("batch", shape)
    splits = [n for n in range(2, rows + 1) if rows % n == 0 and n % experiment.accumulate == 0 and n > experiment.accumulate]
    # Every doubling at most: what lies between changes little.
    splits = [n for n in splits if not any(n / 2 < m < n for m in splits)]
    policies = {"none": ("dots", "full"), "dots": ("full",), "full": ()}.get(experiment.remat, ("full",))
    price = {"dots": "the backward pass computes again all but matrix products", "full": "a third more FLOPs"}
    for policy in policies:
        yield dataclasses.replace(experiment, remat=policy), price[policy]
    passes = "weights are gathered once a microbatch"
    for base, cost in ((experiment, ""), *((dataclasses.replace(experiment, remat=p), f", {price[p]}") for p in policies[-1:])):
        for accumulate in splits:
            yield dataclasses.replace(base, accumulate=accumulate), passes + cost
    full = dataclasses.replace(experiment, remat="full")
    for axis in ("model", "context"):
        for times in (2, 4, 8):
            if shape["data"] % times:
                continue
            sizes = {name: shape[name] for name in MESH_AXES} | {"data": shape["data"] // times, axis: shape[axis] * times}
            mesh = dataclasses.replace(experiment.mesh, auto=False, **sizes)
            yield dataclasses.replace(full, mesh=mesh), f"activations move over {axis} in every layer"
