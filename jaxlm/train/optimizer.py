"""Optimizers and schedules, from optax; masks and matrix shapes come from the model's spec."""

import functools
import math
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxlm.config import Range, config
from jaxlm.errors import ConfigError
from jaxlm.param import Param, split, tree_map


@config
class OptimizerConfig:
    """How gradients become updates."""

    kind: Literal["adamw", "adafactor", "lion", "sgd", "muon"] = "adamw"
    """adamw (arXiv:1711.05101), adafactor (arXiv:1804.04235), lion (arXiv:2302.06675), sgd with momentum, or muon for
    matrices with adamw for the rest (Jordan et al. 2024; update scale of arXiv:2502.16982, so that adamw's rate serves)."""
    learning_rate: Annotated[float, Range(0)] = 3e-4
    """The peak of the schedule."""
    schedule: Literal["cosine", "linear", "constant", "wsd", "inverse_sqrt"] = "cosine"
    """After the warm-up: decay by cosine or line to the end, none, a decay over the last `decay_fraction` of the steps
    (warm-up, stable, decay; arXiv:2404.06395), or 1 / sqrt(step)."""
    warmup_steps: Annotated[int, Range(0)] = 0
    """Steps of linear warm-up from 0."""
    final_fraction: Annotated[float, Range(0, 1)] = 0.1
    """Where cosine, linear and wsd end, as a fraction of the peak."""
    decay_fraction: Annotated[float, Range(0, 1)] = 0.2
    """wsd: the part of all steps over which the rate decays."""
    b1: Annotated[float, Range(0, 1)] = 0.9
    """Decay of the first moment (momentum, for sgd and muon: 0.95 is usual)."""
    b2: Annotated[float, Range(0, 1)] = 0.95
    """Decay of the second moment; lion's second coefficient."""
    epsilon: Annotated[float, Range(0)] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Range(0)] = 0.1
    """Decoupled decay of matrices and embeddings, times the learning rate; norms and biases are left alone."""
    clip: Annotated[float, Range(0)] = 1.0
    """Largest global norm of the gradient; 0 is off."""


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Return learning rate as a function of the step, or raise ConfigError where it has not the steps that it takes."""
    warmup, peak = config.warmup_steps, config.learning_rate
    if warmup > steps and config.schedule == "constant":
        raise ConfigError(
            f"optimizer.warmup_steps = {warmup} never reaches the learning rate in steps = {steps}: set it to {steps} at most, "
            f"for example {steps // 10}"
        )
    if warmup >= steps and config.schedule != "constant":
        raise ConfigError(
            f"optimizer.warmup_steps = {warmup} leaves none of steps = {steps} to the {config.schedule} schedule: "
            f"set it below {steps}, for example {steps // 10}"
        )
    final, rest = peak * config.final_fraction, steps - warmup
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, rest, config.final_fraction)
    elif config.schedule == "linear":
        after = optax.linear_schedule(peak, final, rest)
    elif config.schedule == "wsd":
        decay = max(1, round(steps * config.decay_fraction))
        if decay > rest:
            raise ConfigError(
                f"optimizer.decay_fraction = {config.decay_fraction:g} decays over {decay} of steps = {steps}, and "
                f"warmup_steps = {warmup} leaves {rest}: set --optimizer.decay-fraction to "
                f"{math.floor(1000 * rest / steps) / 1000:g} at most, or --optimizer.warmup-steps to {steps - decay}"
            )
        after = optax.linear_schedule(peak, final, decay, transition_begin=rest - decay)
    elif config.schedule == "inverse_sqrt":
        after = _inverse_sqrt(peak, max(warmup, 1))
    else:
        after = optax.constant_schedule(peak)
    # The first update already moves: step s of the warm-up takes (s + 1) / warmup of the peak.
    ramp = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
    return optax.join_schedules([ramp, after], [warmup]) if warmup else after


def _inverse_sqrt(peak: float, warmup: int) -> optax.Schedule:
    return lambda step: peak * jnp.sqrt(warmup / (warmup + jnp.maximum(step, 0)))


def make_optimizer(config: OptimizerConfig, steps: int, spec: Any) -> optax.GradientTransformation:
    """Return the optimizer of a run: clipping, the update rule, decay of matrices and embeddings, the scheduled rate.

    `spec` is the whole model's; gradients, parameters and state are of what `param.split` says is trained, and None elsewhere.
    """
    spec, _ = split(spec, spec)
    decays = tree_map(lambda p: p.kind in ("matrix", "embedding"), spec)
    stages = [optax.clip_by_global_norm(config.clip)] if config.clip else []
    if config.kind == "adamw":
        stages.append(optax.scale_by_adam(config.b1, config.b2, config.epsilon))
    elif config.kind == "lion":
        stages.append(optax.scale_by_lion(config.b1, config.b2))
    elif config.kind == "sgd":
        stages.append(optax.trace(config.b1))
    elif config.kind == "adafactor":
        stages += [optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)]
    else:
        kinds = tree_map(lambda p: p.kind if p.kind == "matrix" else "other", spec)
        others = optax.scale_by_adam(config.b1, config.b2, config.epsilon)
        stages.append(optax.partition({"matrix": scale_by_muon(config.b1, spec), "other": others}, kinds))
    if config.weight_decay:
        stages.append(optax.add_decayed_weights(config.weight_decay, mask=decays))
    stages.append(optax.scale_by_learning_rate(schedule(config, steps)))
    return optax.chain(*stages)


class MuonState(NamedTuple):
    """Momentum of every matrix."""

    momentum: Any


# Quintic Newton-Schulz coefficients (Jordan et al. 2024): singular values end between about 0.7 and 1.2.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def scale_by_muon(decay: float, spec: Any, iterations: int = 5) -> optax.GradientTransformation:
    """Return Muon (Jordan et al. 2024): Nesterov momentum, orthogonalised matrix by matrix.

    Updates are scaled by 0.2 sqrt(max(m, n)) so that their size is AdamW's (arXiv:2502.16982). One layer's matrix at a time is
    gathered and spread by columns over all devices for the iteration; the result is split again as the parameter is.
    """

    def orthogonalise(x: Any, p: Param) -> Any:
        # Leaves that another optimizer takes are masked out by `optax.partition`.
        return x if isinstance(x, optax.MaskedNode) else _orthogonalise(x, p.stack, p.inputs, iterations)

    def init(params: Any) -> MuonState:
        return MuonState(jax.tree.map(jnp.zeros_like, params))

    def update(updates: Any, state: MuonState, params: Any = None) -> tuple[Any, MuonState]:
        momentum = jax.tree.map(lambda m, g: decay * m + g, state.momentum, updates)
        ahead = jax.tree.map(lambda m, g: decay * m + g, momentum, updates)
        moved = jax.tree.map(orthogonalise, ahead, spec, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
        return moved, MuonState(momentum)

    return optax.GradientTransformation(init, update)


def _orthogonalise(x: Array, stack: int, inputs: int, iterations: int) -> Array:
    """Return, roughly, the nearest semi-orthogonal matrix to each of a stack, scaled to AdamW's update size."""
    spec = jax.typeof(x).sharding.spec
    rows, columns = math.prod(x.shape[stack : stack + inputs]), math.prod(x.shape[stack + inputs :])

    def one(matrix: Array) -> Array:
        whole = jax.reshard(matrix, jax.P(*(None for _ in matrix.shape))).reshape(rows, columns)
        moved = _newton_schulz(whole.T if rows > columns else whole, iterations)
        moved = jax.reshard(moved, jax.P(None, None))
        moved = (moved.T if rows > columns else moved) * (0.2 * max(rows, columns) ** 0.5)
        return jax.reshard(moved.reshape(matrix.shape), jax.P(*spec[stack:]))

    for _ in range(stack):
        one = functools.partial(jax.lax.map, one)
    # A loop cannot run over a split dimension: experts are gathered, layer by layer of width still split, and spread again.
    whole = jax.reshard(x, jax.P(*(None,) * stack, *spec[stack:]))
    return jax.reshard(one(whole), jax.P(*spec))


def _newton_schulz(m: Array, iterations: int) -> Array:
    """Drive the singular values of a wide matrix towards 1, its columns spread over all devices where they divide."""
    mesh = jax.sharding.get_abstract_mesh()
    spread = mesh.axis_names if mesh.axis_names and m.shape[1] % mesh.size == 0 else None
    m = jax.reshard(m / (jnp.sqrt(jnp.sum(m * m)) + 1e-7), jax.P(None, spread))
    a, b, c = NEWTON_SCHULZ
    for _ in range(iterations):
        gram = jnp.einsum("mn,kn->mk", m, m, out_sharding=jax.P(None, None))
        m = a * m + (b * gram + c * gram @ gram) @ m
    return m
