"""One optimizer step: the state it carries, gradients over microbatches, the guard against bad steps."""

from collections.abc import Callable
from typing import Annotated, Any, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from jaxlm import param
from jaxlm.config import Range, config
from jaxlm.layout import Layout
from jaxlm.model.moe import Decisions
from jaxlm.ops import routing


class Sums(Protocol):
    """What an objective gives besides its summed loss: a tuple of sums that add up over microbatches.

    `router` and `decisions` are what a mixture's routers did, None for other models.
    """

    router: routing.Statistics | None
    decisions: Decisions | None

    @property
    def weight(self) -> Array:
        """What a mean of the loss is over: tokens, pairs."""

    @property
    def total(self) -> Array:
        """The summed loss, without what routers add to it."""

    def metrics(self) -> dict[str, Array]:
        """Return means by their names, among them `loss`, `accuracy` and `tokens` (those that counted)."""

    def _replace(self, **fields: Any) -> "Sums": ...


# loss_of(params, batch, key) -> (summed loss, Sums)
LossOf = Callable[[Any, Any, Array], tuple[Array, Sums]]
# after_update(params, Sums) -> params, with what no gradient moves (a router's balancing bias) moved
AfterUpdate = Callable[[Any, Sums], Any]


@config
class GuardConfig:
    """A step whose loss or gradient is not finite, or whose gradient norm spikes, changes nothing and is counted."""

    spike_factor: Annotated[float, Range(0)] = 10.0
    """Skip a step whose gradient norm exceeds this many times its running mean; 0 skips only what is not finite."""
    settle_steps: Annotated[int, Range(1)] = 100
    """Good steps before spikes are looked for."""
    max_skipped_in_a_row: Annotated[int, Range(1)] = 10
    """Abort after this many; the last good checkpoint is kept."""


@struct.dataclass
class Guard:
    """What the guard remembers (scalars)."""

    mean_norm: Array  # running mean of the gradient norm over good steps
    good: Array  # good steps so far
    skipped: Array  # skipped steps so far
    streak: Array  # skipped steps in a row, now


@struct.dataclass
class TrainState:
    """Everything a run needs to continue to the bit, but for the data, which is a function of (seed, step)."""

    step: Array  # next step, int32
    rng: Array  # key data, uint32: step s draws from fold_in(key, s)
    params: Any
    optimizer: Any
    guard: Guard


def init_state(spec: Any, optimizer: optax.GradientTransformation, layout: Layout, seed: int) -> TrainState:
    """Draw a fresh state on the current mesh; optimizer state is placed as its parameters are, and frozen ones have none."""
    key = jax.random.key(seed)
    params = param.initialize(spec, jax.random.fold_in(key, 0), layout)
    integer = jnp.zeros((), jnp.int32)
    guard = Guard(mean_norm=jnp.zeros(()), good=integer, skipped=integer, streak=integer)
    return TrainState(
        step=integer,
        rng=jax.random.key_data(jax.random.fold_in(key, 1)),
        params=params,
        optimizer=optimizer.init(param.split(params, spec)[0]),
        guard=guard,
    )


