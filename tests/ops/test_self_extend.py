"""Self-Extend against its paper's matrix, the official implementation's stored outputs, and a NumPy loop."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import REFERENCE

from jaxlm.model.rope_config import SelfExtend
from jaxlm.ops import attention_kernels
from jaxlm.ops.attention import attention, attention_and_normalizer
from jaxlm.ops.masks import MASKED, Tokens
from jaxlm.ops.positions import grouped_shift, rope_angles, rope_frequencies, rotate
from jaxlm.ops.self_extend import merge, self_extend

with np.load(REFERENCE / "self_extend.npz") as arrays:
    STORED = dict(arrays)
CASES = [key.removeprefix("prefill/") for key in STORED if key.startswith("prefill/")]
UNEVEN = [key.removeprefix("legacy/") for key in STORED if key.startswith("legacy/")]
SIZE = STORED["q"].shape[-1]

# Twelve tokens, groups of 3, 4 keys where they are: a row for each query.
MATRIX = [
    [0],
    [1, 0],
    [2, 1, 0],
    [3, 2, 1, 0],
    [4, 3, 2, 1, 0],
    [4, 4, 3, 2, 1, 0],
    [5, 5, 5, 3, 2, 1, 0],
    [5, 5, 5, 4, 3, 2, 1, 0],
    [5, 5, 5, 4, 4, 3, 2, 1, 0],
    [6, 6, 6, 5, 5, 5, 3, 2, 1, 0],
    [6, 6, 6, 5, 5, 5, 4, 3, 2, 1, 0],
    [6, 6, 6, 5, 5, 5, 4, 4, 3, 2, 1, 0],
]  # fmt: skip


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Have the blocked kernel cut short rows, too."""
    monkeypatch.setattr(attention_kernels, "QUERY_BLOCK", 16)
    monkeypatch.setattr(attention_kernels, "STRETCHES", 2)


def seen_at(i, j, group, window):
    """The relative position of one pair, one step at a time; None where the key comes later."""
    if j > i:
        return None
    if i - j < window:
        return i - j
    return i // group - j // group + window - window // group


