"""An experiment made concrete on this machine: what every part of its run needs, and the programs it compiles."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from jaxlm import param
from jaxlm.config import to_dict
from jaxlm.data.mixture import Batches
from jaxlm.data.packing import Batch
from jaxlm.data.prepare import Prepared
from jaxlm.errors import CheckpointError, ConfigError
from jaxlm.eval.language_model import evaluate
from jaxlm.experiment import Experiment
from jaxlm.model import flops, moe, transformer
from jaxlm.model.config import ModelConfig
from jaxlm.model.intervention import freeze_routers, make_edit
from jaxlm.objective import language_model
from jaxlm.run import decisions, initial, rows
from jaxlm.run.agreement import agreed, told
from jaxlm.run.directory import versions
from jaxlm.train import checkpoint
from jaxlm.train.optimizer import make_optimizer, schedule
from jaxlm.train.step import TrainState, abstract_state, make_train_step


@dataclasses.dataclass(frozen=True)
class Setup:
    """A run's fixed parts."""

    experiment: Experiment
    model: ModelConfig
    """The experiment's, with every "auto" settled for this platform."""
    spec: Any
    optimizer: optax.GradientTransformation
    prepared: Prepared
    token_bytes: np.ndarray
    mesh: jax.sharding.Mesh

    def batches(self, split: str) -> Batches:
        """Return the batches of a split; with several processes, the rows of them that this one's devices take."""
        accumulate = self.experiment.accumulate if split == "train" else 1
        held = rows.local_rows(*self._placement(accumulate)) if jax.process_count() > 1 else None
        return Batches(self.prepared, split, self.experiment.batch_size, self.experiment.seed, rows=held)

    def reader(self, split: str) -> Callable[[int], tuple[Batch, np.ndarray]]:
        """Return read(step) -> this process's rows of a batch, and what `rows.describe_rows` says of them."""
        batches = self.batches(split)

        def read(step: int) -> tuple[Batch, np.ndarray]:
            batch = batches.batch(step)
            return batch, rows.describe_rows(batch, self.token_bytes)

        return read

    def place(self, batch: Batch, accumulate: int = 1) -> Batch:
        """Put this process's rows on the mesh: [B, L] or, for accumulation, [accumulate, B / accumulate, L]."""
        sharding, shape = self._placement(accumulate)
        if jax.process_count() == 1:
            return jax.device_put(jax.tree.map(lambda x: np.reshape(x, shape), batch), sharding)
        return jax.tree.map(lambda x: rows.place_rows(x, sharding, shape), batch)

    def place_described(self, described: np.ndarray, accumulate: int = 1) -> jax.Array:
        """Put what is said of this process's rows on the mesh, as the rows are: `rows.summarize_rows` reads it gathered."""
        sharding, shape = self._placement(accumulate)
        split = jax.sharding.NamedSharding(self.mesh, jax.P(*sharding.spec[:-1], None))
        return rows.place_rows(described, split, (*shape[:-1], described.shape[1]))

    def _placement(self, accumulate: int) -> tuple[jax.sharding.NamedSharding, tuple[int, ...]]:
        """Return how a batch's arrays lie on the mesh, and their shape."""
        spec = self.experiment.layout.spec("batch", "length")
        shape = (self.experiment.batch_size, self.experiment.data.sequence_length)
        if accumulate > 1:
            spec, shape = jax.P(None, *spec), (accumulate, shape[0] // accumulate, shape[1])
        return jax.sharding.NamedSharding(self.mesh, spec), shape

    def inputs(self, step: int, batch: Batch, described: np.ndarray, stop: bool) -> tuple[Any, ...]:
        """Return what a step takes: its batch and replayed experts, placed, and what processes tell one another, if many."""
        accumulate = self.experiment.accumulate
        placed = self.place(batch, accumulate)
        if jax.process_count() > 1:
            told = self.place_described(described, accumulate), rows.place_flag(stop, self.mesh)
            return placed, None, told
        replayed = None
        if self.experiment.router.replay:
            replayed = self.place_replayed(step, rows.summarize_rows(described)["batch_hash"])
        return placed, replayed

    def place_replayed(self, step: int, batch_hash: str) -> jax.Array:
        """Return the recorded experts that a step is to follow, [mixture layers, B, L, K], placed as its batch is."""
        accumulate = self.experiment.accumulate
        shape = decisions.shape_of(self.model, self.experiment.batch_size, self.experiment.data.sequence_length)
        experts = decisions.read_experts(Path(self.experiment.router.replay), step, batch_hash, shape)
        spec = jax.P(None, *self.experiment.layout.spec("batch", "length", None))
        if accumulate > 1:
            experts = np.moveaxis(experts.reshape(shape[0], accumulate, -1, *shape[2:]), 1, 0)
            spec = jax.P(None, *spec)
        return jax.device_put(experts, jax.sharding.NamedSharding(self.mesh, spec))

    def utilisation(self, tokens_per_second: float) -> float | None:
        """Return model FLOPs utilisation, where this device's peak is known."""
        peak = flops.peak_flops(self.mesh.devices.flat[0].device_kind)
        per_token = flops.train_flops_per_token(self.model, self.experiment.data.sequence_length)
        return tokens_per_second * per_token / (peak * self.mesh.size) if peak else None


def set_up(experiment: Experiment, prepared: Prepared, mesh: jax.sharding.Mesh) -> Setup:
    """Return the run's fixed parts; ConfigError where the tokenizer has tokens that the model has no row for."""
    tokenizer = prepared.tokenizer
    if tokenizer.vocab_size > experiment.model.vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, model.vocab_size = {experiment.model.vocab_size}: "
            f"set --model.vocab-size {tokenizer.vocab_size}"
        )
    model = experiment.model.for_platform(mesh.devices.flat[0].platform)
    spec = transformer.spec(model)
    if experiment.router.freeze:
        spec = freeze_routers(spec)
    optimizer = make_optimizer(experiment.optimizer, experiment.steps, spec)
    return Setup(experiment, model, spec, optimizer, prepared, tokenizer.token_bytes(), mesh)