def abstract_state(
    spec: Any, optimizer: optax.GradientTransformation, layout: Layout, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh
) -> TrainState:
    """Return the state as `jax.ShapeDtypeStruct`s with shardings, allocating nothing: a restore target, a plan's input."""
    with jax.sharding.use_abstract_mesh(getattr(mesh, "abstract_mesh", mesh)):
        shapes = jax.eval_shape(lambda: init_state(spec, optimizer, layout, 0))

    def place(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = jax.sharding.NamedSharding(mesh, x.sharding.spec if x.sharding is not None else jax.P())
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(place, shapes)


def make_train_step(
    loss_of: LossOf,
    spec: Any,
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    guard: GuardConfig,
    accumulate: int = 1,
    after_update: AfterUpdate = lambda params, sums: params,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]:
    """Return `step(state, batch) -> (state, metrics)`, to be compiled once with the state donated.

    The batch's arrays are [B, ...], or [accumulate, B / accumulate, ...] where gradients are accumulated. What `spec` calls
    state has no gradient. Metrics are float32 scalars: those of the objective's sums, gradient_norm, update_ratio (norm of
    the update over norm of the trained parameters), learning_rate, skipped (0 or 1), skipped_total, skipped_in_a_row; of
    mixtures of experts also those of `routing.summarize`, [mixture layers] each, and `decisions` where `loss_of` gives them.
    """

    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        trained, kept = param.split(state.params, spec)
        gradients, sums = accumulated_gradients(
            lambda some, batch, key: loss_of(param.join(some, kept), batch, key), trained, batch, key, accumulate
        )
        norm = optax.tree.norm(gradients)
        good, remembered = judge(state.guard, sums.total / sums.weight, norm, guard)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, trained)
        params = after_update(param.join(optax.apply_updates(trained, updates), kept), sums)
        params, optimizer_state = jax.tree.map(
            lambda new, old: jnp.where(good, new, old), (params, optimizer_state), (state.params, state.optimizer)
        )
        metrics = sums.metrics() | {
            "gradient_norm": norm,
            "update_ratio": optax.tree.norm(updates) / optax.tree.norm(trained),
            "learning_rate": jnp.asarray(learning_rate(remembered.good - good), jnp.float32),
            "skipped": 1.0 - good,
            "skipped_total": remembered.skipped,
            "skipped_in_a_row": remembered.streak,
        }
        metrics |= routing.summarize(sums.router) if sums.router is not None else {}
        metrics = jax.tree.map(lambda x: x.astype(jnp.float32), metrics)
        metrics |= {"decisions": sums.decisions} if sums.decisions is not None else {}
        return TrainState(state.step + 1, state.rng, params, optimizer_state, remembered), metrics

    return step


def accumulated_gradients(loss_of: LossOf, params: Any, batch: Any, key: Array, accumulate: int) -> tuple[Any, Sums]:
    """Return the gradient of the mean loss over all that the step's sums are over, microbatch by microbatch, and the sums.

    Decisions, where there are any, are laid one microbatch after the other: [mixture layers, B, L, K], as the batch's rows.
    """
    gradients_of = jax.grad(loss_of, has_aux=True)
    if accumulate == 1:
        gradients, sums = gradients_of(params, batch, key)
    else:

        def one_more(so_far: Any, microbatch: tuple[Any, Array]) -> tuple[Any, Any]:
            part, index = microbatch
            gradients, sums = gradients_of(params, part, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, so_far, (gradients, sums._replace(decisions=None))), sums.decisions

        shapes = jax.eval_shape(gradients_of, params, jax.tree.map(lambda x: x[0], batch), key)
        zeros = jax.tree.map(jnp.zeros_like, (shapes[0], shapes[1]._replace(decisions=None)))
        (gradients, sums), decisions = jax.lax.scan(one_more, zeros, (batch, jnp.arange(accumulate)))
        sums = sums._replace(decisions=jax.tree.map(_join_microbatches, decisions))
    return jax.tree.map(lambda g: g / jnp.maximum(sums.weight, 1.0), gradients), sums


def _join_microbatches(decided: Array) -> Array:
    """Return [layers, A x B, ...] from [A, layers, B, ...]."""
    whole = jax.reshard(jnp.moveaxis(decided, 0, 1), jax.P())
    return whole.reshape(whole.shape[0], -1, *whole.shape[3:])


def judge(guard: Guard, loss: Array, norm: Array, config: GuardConfig) -> tuple[Array, Guard]:
    """Return whether this step may change the parameters, and the guard's new memory."""
    good = jnp.isfinite(loss) & jnp.isfinite(norm)
    if config.spike_factor:
        settled = guard.good >= config.settle_steps
        good &= ~(settled & (norm > config.spike_factor * guard.mean_norm))
    window = jnp.minimum(guard.good + 1, config.settle_steps).astype(jnp.float32)
    mean = guard.mean_norm + (norm - guard.mean_norm) / window
    one = good.astype(jnp.int32)
    return good, Guard(
        mean_norm=jnp.where(good, mean, guard.mean_norm),
        good=guard.good + one,
        skipped=guard.skipped + 1 - one,
        streak=jnp.where(good, 0, guard.streak + 1),
    )
