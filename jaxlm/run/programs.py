"""What a run compiles: its objective, its training step, its validation."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxlm.eval.language_model import evaluate
from jaxlm.experiment import Experiment
from jaxlm.model import lora, moe
from jaxlm.model.config import ModelConfig
from jaxlm.model.intervention import make_edit
from jaxlm.objective import language_model, own, preference
from jaxlm.run import rows
from jaxlm.run.setup import AnyBatch, Setup
from jaxlm.train.optimizer import schedule
from jaxlm.train.step import Sums, TrainState, make_train_step


def compile_step(setup: Setup, state: TrainState, inputs: Any) -> Callable[[TrainState, Any], tuple[TrainState, dict]]:
    """Compile the train step once, ahead of time, its state donated: another shape later is an error, not a recompilation.

    With several processes the same program gathers what they tell of their rows: a program of its own could meet the step's
    on the network in another order on each.
    """
    step = make_step(setup.experiment, setup.model, setup.spec, setup.optimizer)

    def step_and_tell(state: TrainState, inputs: Any) -> tuple[TrainState, dict]:
        *inputs, (described, flags) = inputs
        state, results = step(state, tuple(inputs))
        told = {"rows": rows.everywhere(described), "stop": rows.any_flag(flags)}
        return state, rows.everywhere(results) | told

    program = step if len(inputs) == 3 else step_and_tell
    return jax.jit(program, donate_argnums=0).lower(state, inputs).compile()


def make_step(
    experiment: Experiment, model: ModelConfig, spec: Any, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Any], tuple[TrainState, dict]]:
    """Return an experiment's step(state, (batch, replayed experts or None, reference or None)), for the current mesh."""
    objective = make_objective(experiment, model)

    def after_update(params: Any, sums: Sums) -> Any:
        # Adapters leave all else as it is, a router's bias, too; so do preferences where its losses are off.
        still = experiment.lora.rank or (experiment.paired and not experiment.preference.router_losses)
        if sums.router is None or still:
            return params
        return params.replace(blocks=moe.rebalance(params.blocks, sums.router.load, model))

    rate = schedule(experiment.optimizer, experiment.steps)

    def step(state: TrainState, inputs: Any) -> tuple[TrainState, dict]:
        *inputs, reference = inputs
        take = make_train_step(
            lambda params, batch, key: objective(params, batch, key, reference),
            spec, optimizer, rate, experiment.guard, experiment.accumulate, after_update,
        )  # fmt: skip
        return take(state, tuple(inputs))

    return step


def make_objective(experiment: Experiment, model: ModelConfig) -> Callable[..., tuple[jax.Array, Sums]]:
    """Return what a run minimises, objective(params, (batch, replayed experts or None), key, reference) -> (loss, sums).

    With a key it is training's, without one that of held-out batches: no randomness, nothing recomputed or recorded.
    """

    def objective(params: Any, inputs: Any, key: jax.Array | None, reference: Any = None) -> tuple[jax.Array, Sums]:
        (batch, replayed), training = inputs, key is not None
        # Layers draw from the numbers below num_layers, the embedding from num_layers itself.
        router_key = jax.random.fold_in(key, model.num_layers + 1) if training else None
        edit = make_edit(experiment.router, model, batch.tokens, router_key, replayed)
        options: dict[str, Any] = {"edit": edit}
        if training:
            options |= {"remat": experiment.remat, "record": bool(experiment.router.record)}
        if experiment.paired:
            if experiment.reference_is_base:
                reference = lora.detach(params)
            return preference.loss(
                params, batch, model, experiment.layout, experiment.preference, reference_params=reference, **options
            )
        options |= {"z_loss": experiment.z_loss if training else 0.0, "key": key}
        if experiment.objective:
            return own.loss(experiment.objective, params, batch, model, experiment.layout, **options)
        return language_model.loss(params, batch, model, experiment.layout, **options)

    return objective


def make_validate(setup: Setup) -> Callable[[Any], dict[str, float]] | None:
    """Return validate(params) -> loss and its kin over the held-out batches; None where nothing is held out."""
    if not setup.prepared.validation.rows:
        return None
    read, num_batches = setup.reader("validation"), setup.batches("validation").num_batches
    count = min(setup.experiment.evaluation.batches or num_batches, num_batches)
    router = dataclasses.replace(setup.experiment.router, replay="")
    objective = make_objective(dataclasses.replace(setup.experiment, router=router), setup.model)

    @jax.jit
    def sums_of(params: Any, batch: Any, reference: Any) -> Sums:
        sums = objective(params, (batch, None), None, reference)[1]
        return rows.everywhere(sums) if jax.process_count() > 1 else sums

    gather = jax.jit(rows.everywhere)
    bytes_of: dict[int, int] = {}  # by batch: the same ones are read at every validation

    def placed(index: int) -> tuple[AnyBatch, int]:
        batch, described = read(index)
        if index not in bytes_of:
            if jax.process_count() > 1:
                described = jax.device_get(gather(setup.place_described(described)))
            bytes_of[index] = rows.summarize_rows(described)["bytes"]
        return setup.place(batch), bytes_of[index]

    def sums(params: Any, batch: AnyBatch) -> Sums:
        return sums_of(params, batch, setup.reference)

    return lambda params: evaluate(sums, params, map(placed, range(count)))