def restore_or_begin(setup: Setup, saves: Path, say: Callable[[str], None]) -> TrainState:
    """Return the newest good state in `saves`, or a fresh one where there is none; damaged ones are named and moved aside.

    Which checkpoint is good is settled once, for all processes: process 0 verifies its files, and each must be able to read
    its part.
    """
    abstract = abstract_state(setup.spec, setup.optimizer, setup.experiment.layout, setup.mesh)

    def load(step: int) -> TrainState:
        with agreed(f"checkpoint {step} verified", timeout=3600):
            if jax.process_index() == 0:
                checkpoint.verify(saves, step)
        with agreed(f"checkpoint {step} compared"):
            checkpoint.compare(saves, step, checkpoint.items(abstract))
        with agreed(f"checkpoint {step} read", timeout=3600):
            state = checkpoint.read_state(saves, step, abstract, verified=True)
            if int(state.step) != step:
                raise CheckpointError(f"checkpoint {saves / str(step)} holds the state of step {int(state.step)}")
            return state

    steps = told("list of checkpoints", checkpoint.saved_steps(saves))
    found = checkpoint.newest_good(saves, load, lambda fault: say(f"[yellow]warning:[/] {fault}"), steps)
    if found is None:
        return initial.begin(setup.experiment, setup.model, setup.spec, setup.optimizer, setup.mesh)
    with agreed("damaged checkpoints moved"):
        for step in [s for s in steps if s > found[0] and jax.process_index() == 0]:
            say(f"moved checkpoint {step} to {checkpoint.set_aside(saves, step)}")
    return found[1]


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

    program = step if len(inputs) == 2 else step_and_tell
    return jax.jit(program, donate_argnums=0).lower(state, inputs).compile()


def make_step(
    experiment: Experiment, model: ModelConfig, spec: Any, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Any], tuple[TrainState, dict]]:
    """Return an experiment's step(state, (batch, replayed experts or None)), for the current mesh."""

    def loss_of(params: Any, inputs: Any, key: jax.Array) -> Any:
        batch, replayed = inputs
        # Layers draw from the numbers below num_layers, the embedding from num_layers itself.
        router_key = jax.random.fold_in(key, model.num_layers + 1)
        edit = make_edit(experiment.router, model, batch.tokens, router_key, replayed)
        return language_model.loss(
            param.fixed(params, spec), batch, model, experiment.layout, z_loss=experiment.z_loss, remat=experiment.remat,
            key=key, edit=edit, record=bool(experiment.router.record),
        )  # fmt: skip

    def after_update(params: Any, sums: language_model.Sums) -> Any:
        if sums.router is None:
            return params
        return params.replace(blocks=moe.rebalance(params.blocks, sums.router.load, model))

    rate = schedule(experiment.optimizer, experiment.steps)
    return make_train_step(loss_of, optimizer, rate, experiment.guard, experiment.accumulate, after_update)


def make_validate(setup: Setup) -> Callable[[Any], dict[str, float]] | None:
    """Return validate(params) -> loss and its kin over the held-out batches; None where nothing is held out."""
    if not setup.prepared.validation.rows:
        return None
    read, num_batches = setup.reader("validation"), setup.batches("validation").num_batches
    count = min(setup.experiment.evaluation.batches or num_batches, num_batches)
    router = dataclasses.replace(setup.experiment.router, replay="")

    @jax.jit
    def sums_of(params: Any, batch: Any) -> language_model.Sums:
        edit = make_edit(router, setup.model, batch.tokens)
        sums = language_model.loss(params, batch, setup.model, setup.experiment.layout, edit=edit)[1]
        return rows.everywhere(sums) if jax.process_count() > 1 else sums

    gather = jax.jit(rows.everywhere)
    bytes_of: dict[int, int] = {}  # by batch: the same ones are read at every validation

    def placed(index: int) -> tuple[Batch, int]:
        batch, described = read(index)
        if index not in bytes_of:
            if jax.process_count() > 1:
                described = jax.device_get(gather(setup.place_described(described)))
            bytes_of[index] = rows.summarize_rows(described)["bytes"]
        return setup.place(batch), bytes_of[index]

    return lambda params: evaluate(sums_of, params, map(placed, range(count)))


def describe_checkpoint(setup: Setup, step: int) -> dict[str, Any]:
    """Return what a checkpoint says of itself, enough to read it with nothing else at hand."""
    return {
        "jaxlm": versions()["jaxlm"],
        "experiment": to_dict(setup.experiment),
        "tokenizer": setup.prepared.tokenizer.digest,
        "data": {"key": setup.prepared.key, "seed": setup.experiment.seed, "next_step": step},
        "mesh": dict(setup.mesh.shape),
        "processes": jax.process_count(),
        "versions": versions(),
    }
