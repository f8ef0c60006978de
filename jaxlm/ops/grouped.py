"""Feed-forward experts on one device: dropless, in memory that grows with assignments, fast on a CPU in both directions.

A CPU wants few, large matrix products on contiguous rows. So assignments are sorted by expert, and every expert runs once,
in one product per matrix over all of its rows, rounded up to one of a few static sizes. The loop over experts of one size
is a while loop of dynamic length, because that lets XLA update the outputs in place; branches of a conditional would copy
them. Experts are laid out in the order in which they run, large sizes first: the rows past an expert's end that rounding up
makes it compute belong to experts that run later and overwrite them, so that nothing needs padding between experts.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxlm.ops.products import is_tall, on_cpu, turn

# Sizes in eighths of the mean load, dense where balanced routing puts most experts. Each one is compiled apart.
EIGHTHS = (2, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16)
# An eighth is at least this many rows: smaller products are no faster.
LEAST_EIGHTH = 8
Activate = Callable[[Array, Array | None], Array]


class ExpertWeights(NamedTuple):
    """Weights of E feed-forward networks; biases and gate are optional."""

    up: Array  # EDF
    down: Array  # EFD
    gate: Array | None = None  # EDF
    up_bias: Array | None = None  # EF
    gate_bias: Array | None = None  # EF
    down_bias: Array | None = None  # ED


def expert_loop(
    x_TD: Array, experts_TK: Array, gates_TK: Array, weights: ExpertWeights, activate: Activate,
    hidden_scale_TKF: Array | None = None,
) -> Array:  # fmt: skip
    """Return y [T, D]: for each token the sum over k of gates x the feed-forward network of its k-th expert.

    A network is `(activate(x up + up_bias, x gate + gate_bias) * hidden_scale) down + down_bias`. Assignments to experts
    outside [0, E) cost nothing and contribute exactly 0. `activate(up, gate)` is elementwise and static, `gate` being None
    without one; computing is in `x_TD`'s dtype, gradients of weights are summed in float32. Differentiable in reverse mode
    in `x_TD`, `gates_TK` and `weights`, not in `hidden_scale_TKF` (a dropout mask). Arrays are one device's own: within
    shard_map, which must not check varying axes.
    """
    return _expert_loop(x_TD, experts_TK, gates_TK, weights, hidden_scale_TKF, activate)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _expert_loop(x, experts, gates, weights, scale, activate):
    return _run(x, experts, gates, weights, scale, activate, keep=False)[0]


class _Plan(NamedTuple):
    """Where everything lies once assignments are sorted; R = T * K rows and room for the largest block past the end."""

    order: Array  # R + room: the assignment of every row
    slots: Array  # TK: the row of every assignment
    real: Array  # TK: whether its expert is here
    experts: Array  # E, in the order in which they run
    starts: Array  # E + 1: first row of the i-th expert to run
    firsts: Array  # the first expert to run, by place in that order, of each size; and the end


def _sizes(rows: int, experts: int) -> list[int]:
    """Return the numbers of rows that may be computed at once, rising; loads above the last one go in several blocks."""
    mean = -(-rows // experts)
    eighth = max(LEAST_EIGHTH, -(-mean // 64) * 8)
    sizes = [eighth * i for i in EIGHTHS]
    enough = min(rows, 2 * mean)
    return sizes[: 1 + sum(size < enough for size in sizes[:-1])]


def _block(sizes: list[int]) -> int:
    """Return the rows of a block of an expert that has more rows than the largest size: about the mean load."""
    return sizes[len(sizes) // 2]


def _plan(experts: Array, num_experts: int, sizes: list[int]) -> _Plan:
    """Sort assignments by the place of their expert in the order of running, those of no expert here last."""
    T, K = experts.shape
    E, R = num_experts, T * K
    real = (experts >= 0) & (experts < E)
    flat = jnp.where(real, experts, E).reshape(R).astype(jnp.int32)
    counts = jnp.zeros(E + 1, jnp.int32).at[flat].add(1)[:E]
    # 0 has more rows than the largest size, 1 has the largest size, and so on; the last has no rows and never runs.
    fitting = jnp.searchsorted(jnp.array([0, *sizes]), counts)
    kind = jnp.where(counts > sizes[-1], 0, len(sizes) + 1 - fitting)
    running = jnp.argsort(kind, stable=True)
    place = jnp.zeros(E + 1, jnp.int32).at[running].set(jnp.arange(E, dtype=jnp.int32)).at[E].set(E)
    rows = jnp.arange(R, dtype=jnp.int32)
    _, order = lax.sort((place[flat], rows), num_keys=1)
    return _Plan(
        order=jnp.pad(order, (0, sizes[-1])),
        slots=jnp.zeros_like(rows).at[order].set(rows, unique_indices=True).reshape(T, K),
        real=real,
        experts=running,
        starts=jnp.pad(jnp.cumsum(counts[running]), (1, 0)),
        firsts=jnp.searchsorted(kind[running], jnp.arange(len(sizes) + 2)).astype(jnp.int32),
    )


def _each_expert(plan: _Plan, sizes: list[int], visit: Callable[..., Any], carry: Any) -> Any:
    """Chain `carry = visit(carry, expert, start, stop, rows at once, whether that is all its rows)` over experts."""
    for kind, size in enumerate([_block(sizes), *reversed(sizes)]):

        def step(i, carry, size=size, whole=kind > 0):
            return visit(carry, plan.experts[i], plan.starts[i], plan.starts[i + 1], size, whole)

        carry = lax.fori_loop(plan.firsts[kind], plan.firsts[kind + 1], step, carry)
    return carry


def _run(x, experts, gates, weights, scale, activate, *, keep):
    """Return the output and, if `keep`, the pre-activations by row (else None) and the plan."""
    E, D, F = weights.up.shape
    T, K = experts.shape
    sizes = _sizes(T * K, E)
    plan = _plan(experts, E, sizes)
    length = plan.order.shape[0]
    kept = jnp.zeros((length, F), x.dtype) if keep else None

    def block(carry, w, start, size):
        y, ups, gated = carry
        rows = _rows(plan.order, start, size)
        x_rows = _take(x, rows // K)
        up = _biased(_dot(x_rows, w.up, 1, 0, x.dtype), w.up_bias)
        gate = None if w.gate is None else _biased(_dot(x_rows, w.gate, 1, 0, x.dtype), w.gate_bias)
        hidden = activate(up, gate)
        if scale is not None:
            hidden = hidden * _take(scale.reshape(T * K, F), rows).astype(hidden.dtype)
        y = _put(y, _biased(_dot(hidden, w.down, 1, 0, x.dtype), w.down_bias), start)
        return y, _put(ups, up, start), _put(gated, gate, start)

    def visit(carry, expert, start, stop, size, whole):
        w = _of(weights, expert, x.dtype)
        if whole:
            return block(carry, w, start, size)
        return lax.fori_loop(0, -((start - stop) // size), lambda i, carry: block(carry, w, start + i * size, size), carry)

    start = (jnp.zeros((length, D), x.dtype), kept, None if weights.gate is None else kept)
    y, ups, gated = _each_expert(plan, sizes, visit, start)
    rows_TKD = _back(y, plan).astype(jnp.float32)
    y_TD = jnp.sum(rows_TKD * gates[:, :, None], axis=1)
    return y_TD.astype(x.dtype), (ups, gated), plan


def _forward(x, experts, gates, weights, scale, activate):
    y, kept, plan = _run(x, experts, gates, weights, scale, activate, keep=True)
    return y, (x, gates, weights, scale, kept, plan)


def _backward(activate, residuals, dy):
    x, gates, weights, scale, kept, plan = residuals
    T, K = gates.shape
    sizes = _sizes(T * K, weights.up.shape[0])
    length = plan.order.shape[0]

    def block(carry, w, start, stop, size):
        dx, dgates = carry
        rows = _rows(plan.order, start, size)
        # Rows past the expert's end are another's: a gate of 0 keeps them out of the gradients of weights.
        own = start + jnp.arange(size, dtype=jnp.int32) < stop
        gate = jnp.where(own, _take(gates.reshape(T * K), rows), 0.0)
        mask = None if scale is None else _take(scale.reshape(T * K, -1), rows).astype(x.dtype)
        saved = jax.tree.map(lambda a: _rows(a, start, size), kept)
        inputs = _take(x, rows // K), _take(dy, rows // K), gate[:, None]
        dx_rows, gate_grad, grads = _block_gradients(w, *inputs, mask, saved, activate)
        return (_put(dx, dx_rows, start), _put(dgates, gate_grad, start)), grads

    def visit(carry, expert, start, stop, size, whole):
        by_row, stacks = carry
        w = _of(weights, expert, x.dtype)
        if whole:
            by_row, grads = block(by_row, w, start, stop, size)
        else:

            def add(i, carry):
                by_row, grads = block(carry[0], w, start + i * size, stop, size)
                return by_row, jax.tree.map(jnp.add, carry[1], grads)

            zeros = jax.tree.map(lambda one: jnp.zeros(one.shape, jnp.float32), w)
            by_row, grads = lax.fori_loop(0, -((start - stop) // size), add, (by_row, zeros))
        put = functools.partial(lax.dynamic_update_index_in_dim, index=expert, axis=0)
        return by_row, jax.tree.map(lambda all_, one: put(all_, one.astype(all_.dtype)), stacks, grads)

    by_row = jnp.zeros((length, x.shape[1]), x.dtype), jnp.zeros(length, jnp.float32)
    (dx, dgates), grads = _each_expert(plan, sizes, visit, (by_row, jax.tree.map(jnp.zeros_like, weights)))
    dx_TD = jnp.sum(_back(dx, plan), axis=1, dtype=jnp.float32).astype(x.dtype)
    return dx_TD, None, _back(dgates, plan).astype(gates.dtype), grads, None


_expert_loop.defvjp(_forward, _backward)


def _block_gradients(w, x, dy, gate, mask, saved, activate):
    """Return the gradients of some rows of one expert: of x, of the gates [rows], and of the weights in float32."""
    hidden, pull = jax.vjp(activate, *saved)
    masked = (lambda a: a) if mask is None else (lambda a: a * mask)
    hidden = masked(hidden)
    dhidden = _dot(dy, w.down, 1, 1, x.dtype)
    # The output's product with its gradient, without the output: dy . (h down) = (dy down^T) . h.
    gate_grad = jnp.sum(dhidden.astype(jnp.float32) * hidden.astype(jnp.float32), axis=1)
    if w.down_bias is not None:
        gate_grad += jnp.sum(dy.astype(jnp.float32) * w.down_bias.astype(jnp.float32)[None, :], axis=1)
    dup, dgated = pull(masked((dhidden * gate).astype(hidden.dtype)))
    dout = (dy * gate).astype(x.dtype)
    dx = _dot(dup, w.up, 1, 1, x.dtype)
    if w.gate is not None:
        dx += _dot(dgated, w.gate, 1, 1, x.dtype)
    pairs = ExpertWeights((x, dup), (hidden, dout), (x, dgated), dup, dgated, dout)

    def gradient(own, pair):
        if own.ndim == 1:
            return jnp.sum(pair, axis=0, dtype=jnp.float32)
        if is_tall(own) and on_cpu():
            return turn(_dot(*reversed(pair), 0, 0, jnp.float32))
        return _dot(*pair, 0, 0, jnp.float32)

    grads = (None if own is None else gradient(own, pair) for own, pair in zip(w, pairs, strict=True))
    return dx, gate_grad, ExpertWeights(*grads)


def _dot(a, b, a_axis, b_axis, dtype):
    return lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=dtype)


def _rows(values, start, size):
    return lax.dynamic_slice_in_dim(values, start, size)


def _put(into, rows, start):
    return None if into is None else lax.dynamic_update_slice_in_dim(into, rows.astype(into.dtype), start, 0)


def _take(values, rows):
    return values.at[rows].get(mode="promise_in_bounds")


def _biased(y, bias):
    return y if bias is None else y + bias[None, :]


def _of(weights, expert, dtype):
    return jax.tree.map(lambda all_: lax.dynamic_index_in_dim(all_, expert, keepdims=False).astype(dtype), weights)


def _back(by_row, plan):
    """Return what belongs to each assignment, [T, K, ...], from rows; 0 where its expert is not here."""
    found = _take(by_row, plan.slots)
    return jnp.where(lax.expand_dims(plan.real, range(2, found.ndim)), found, jnp.zeros_like(found))
