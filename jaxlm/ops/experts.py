"""Tokens to their experts and back: what moves between devices, and which product runs where.

Memory and time grow with tokens x choices x width, never with tokens x experts x capacity: assignments are sorted or
scattered into places, no one-hot dispatch tensor is ever made.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, P

from jaxlm.ops.grouped import ExpertWeights, expert_loop

# Rows of a tile of the megablox kernel: the largest that divides all rows is taken.
MEGABLOX_ROWS = (512, 256, 128)
Kernel = Literal["loop", "ragged", "megablox"]
Activate = Callable[[Array, Array | None], Array]


class Assignments(NamedTuple):
    """What routing decided for tokens [B, L]: arrays [B, L, K], but for `hidden_scale` [B, L, K, F] (expert dropout)."""

    experts: Array  # int32; the number of experts where there is none
    gates: Array  # float32
    positions: Array  # int32: place in the expert's queue of the group; all below the capacity where there is one
    hidden_scale: Array | None = None


class Exchange(NamedTuple):
    """Mesh axes over which places are exchanged; None where a device has all there is."""

    experts: str | None  # devices with different experts
    stretches: str | None  # devices with different parts of the same rows


def apply_experts(
    x_BLD: Array,
    assigned: Assignments,
    weights: ExpertWeights,
    activate: Activate,
    *,
    capacity: int | None,
    rows_per_group: int,
    kernel: Kernel,
    expert_axis: str | None,
    model_axis: str | None,
) -> Array:
    """Return y [B, L, D], the sum over a token's assignments of gate x expert(x); exactly 0 for a token without one.

    Experts lie along the mesh axis `expert_axis`, their hidden width along `model_axis`. Rows that are spread over the
    experts' axis go to the experts' devices and back by all-to-all, in `capacity` places an expert and group. Without a
    capacity there is no bound on what one device may be sent: its neighbours' rows are gathered instead and partial outputs
    scattered back, which moves as much as an all-to-all that must be ready for the worst case. Where rows are split along
    their length, the devices that hold parts of the same rows share out the places among themselves.
    """
    rows, length, _ = jax.typeof(x_BLD).sharding.spec
    mesh = jax.sharding.get_abstract_mesh()
    stretches = length if length and mesh.shape[length] > 1 else None
    parts = mesh.shape[expert_axis] if expert_axis else 1
    spread = parts > 1 and expert_axis in ((rows,) if isinstance(rows, str) else rows or ())
    split_width = bool(model_axis) and mesh.shape[model_axis] > 1
    weight_specs = _weight_specs(weights, expert_axis, model_axis)
    # The gathered copy of fully sharded weights; `reshard` counts as cheap, so that the backward pass gathers anew.
    weights = jax.reshard(jax.tree.map(lambda w: w.astype(x_BLD.dtype), weights), weight_specs)
    tokens = P(rows, length, None)
    specs = Assignments(*(tokens,) * 3, None if assigned.hidden_scale is None else P(rows, length, None, model_axis))
    assigned = jax.reshard(assigned, specs)

    def local(x: Array, assigned: Assignments, weights: ExpertWeights) -> Array:
        if split_width and weights.down_bias is not None:  # added up over the parts of the width: only one may give it
            first = jax.lax.axis_index(model_axis) == 0
            weights = weights._replace(down_bias=jnp.where(first, weights.down_bias, 0))
        if capacity is not None and (spread or (parts == 1 and kernel != "loop")):
            exchange = Exchange(expert_axis if spread else None, stretches)
            y = _through_places(x, assigned, weights, activate, capacity, rows_per_group, exchange)
        else:
            y = _where_experts_are(x, assigned, weights, activate, kernel, expert_axis if parts > 1 else None, spread)
        return jax.lax.psum(y, model_axis) if split_width else y

    if mesh.size == 1 and kernel == "loop":
        # `shard_map` would add up the weights' gradients over the one device: a copy of them all. (`ragged_dot` needs it.)
        whole = jax.tree.map(lambda _: P(), (x_BLD, assigned, weights))
        return jax.reshard(local(*jax.reshard((x_BLD, assigned, weights), whole)), tokens)
    run = jax.shard_map(local, in_specs=(tokens, specs, weight_specs), out_specs=tokens, check_vma=False)
    return run(x_BLD, assigned, weights)


def _weight_specs(weights: ExpertWeights, expert: str | None, model: str | None) -> ExpertWeights:
    inward, bias = P(expert, None, model), P(expert, model)
    specs = ExpertWeights(inward, P(expert, model, None), inward, bias, bias, P(expert, None))
    return ExpertWeights(*(None if w is None else spec for w, spec in zip(weights, specs, strict=True)))


def _through_places(
    x: Array, assigned: Assignments, weights: ExpertWeights, activate: Activate,
    capacity: int, rows_per_group: int, over: Exchange,
) -> Array:  # fmt: skip
    """Fill `capacity` places an expert and group with this device's rows, and exchange them `over` the axes there are."""
    B, L, D = x.shape
    K, T = assigned.experts.shape[2], B * L
    E = weights.up.shape[0] * (jax.lax.axis_size(over.experts) if over.experts else 1)
    parts = jax.lax.axis_size(over.stretches) if over.stretches else 1
    places = -(-(B // rows_per_group * capacity) // parts) * parts  # of one expert, for all groups of this device
    group = (jnp.arange(B) // rows_per_group * capacity).reshape(B, 1, 1).astype(jnp.int32)
    place = assigned.experts * places + group + assigned.positions
    place = jnp.where(assigned.experts < E, place, E * places).reshape(T * K)
    sender = jnp.full(E * places, T * K, jnp.int32).at[place].set(jnp.arange(T * K, dtype=jnp.int32), mode="drop")

    def deliver(rows: Array) -> Array:  # [N, W] -> [experts here, places of all senders, W], empty places zero
        padded = jnp.concatenate([rows, jnp.zeros_like(rows[:1])])
        inbox = padded[jnp.minimum(sender // (T * K // rows.shape[0]), rows.shape[0])].reshape(E, places, -1)
        if over.stretches:  # a place is filled by one of these devices: the sum is what all filled, each keeps its share
            inbox = jax.lax.psum_scatter(inbox, over.stretches, scatter_dimension=1, tiled=True)
        return jax.lax.all_to_all(inbox, over.experts, 0, 1, tiled=True) if over.experts else inbox

    scale = assigned.hidden_scale
    scale = None if scale is None else deliver(scale.reshape(T * K, -1))
    outbox = _batched_mlp(deliver(x.reshape(T, D)), weights, activate, scale)
    if over.experts:
        outbox = jax.lax.all_to_all(outbox, over.experts, 1, 0, tiled=True)
    if over.stretches:
        outbox = jax.lax.all_gather(outbox, over.stretches, axis=1, tiled=True)
    y = outbox.reshape(E * places, D).at[place].get(mode="fill", fill_value=0).reshape(T, K, D)
    y = jnp.sum(y * assigned.gates.reshape(T, K, 1), axis=1)
    return y.astype(x.dtype).reshape(B, L, D)


def _batched_mlp(x_ECD: Array, w: ExpertWeights, activate: Activate, scale_ECF: Array | None) -> Array:
    def project(x: Array, matrix: Array, bias: Array | None) -> Array:
        y = jnp.einsum("ecd,edf->ecf", x, matrix)
        return y if bias is None else y + bias[:, None, :]

    h_ECF = activate(project(x_ECD, w.up, w.up_bias), None if w.gate is None else project(x_ECD, w.gate, w.gate_bias))
    if scale_ECF is not None:
        h_ECF = h_ECF * scale_ECF.astype(h_ECF.dtype)
    return project(h_ECF, w.down, w.down_bias)


def _where_experts_are(
    x: Array, assigned: Assignments, weights: ExpertWeights, activate: Activate, kernel: Kernel, axis: str | None, spread: bool
) -> Array:
    """Compute this device's experts for all rows of the group of devices that share them, and add up over that group."""
    tokens = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), (x, assigned))
    if spread:
        tokens = jax.tree.map(lambda a: jax.lax.all_gather(a, axis, axis=0, tiled=True), tokens)
    x_TD, here = tokens
    experts = here.experts
    if axis:
        experts = experts - jax.lax.axis_index(axis) * weights.up.shape[0]
    run = expert_loop if kernel == "loop" else functools.partial(ragged_experts, megablox=kernel == "megablox")
    y = run(x_TD, experts, here.gates, weights, activate, here.hidden_scale)
    if spread:
        y = jax.lax.psum_scatter(y, axis, scatter_dimension=0, tiled=True)
    elif axis:
        y = jax.lax.psum(y, axis)
    return y.reshape(x.shape)


def ragged_experts(
    x_TD: Array, experts_TK: Array, gates_TK: Array, w: ExpertWeights, activate: Activate,
    hidden_scale_TKF: Array | None = None, *, megablox: bool = False,
) -> Array:  # fmt: skip
    """Return what `grouped.expert_loop` does, through `lax.ragged_dot`: for backends that have a kernel for it.

    `megablox` takes gradients of weights through the TPU's kernel (`_product`).
    """
    T, K = experts_TK.shape
    E = w.up.shape[0]
    valid = (experts_TK >= 0) & (experts_TK < E)
    flat = jnp.where(valid, experts_TK, E).reshape(T * K)
    expert, order = jax.lax.sort((flat, jnp.arange(T * K, dtype=jnp.int32)), num_keys=1, is_stable=True)
    sizes = jnp.bincount(flat, length=E + 1)[:E].astype(jnp.int32)
    bias_of = jnp.minimum(expert, E - 1)
    tile = megablox and T * K % MEGABLOX_ROWS[-1] == 0

    def project(x: Array, matrix: Array, bias: Array | None) -> Array:
        y = _product(x, matrix, sizes) if tile else jax.lax.ragged_dot(x, matrix, sizes)
        return y if bias is None else y + bias[bias_of]

    # Rows of no expert: whatever a kernel leaves there must reach neither outputs nor, as NaN times 0, gradients.
    somewhere = (expert < E)[:, None]
    rows = jnp.where(somewhere, x_TD[order // K], 0)
    h = activate(project(rows, w.up, w.up_bias), None if w.gate is None else project(rows, w.gate, w.gate_bias))
    h = jnp.where(somewhere, h, 0)
    if hidden_scale_TKF is not None:
        h = h * hidden_scale_TKF.reshape(T * K, -1)[order].astype(h.dtype)
    y = jnp.where(somewhere, project(h, w.down, w.down_bias), 0) * gates_TK.reshape(T * K)[order][:, None]
    back = jnp.zeros(T * K, jnp.int32).at[order].set(jnp.arange(T * K, dtype=jnp.int32))
    return jnp.sum(y[back].reshape(T, K, -1), axis=1).astype(x_TD.dtype)


@jax.custom_vjp
def _product(x: Array, w: Array, sizes: Array) -> Array:
    """Return `lax.ragged_dot`, whose gradient of the weights the TPU's compiler would multiply out for all experts.

    Megablox (arXiv:2211.15841, in jax.experimental.pallas) computes each expert's from its own rows. Rows beyond the last
    expert's come out as they may.
    """
    return jax.lax.ragged_dot(x, w, sizes)


def _product_forward(x: Array, w: Array, sizes: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return jax.lax.ragged_dot(x, w, sizes), (x, w, sizes)


def _product_backward(kept: tuple[Array, Array, Array], dy: Array) -> tuple[Array, Array, None]:
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

    x, w, sizes = kept
    rows = next(size for size in MEGABLOX_ROWS if len(x) % size == 0)
    tiling = (rows, *(min(MEGABLOX_ROWS[0], -(-width // 128) * 128) for width in w.shape[1:]))
    dw = tgmm(x.T, dy, sizes, w.dtype, tiling)
    return jax.lax.ragged_dot(dy, w.swapaxes(1, 2), sizes), dw, None


_product.defvjp(_product_forward, _product_backward)
