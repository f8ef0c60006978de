"""An experiment made concrete on this machine: what every part of its run needs."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from jaxlm.config import to_dict
from jaxlm.data.mixture import Batches
from jaxlm.data.packing import Batch
from jaxlm.data.pairs import PairBatch
from jaxlm.data.prepare import Prepared
from jaxlm.errors import CheckpointError, ConfigError
from jaxlm.experiment import Experiment
from jaxlm.model import flops, lora, transformer
from jaxlm.model.config import ModelConfig
from jaxlm.model.intervention import freeze_routers
from jaxlm.run import decisions, initial, rows
from jaxlm.run.agreement import agreed, told
from jaxlm.run.directory import versions
from jaxlm.train import checkpoint
from jaxlm.train.checkpoint_writer import items
from jaxlm.train.optimizer import make_optimizer
from jaxlm.train.saved import saved_steps
from jaxlm.train.step import TrainState, abstract_state

AnyBatch = Batch | PairBatch


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
    reference: Any = None
    """Parameters of the model that preferences are measured against, where it runs beside the policy."""
    reference_log_probs: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """Its log-probabilities of every pair of a split [pairs, 2], where they were computed once."""
    reference_described: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Which run and checkpoint it is."""

    def plain(self, params: Any) -> Any:
        """Return parameters without adapters: each merged into its weight."""
        return lora.merge(params) if self.experiment.lora.rank else params

    def batches(self, split: str, *, in_order: bool = False) -> Batches:
        """Return the batches of a split; with several processes, the rows of them that this one's devices take.

        `in_order` shows training rows in order, once, as those held out are, and in one piece.
        """
        accumulate, size = self.experiment.accumulate if split == "train" and not in_order else 1, self.experiment.batch_size
        held = None
        if jax.process_count() > 1:
            held = rows.local_rows(*self._placement("length", accumulate=accumulate), 2 if accumulate > 1 else 1)
            held = np.unique(held // (self.experiment.rows // size))
        reference, shuffle = self.reference_log_probs.get(split), False if in_order else None
        return Batches(self.prepared, split, size, self.experiment.seed, rows=held, reference=reference, shuffle=shuffle)

    def reader(self, split: str) -> Callable[[int], tuple[AnyBatch, np.ndarray]]:
        """Return read(step) -> this process's rows of a batch, and what `rows.describe_rows` says of them."""
        batches = self.batches(split)

        def read(step: int) -> tuple[AnyBatch, np.ndarray]:
            batch = batches.batch(step)
            return batch, rows.describe_rows(batch, self.token_bytes)

        return read

    def place(self, batch: AnyBatch, accumulate: int = 1) -> AnyBatch:
        """Put this process's rows on the mesh: [B, ...] or, for accumulation, [accumulate, B / accumulate, ...]."""
        places = {2: self._placement("length", accumulate=accumulate), 1: self._placement(accumulate=accumulate)}
        if jax.process_count() > 1:
            return jax.tree.map(lambda x: rows.place_rows(x, *places[x.ndim]), batch)
        shaped = jax.tree.map(lambda x: np.reshape(x, places[x.ndim][1]), batch)
        return jax.device_put(shaped, jax.tree.map(lambda x: places[x.ndim][0], batch))

    def place_described(self, described: np.ndarray, accumulate: int = 1) -> jax.Array:
        """Put what is said of this process's rows on the mesh, as the rows are: `rows.summarize_rows` reads it gathered."""
        sharding, shape = self._placement(None, accumulate=accumulate)
        return rows.place_rows(described, sharding, (*shape[:-1], described.shape[1]))

    def _placement(self, *axes: str | None, accumulate: int) -> tuple[jax.sharding.NamedSharding, tuple[int, ...]]:
        """Return how an array with these axes after its rows lies on the mesh, and its shape (an axis has the row's length)."""
        spec = self.experiment.layout.spec("batch", *axes)
        shape = (self.experiment.rows, *(self.experiment.data.sequence_length for _ in axes))
        if accumulate > 1:
            spec, shape = jax.P(None, *spec), (accumulate, shape[0] // accumulate, *shape[1:])
        return jax.sharding.NamedSharding(self.mesh, spec), shape

    def inputs(self, step: int, batch: AnyBatch, described: np.ndarray, stop: bool) -> tuple[Any, ...]:
        """Return what a step takes, placed: batch, replayed experts, reference; of many processes what they tell, too."""
        accumulate = self.experiment.accumulate
        placed, replayed = self.place(batch, accumulate), None
        if jax.process_count() > 1:
            told = self.place_described(described, accumulate), rows.place_flag(stop, self.mesh)
            return placed, None, self.reference, told
        if self.experiment.router.replay:
            replayed = self.place_replayed(step, rows.summarize_rows(described)["batch_hash"])
        return placed, replayed, self.reference

    def place_replayed(self, step: int, batch_hash: str) -> jax.Array:
        """Return the recorded experts that a step is to follow, [mixture layers, B, L, K], placed as its batch is."""
        accumulate = self.experiment.accumulate
        shape = decisions.shape_of(self.model, self.experiment.rows, self.experiment.data.sequence_length)
        experts = decisions.read_experts(Path(self.experiment.router.replay), step, batch_hash, shape)
        spec = jax.P(None, *self.experiment.layout.spec("batch", "length", None))
        if accumulate > 1:
            experts = np.moveaxis(experts.reshape(shape[0], accumulate, -1, *shape[2:]), 1, 0)
            spec = jax.P(None, *spec)
        return jax.device_put(experts, jax.sharding.NamedSharding(self.mesh, spec))

    def utilisation(self, tokens_per_second: float) -> float | None:
        """Return model FLOPs utilisation, where this device's peak is known."""
        peak = flops.peak_flops(self.mesh.devices.flat[0].device_kind)
        per_token = flops.train_flops_per_token(self.model, self.experiment.data.sequence_length, self.experiment.trained_share)
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
    spec = spec_of(experiment, model)
    optimizer = make_optimizer(experiment.optimizer, experiment.steps, spec)
    return Setup(experiment, model, spec, optimizer, prepared, tokenizer.token_bytes(), mesh)


def spec_of(experiment: Experiment, model: ModelConfig) -> Any:
    """Return the spec of what a run trains: the model's, with what it freezes and adapts."""
    spec = transformer.spec(model)
    if experiment.router.freeze:
        spec = freeze_routers(spec)
    return lora.adapt(spec, experiment.lora) if experiment.lora.rank else spec


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
            checkpoint.compare(saves, step, items(abstract))
        with agreed(f"checkpoint {step} read", timeout=3600):
            state = checkpoint.read_state(saves, step, abstract, verified=True)
            if int(state.step) != step:
                raise CheckpointError(f"checkpoint {saves / str(step)} holds the state of step {int(state.step)}")
            return state

    steps = told("list of checkpoints", saved_steps(saves))
    found = checkpoint.newest_good(saves, load, lambda fault: say(f"[yellow]warning:[/] {fault}"), steps)
    if found is None:
        reference, home = setup.reference_described, setup.experiment.init_from
        step = reference["step"] if reference and Path(reference["run"]) == Path(home) else None  # ln 2 at the first step
        digest = setup.prepared.tokenizer.digest
        return initial.begin(setup.experiment, setup.model, setup.spec, setup.optimizer, setup.mesh, digest, step)
    with agreed("damaged checkpoints moved"):
        for step in [s for s in steps if s > found[0] and jax.process_index() == 0]:
            say(f"moved checkpoint {step} to {checkpoint.set_aside(saves, step)}")
    return found[1]


def describe_checkpoint(setup: Setup, step: int) -> dict[str, Any]:
    """Return what a checkpoint says of itself, enough to read it with nothing else at hand."""
    return {
        "jaxlm": versions()["jaxlm"],
        "experiment": to_dict(setup.experiment),
        "tokenizer": setup.prepared.tokenizer.digest,
        "data": {"key": setup.prepared.key, "seed": setup.experiment.seed, "next_step": step},
        "mesh": dict(setup.mesh.shape),
        "reference": dict(setup.reference_described),
        "processes": jax.process_count(),
        "versions": versions(),
    }
