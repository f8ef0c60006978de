"""The state a run begins from: drawn, copied from another run, or upcycled from a dense one."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import optax

from jaxlm import param
from jaxlm.config import from_dict
from jaxlm.errors import CheckpointError, ConfigError
from jaxlm.experiment import Experiment
from jaxlm.model import transformer
from jaxlm.model.config import ModelConfig
from jaxlm.model.upcycle import check_upcycling, upcycle
from jaxlm.run.directory import CHECKPOINTS
from jaxlm.train import checkpoint
from jaxlm.train.step import TrainState, init_state


def begin(
    experiment: Experiment, model: ModelConfig, spec: Any, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> TrainState:
    """Return the state before step 0, on the current mesh."""
    # One jitted draw, so that no device ever holds more than its own part.
    state = jax.jit(lambda: init_state(spec, optimizer, experiment.layout, experiment.seed))()
    if not experiment.init_from:
        return state
    return dataclasses.replace(state, params=_from_run(Path(experiment.init_from), experiment, model, mesh))


def _from_run(folder: Path, experiment: Experiment, model: ModelConfig, mesh: jax.sharding.Mesh) -> Any:
    """Return the parameters of a run's newest checkpoint, made into the experiment's model."""
    saves = folder / CHECKPOINTS
    steps = checkpoint.saved_steps(saves)
    if not steps:
        raise CheckpointError(f"init_from = {folder}: there is no checkpoint in {saves}")
    try:
        described = from_dict(Experiment, checkpoint.description(saves, steps[-1])["experiment"])
    except (KeyError, ConfigError) as fault:
        raise CheckpointError(f"checkpoint {saves / str(steps[-1])} describes no model of this version: {fault}") from fault
    found = described.model.for_platform(mesh.devices.flat[0].platform)
    same = dataclasses.replace(found, moe=model.moe) == model and parts(found) == parts(model)
    if not same:
        check_upcycling(found, model)
    abstract = param.abstract(transformer.spec(found), experiment.layout, mesh)
    params = checkpoint.read(saves, steps[-1], {"params": abstract})["params"]
    if same:
        return params
    key = jax.random.fold_in(jax.random.key(experiment.seed), 0)
    return jax.jit(lambda dense: upcycle(dense, found, model, experiment.layout, key))(params)


def parts(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter, by name."""
    return {name: leaf.shape for name, leaf in param.named_leaves(transformer.spec(model)).items()}
