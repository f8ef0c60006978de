"""The state a run begins from: drawn, copied from another run, or upcycled from a dense one."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import optax

from jaxlm import param
from jaxlm.config import difference
from jaxlm.errors import CheckpointError, ConfigError
from jaxlm.experiment import Experiment
from jaxlm.function_file import identity
from jaxlm.model import lora, transformer
from jaxlm.model.config import ModelConfig
from jaxlm.model.upcycle import check_upcycling, upcycle
from jaxlm.run import display
from jaxlm.run.agreement import agreed, told
from jaxlm.run.directory import CHECKPOINTS, TOKENIZER
from jaxlm.run.open import described, read_params
from jaxlm.train import checkpoint
from jaxlm.train.saved import saved_steps
from jaxlm.train.step import TrainState, init_state

# Fields of a model that its weights leave open: a tuned one may have dropout.
OPEN = ("dropout", "init_std", "init_scale", "embedding_init_std", "compute_dtype", "attention_kernel")

# What else a run may change of the model that it begins from, to learn longer contexts: where tokens stand.
POSITIONS = ("max_length", "rope_theta", "rope_scaling")

# Of a mixture, what belongs to training alone.
OPEN_OF_MIXTURE = (
    "jitter", "capacity_factor", "load_balancing_loss", "balance_over", "router_z_loss", "importance_loss", "load_loss",
    "losses_over_layers", "bias_update_rate", "expert_dropout", "router_init_std", "kernel",
)  # fmt: skip


def begin(
    experiment: Experiment, model: ModelConfig, spec: Any, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh,
    tokenizer: str, step: int | None = None,
) -> TrainState:  # fmt: skip
    """Return the state before step 0, on the current mesh; adapters of this run are new, those of the other run merged.

    Of the run to begin from, `step` is the checkpoint to take; None: the newest that can be read. `tokenizer` is the digest of
    the one that the data has: ConfigError where the other run's is another, whose ids its embeddings are of.
    """
    # One jitted draw, so that no device ever holds more than its own part.
    state = jax.jit(lambda: init_state(spec, optimizer, experiment.layout, experiment.seed))()
    if not experiment.init_from:
        return state
    params = _from_run(Path(experiment.init_from), experiment, model, mesh, tokenizer, step)
    return dataclasses.replace(state, params=lora.attach(params, state.params))


def _from_run(
    folder: Path, experiment: Experiment, model: ModelConfig, mesh: jax.sharding.Mesh, tokenizer: str, step: int | None
) -> Any:
    """Return the parameters of a run's checkpoint (None: the newest readable one), made into the experiment's model."""
    saves = folder / CHECKPOINTS
    out = display.console(quiet=jax.process_index() > 0)

    def load(step: int) -> Any:
        with agreed(f"checkpoint {step} of {folder} described"):
            _, found = described(saves, step, mesh)
            if checkpoint.description(saves, step).get("tokenizer") not in (None, tokenizer):
                raise ConfigError(
                    f"init_from = {folder} was trained with another tokenizer than the data has: set --data.tokenizer.path "
                    f"{folder / TOKENIZER}"
                )
            same = _shapes(found) == _shapes(model)
            alike = chosen_anew(found, model)
            if found.positions == model.positions == "rope":
                alike = _at_new_positions(alike, found, model, folder, out)
            if not same or dataclasses.replace(alike, moe=model.moe) != model:
                check_upcycling(alike, model)
        with agreed(f"checkpoint {step} of {folder} read", timeout=3600):
            params = read_params(saves, step, found, experiment.layout, mesh)
        if same:
            return params
        key = jax.random.fold_in(jax.random.key(experiment.seed), 0)
        return jax.jit(lambda dense: upcycle(dense, alike, model, experiment.layout, key))(params)

    steps = told(f"list of checkpoints in {folder}", saved_steps(saves)) if step is None else [step]
    newest = checkpoint.newest_good(saves, load, lambda fault: out.print(f"[yellow]warning:[/] {fault}"), steps)
    if newest is None:
        raise CheckpointError(f"init_from = {folder}: there is no checkpoint in {saves}")
    return newest[1]


def _at_new_positions(alike: ModelConfig, found: ModelConfig, model: ModelConfig, folder: Path, out: Any) -> ModelConfig:
    """Return `alike` with the positions of `model`, and say what is new; ConfigError where they are not for longer rows."""
    before, moved = (dataclasses.replace(alike, **{name: getattr(of, name) for name in POSITIONS}) for of in (found, model))
    differences = difference(before, moved)
    others = [each for each in differences if each[0] != "max_length"]
    if others and model.max_length <= found.max_length:
        name, there, here = others[0]
        raise ConfigError(
            f"model.{name} = {here}, and {folder}, which init_from names, has {there}: it has learnt those positions. "
            f"Take the same, or set --model.max-length above {found.max_length} to go on at longer rows with others"
        )
    scaling = model.rope_scaling
    original = found.rope_scaling.original_length or found.max_length
    if scaling.needs_original and not scaling.original_length and original != model.max_length:
        raise ConfigError(
            f"model.rope_scaling.kind = {scaling.kind!r} begins from {folder}, whose original length is {original} tokens: set "
            f"--model.rope-scaling.original-length {original}, or it would be taken to be {model.max_length}"
        )
    for name, there, here in differences:
        out.print(f"positions other than those of {folder}: model.{name} = {here}, there {there}", soft_wrap=True, markup=False)
    return moved


def chosen_anew(found: ModelConfig, model: ModelConfig) -> ModelConfig:
    """Return the model that was found, with those of `model`'s fields that its weights leave open."""
    scaled = found.rope_scaling.needs_original and not found.rope_scaling.original_length  # by max_length, then
    names = OPEN if found.positions == "learned" or scaled else ("max_length", *OPEN)
    anew = {name: getattr(model, name) for name in names}
    if identity(found.positions) == identity(model.positions):  # a file that was moved is the same function
        anew["positions"] = model.positions
    if identity(found.moe.router) == identity(model.moe.router):
        anew["moe"] = dataclasses.replace(found.moe, router=model.moe.router)
    return dataclasses.replace(found, **anew)


def same_function(found: ModelConfig, model: ModelConfig) -> bool:
    """Return whether two models compute the same of the same weights, but for rounding, when nothing of training is on."""
    alike = chosen_anew(found, model)
    moe = dataclasses.replace(alike.moe, **{name: getattr(model.moe, name) for name in OPEN_OF_MIXTURE})
    return dataclasses.replace(alike, moe=moe) == model


def _shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    return {name: leaf.shape for name, leaf in param.named_leaves(transformer.spec(model)).items()}