def by_loop(q, k, v, query, key, group, window, far_alone=False):
    """Attention in float64, each key turned by its relative position as a complex number; also the normaliser."""
    out, normalizer = np.zeros(q.shape), np.full(q.shape[:3], -np.inf)
    turn = 10_000.0 ** (-np.arange(0, q.shape[-1], 2) / q.shape[-1])
    q, k = (x[..., : x.shape[-1] // 2] + 1j * x[..., x.shape[-1] // 2 :].astype(np.float64) for x in (q, k))
    share = q.shape[2] // k.shape[2]
    for b, i, n in np.ndindex(q.shape[:3]):
        logits, values = [], []
        for j in range(k.shape[1]):
            here, there = int(query.positions[b, i]), int(key.positions[b, j])
            at = seen_at(here, there, group, window)
            if at is None or query.segments[b, i] != key.segments[b, j] or (far_alone and here - there < window):
                continue
            turned = k[b, j, n // share] * np.exp(-1j * at * turn)
            logits.append(np.sum(q[b, i, n] * turned.conj()).real / math.sqrt(2 * q.shape[-1]))
            values.append(v[b, j, n // share])
        if logits:
            weights = np.exp(np.array(logits) - max(logits))
            normalizer[b, i, n] = max(logits) + math.log(weights.sum())
            out[b, i, n] = (weights / weights.sum()) @ np.stack(values)
    return out, normalizer


def rotations(q, k, query, key, group, window):
    """Queries and keys as near ones and as far ones."""
    frequencies = rope_frequencies(q.shape[-1], 10_000.0)
    at = lambda positions: rope_angles(positions, frequencies)  # noqa: E731
    shifted = query.positions // group + grouped_shift(group, window)
    near = rotate(q, *at(query.positions)), rotate(k, *at(key.positions))
    return *near, rotate(q, *at(shifted)), rotate(k, *at(key.positions // group))


@functools.partial(jax.jit, static_argnames=("group", "window", "aligned", "kernel"))
def extended(q, k, v, query, key, *, group, window, aligned=True, kernel="plain"):
    """Self-Extend of queries and keys that are not rotated yet."""
    turned = rotations(q, k, query, key, group, window)
    return self_extend(*turned, v, query, key, window_size=window, scale=q.shape[-1] ** -0.5, aligned=aligned, kernel=kernel)


def row(length, base=0.0):
    """The stored inputs as one row, queries scaled by the logarithm of their place where there is a base."""
    q, k, v = (STORED[name][None, :length] for name in "qkv")
    if base:
        q = q * np.maximum(np.log(np.arange(1, length + 1)) / np.log(base), 1.0).astype(np.float32)[None, :, None, None]
    return q, k, v, Tokens(np.arange(length, dtype=np.int32)[None], np.ones((1, length), np.int32))


def test_the_loop_sees_what_the_matrix_of_the_paper_says():
    assert [[seen_at(i, j, 3, 4) for j in range(i + 1)] for i in range(12)] == MATRIX and seen_at(0, 1, 3, 4) is None


def greatest(length, group, window):
    """The longest row of which no relative position reaches `length`."""
    rows = 1
    while max(seen_at(rows, j, group, window) for j in range(rows + 1)) < length:
        rows += 1
    return rows


def test_the_longest_row_is_what_counting_gives():
    for length in range(2, 14):
        for group in range(1, 5):
            for window in range(group, length + 1, group):
                extend = SelfExtend(group_size=group, window_size=window)
                assert extend.longest(length) == greatest(length, group, window)
    # Where the group does not divide the window, which SelfExtend refuses, less is reached than the formula would say.
    assert greatest(16, 3, 5) == 36 < 3 * (16 - 5) + 5


@pytest.mark.parametrize("case", CASES)
def test_equals_the_official_outputs(case):
    group, window, base, length = map(int, case.split(","))
    q, k, v, at = row(length, base)
    expected = STORED["legacy/" + case if case in UNEVEN else "prefill/" + case]
    for kernel in ("plain", "blocked"):
        found = extended(q, k, v, at, at, group=group, window=window, kernel=kernel)
        np.testing.assert_allclose(found[0].reshape(length, -1), expected, atol=1e-5, rtol=0, err_msg=kernel)
    if length != 64:
        return
    # The last token alone, its keys from a cache; where the group does not divide the window, the official forms differ.
    _, last = STORED["decode/" + case]
    one = jax.tree.map(lambda x: x[:, -1:], at)
    for kernel in ("plain", "blocked") if (group, window) == (4, 8) else ("blocked",):
        found = extended(q[:, -1:], k, v, one, at, group=group, window=window, aligned=False, kernel=kernel)
        np.testing.assert_allclose(found.ravel(), last, atol=1e-5, rtol=0, err_msg=kernel)


@pytest.mark.parametrize("case", UNEVEN)
def test_official_forms_disagree_where_the_group_does_not_divide_the_window(case):
    prefill, (eager, cached) = STORED["prefill/" + case], STORED["decode/" + case]
    assert np.abs(prefill - STORED["legacy/" + case]).max() > 1
    assert np.abs(eager - cached).max() > 0.5


def packed(length=40):
    """Three rows: two documents, padding on the left, padding on the right; segment 0 is padding."""
    rng = np.random.default_rng(1)
    q = rng.standard_normal((3, length, 4, SIZE)).astype(np.float32)
    k, v = rng.standard_normal((2, 3, length, 2, SIZE)).astype(np.float32)
    positions, segments = np.zeros((3, length), np.int32), np.ones((3, length), np.int32)
    positions[0] = np.r_[np.arange(27), np.arange(length - 27)]
    segments[0, 27:] = 2
    positions[1, 9:], segments[1, :9] = np.arange(length - 9), 0
    positions[2, :31], segments[2, 31:] = np.arange(31), 0
    return q, k, v, Tokens(positions, segments)


def test_documents_and_padding_count_from_their_own_first_token():
    q, k, v, at = packed()
    expected, _ = by_loop(q, k, v, at, at, 3, 6)
    real = at.segments > 0
    for kernel in ("plain", "blocked"):
        found = np.asarray(extended(q, k, v, at, at, group=3, window=6, kernel=kernel))
        np.testing.assert_allclose(found[real], expected[real], atol=2e-6, err_msg=kernel)
    # A cache holds keys in any order.
    order = np.random.default_rng(2).permutation(q.shape[1])
    shuffled = jax.tree.map(lambda x: x[:, order], at)
    found = np.asarray(extended(q, k[:, order], v[:, order], at, shuffled, group=3, window=6, aligned=False, kernel="blocked"))
    np.testing.assert_allclose(found[real], expected[real], atol=2e-6)


def test_the_far_pass_alone():
    q, k, v, at = packed()
    _, _, q_far, k_far = rotations(q, k, at, at, 3, 6)
    expected, normalizer = by_loop(q, k, v, at, at, 3, 6, far_alone=True)
    some = np.isfinite(normalizer[..., 0]) & (at.segments > 0)
    for kernel in ("plain", "blocked"):
        run = functools.partial(attention_and_normalizer, scale=SIZE**-0.5, beyond=6, aligned=True, kernel=kernel)
        found, log = map(np.asarray, jax.jit(run)(q_far, k_far, v, at, at))
        np.testing.assert_allclose(found[some], expected[some], atol=2e-6, err_msg=kernel)
        np.testing.assert_allclose(log[some], normalizer[some], atol=3e-6, err_msg=kernel)
        none = (at.positions < 6) & (at.segments > 0)
        assert (log[none] < MASKED / 2).all() and np.isfinite(found).all()


def test_groups_of_one_are_plain_attention():
    q, k, v, at = row(40)
    near = rotations(q, k, at, at, 1, 8)[:2]
    plain = jax.jit(functools.partial(attention, scale=SIZE**-0.5, aligned=True))(*near, v, at, at)
    np.testing.assert_array_equal(extended(q, k, v, at, at, group=1, window=8), plain)
    np.testing.assert_allclose(extended(q, k, v, at, at, group=1, window=8, kernel="blocked"), plain, atol=3e-6)


@pytest.mark.parametrize("kernel", ["plain", "blocked"])
def test_rows_within_the_window_are_untouched_to_the_bit(kernel):
    q, k, v, at = row(24)
    run = functools.partial(attention, scale=SIZE**-0.5, aligned=True, kernel=kernel)
    turn = functools.partial(rotations, group=4, window=24)
    plain = jax.jit(lambda q, k, v: run(*turn(q, k, at, at)[:2], v, at, at))(q, k, v)
    np.testing.assert_array_equal(extended(q, k, v, at, at, group=4, window=24, kernel=kernel), plain)
    assert not np.array_equal(extended(q, k, v, at, at, group=4, window=8, kernel=kernel), plain)


def test_merging_with_nothing_changes_nothing():
    near, far = np.random.default_rng(0).standard_normal((2, 1, 3, 2, 4)).astype(np.float32)
    log = np.zeros((1, 3, 2), np.float32)
    np.testing.assert_array_equal(merge((near, log), (far, log + MASKED)), near)
    np.testing.assert_array_equal(merge((near, log + MASKED), (far, log)), far)
    np.testing.assert_allclose(merge((near, log), (far, log + np.log(np.float32(3)))), (near + 3 * far) / 4, rtol=1e-6)


def test_gradients_reach_what_a_query_sees_and_no_later_token():
    q, k, v, at = row(24)

    def of_query(q, k, v, kernel):
        return jnp.sum(jnp.sin(extended(q, k, v, at, at, group=4, window=8, kernel=kernel)[0, 17]))

    dense, blocked = (
        jax.device_get(jax.jit(jax.grad(functools.partial(of_query, kernel=kernel), argnums=(0, 1, 2)))(q, k, v))
        for kernel in ("plain", "blocked")
    )
    for one, other in zip(dense, blocked, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)
    for gradients in (dense, blocked):
        d_q, d_k, d_v = (np.abs(x[0]).sum(axis=(1, 2)) for x in gradients)
        assert np.flatnonzero(d_q).tolist() == [17]
        for d in (d_k, d_v):
            assert (d[:18] > 0).all() and not d[18:].any()
