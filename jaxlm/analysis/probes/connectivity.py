"""Linear mode connectivity and weight averaging: the loss between checkpoints, between runs, and of averages.

Along the straight line of weights from this checkpoint to the last (Frankle et al. 2019, arXiv:1912.05671) or to another run's
last; and of the mean of all checkpoints so far, exponential averages, and the mean of the last few (arXiv:1803.05407).
"""

from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np

from jaxlm.analysis.averages import Path as Line
from jaxlm.analysis.averages import along, begun, joined_by, mean_of
from jaxlm.analysis.measure import Measure
from jaxlm.analysis.similarity import evenly
from jaxlm.analysis.view import View
from jaxlm.config import Range, config
from jaxlm.data.packing import Batch
from jaxlm.errors import CheckpointError, ConfigError
from jaxlm.model import transformer
from jaxlm.param import named_leaves
from jaxlm.run.directory import CHECKPOINTS
from jaxlm.run.open import described, read_params
from jaxlm.train.saved import saved_steps


@config
class ConnectivityConfig:
    """Which paths and averages are measured."""

    points: Annotated[int, Range(2)] = 5
    """Places along a path, both ends included."""
    rows: Annotated[int, Range(1)] = 4
    """Rows of those read on which losses are measured."""
    to_last: bool = True
    """The path to the last checkpoint; in a run that still trains, that changes and all is measured again."""
    decays: tuple[Annotated[float, Range(0, 1)], ...] = (0.5, 0.9)
    """Of the exponential averages, from one checkpoint to the next."""
    latest: tuple[Annotated[int, Range(1)], ...] = (3,)
    """How many of the last checkpoints are averaged."""
    most: Annotated[int, Range(1)] = 100
    """Averages are over this many checkpoints up to this one, at most: each is read."""
    other: str = ""
    """Another run's folder: the path to its last checkpoint is measured, too."""


SETTINGS = ConnectivityConfig()


def probe(view: View, settings: ConnectivityConfig) -> dict[str, Measure]:
    """Return losses between this checkpoint and the last, the barrier, and losses of averages of those so far."""
    batch = Batch(*(x[evenly(np.arange(len(view.rows.tokens)), settings.rows)] for x in view.rows[:5]))

    def loss_of(params: Any) -> float:
        return view.mean_loss(params, batch=batch)

    own, found = loss_of(view.params), {}
    if settings.to_last:
        last = view.last
        line = along(loss_of, view.params, last.params, settings.points)
        found |= _of_line("last", f"to the last checkpoint, step {last.step}", line)
    if settings.other:
        line = along(loss_of, view.params, other_params(Path(settings.other), view), settings.points)
        found |= _of_line("other", f"to the last checkpoint of {settings.other}", line)
    losses, counts = averaged(view, settings, loss_of)
    labels = {"average": ["own", *losses]}
    about = "loss of averages of the checkpoints up to this one, beside its own"
    found["average_loss"] = Measure([own, *losses.values()], ("average",), labels, "nats", about)
    about = "of how many checkpoints each is an average: those that were retired are not among them"
    found["average_of"] = Measure([1, *counts], ("average",), labels, "checkpoints", about)
    return found


def averaged(view: View, settings: ConnectivityConfig, loss_of: Any) -> tuple[dict[str, float], list[int]]:
    """Return the loss of averages over checkpoints up to this one by name, and of how many checkpoints each is."""
    steps, keep = view.steps_so_far[-settings.most :], max(settings.latest, default=1)
    running = begun(view.at(steps[0]).params, settings.decays)
    for step in steps[1:]:
        running = joined_by(running, view.at(step).params, keep)
    averages = {"uniform": running.mean}
    averages |= {f"exponential {decay:g}": average for decay, average in running.decayed.items()}
    averages |= {f"last {count}": mean_of(running.latest[-count:]) for count in settings.latest}
    counts = [running.count] * (1 + len(running.decayed)) + [min(count, running.count) for count in settings.latest]
    return {name: loss_of(average) for name, average in averages.items()}, counts


def _of_line(name: str, where: str, line: Line) -> dict[str, Measure]:
    parts = [f"{part:.2f}" for part in line.parts]
    return {
        f"path_to_{name}": Measure(line.losses, ("part",), {"part": parts}, "nats", f"loss on the straight line {where}"),
        f"barrier_to_{name}": Measure(
            line.barrier, unit="nats", about=f"how far that loss rises above the line between its ends, {where}"
        ),
    }


def other_params(folder: Path, view: View) -> Any:
    """Return the parameters of another run's last checkpoint, placed beside the view's; ConfigError where shapes differ."""
    saves = folder / CHECKPOINTS
    steps = saved_steps(saves)
    if not steps:
        raise CheckpointError(f"connectivity.other = {str(folder)!r} has no checkpoint: name the folder of a run that has")
    _, model = described(saves, steps[-1], view.mesh)
    theirs, ours = (
        {name: leaf.shape for name, leaf in named_leaves(transformer.spec(each)).items()} for each in (model, view.model)
    )
    if theirs != ours:
        name = next(name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name))
        raise ConfigError(
            f"connectivity.other = {str(folder)!r} is of another model: its {name} is {theirs.get(name)}, here "
            f"{ours.get(name)}; only weights of the same shapes have a straight line between them"
        )
    with jax.set_mesh(view.mesh):
        return read_params(saves, steps[-1], view.model, view.layout, view.mesh)
