"""Log-probabilities of targets and divergences against the logits written out: whole, in chunks, and sharded."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.layout import make_mesh
from jaxlm.ops import cross_entropy, log_probs


def inputs(rows=8, length=24, width=16, vocab=40):
    rng = np.random.default_rng(0)
    x, other = rng.standard_normal((2, rows, length, width)).astype(np.float32)
    head, other_head = 0.5 * rng.standard_normal((2, vocab, width)).astype(np.float32)
    targets = rng.integers(0, vocab, (rows, length)).astype(np.int32)
    towards = rng.standard_normal((rows, length)).astype(np.float32)
    towards[:, :5] = 0  # the first of six stretches is skipped
    return (x, head), (other, other_head), targets, towards


def plainly(x, head, targets, softcap):
    """Return log-probabilities of targets, entropies, correct, and all log-probabilities."""
    logits = jnp.einsum("bld,vd->blv", x, head)
    logits = softcap * jnp.tanh(logits / softcap) if softcap else logits
    every = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(every, targets[..., None], axis=-1)[..., 0]
    return chosen, -jnp.sum(jnp.exp(every) * every, axis=-1), logits.argmax(-1) == targets, every


@functools.cache
def expected(softcap):
    def everything(ours, others, targets, towards):
        *scores, every = plainly(*ours, targets, softcap)
        *other_scores, others_every = plainly(*others, targets, softcap)
        kl = jnp.sum(jnp.exp(every) * (every - others_every), axis=-1)
        gradients = jax.grad(lambda p: jnp.sum(towards * plainly(*p, targets, softcap)[0]))(ours)
        return scores, other_scores[0], kl, gradients

    return jax.device_get(jax.jit(everything)(*inputs()))


@functools.partial(jax.jit, static_argnames=("softcap", "chunked"))
def both_passes(ours, others, targets, towards, softcap, chunked=False):
    def total(ours):
        scores, other, kl = log_probs.compare(*ours, *others, targets, softcap=softcap)
        # what has no gradient must add none
        return jnp.sum(towards * scores.log_probs) + jnp.sum(kl + other + scores.entropy + scores.correct), (scores, other, kl)

    gradients, given = jax.grad(total, has_aux=True)(ours)
    return *given, gradients


def assert_same(found, softcap):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected(softcap)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6 * (1 + np.abs(np.asarray(b)).max()))


@pytest.mark.parametrize("softcap", [0.0, 1.5])
@pytest.mark.parametrize("chunked", [False, True])
def test_values_and_gradients(softcap, chunked, monkeypatch):
    if chunked:
        monkeypatch.setattr(log_probs, "num_chunks", lambda *sizes: 6)
    ours, others, targets, towards = jax.tree.map(jnp.asarray, inputs())
    found = both_passes(ours, others, targets, towards, softcap, chunked)
    assert_same(found, softcap)
    if not chunked:
        scores = jax.jit(log_probs.target_log_probs, static_argnames="softcap")(*ours, targets, softcap=softcap)
        for a, b in zip(scores, found[0], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)
        kl = jax.jit(log_probs.token_kl, static_argnames="softcap")(*ours, *others, softcap=softcap)
        np.testing.assert_allclose(kl, found[2], rtol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "embed"), [({"data": 4, "model": 2}, "data"), ({"data": 2, "context": 2, "model": 2}, ("data", "context")),
                         ({"data": 2, "model": 4}, None), ({"model": 2, "expert": 4}, "expert")]
)  # fmt: skip
def test_sharded_gives_the_same(sizes, embed):
    ours, others, targets, towards = inputs()
    mesh = make_mesh(sizes)
    rows, length = ("data", "context") if "expert" not in sizes else (None, "context")
    with jax.set_mesh(mesh):
        put = lambda a, *spec: jax.device_put(a, jax.NamedSharding(mesh, jax.P(*spec)))  # noqa: E731
        ours, others = ((put(x, rows, length), put(head, "model", embed)) for x, head in (ours, others))
        found = both_passes(ours, others, put(targets, rows, length), put(towards, rows, length), 1.5)
        assert jax.tree.map(lambda a: a.sharding.spec, found[-1]) == (jax.P(rows, length, None), jax.P("model", embed))
        assert found[2].sharding.spec == jax.P(rows, length)
    assert_same(found, 1.5)


def test_a_model_is_at_no_distance_from_itself():
    (x, head), _, targets, _ = jax.tree.map(jnp.asarray, inputs())
    scores, other, kl = jax.jit(log_probs.compare)(x, head, x, head, targets)
    np.testing.assert_array_equal(scores.log_probs, other)
    np.testing.assert_array_equal(kl, 0.0)


def test_logits_of_all_tokens_are_never_in_memory():
    rows, length, width, vocab = 4, 1024, 32, 65_536
    whole = rows * length * vocab * 4
    shapes = [jax.ShapeDtypeStruct(s, d) for s, d in [
        ((rows, length, width), jnp.float32), ((vocab, width), jnp.float32), ((rows, length), jnp.int32),
    ]]  # fmt: skip

    def total(x, head, targets):
        scores, other, kl = log_probs.compare(x, head, 2 * x, head, targets)
        return jnp.sum(scores.log_probs**2), (other, kl)

    memory = jax.jit(jax.grad(total, (0, 1), has_aux=True)).lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.6 * whole
    assert cross_entropy.num_chunks(rows, length, vocab) >= 8
