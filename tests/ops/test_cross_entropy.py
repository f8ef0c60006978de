"""Cross-entropy against the logits written out, in one chunk and in many, on one device and with a sharded vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.layout import make_mesh
from jaxlm.ops import cross_entropy as ops


def inputs(rows=4, length=24, width=16, vocab=40):
    rng = np.random.default_rng(0)
    x, head = rng.standard_normal((rows, length, width)), 0.5 * rng.standard_normal((vocab, width))
    targets = rng.integers(0, vocab, (rows, length)).astype(np.int32)
    weights = rng.integers(0, 2, (rows, length)).astype(np.float32)
    return x.astype(np.float32), head.astype(np.float32), targets, weights


def plainly(x, head, targets, weights, softcap, z_loss):
    logits = jnp.einsum("bld,vd->blv", x, head)
    if softcap:
        logits = softcap * jnp.tanh(logits / softcap)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return (weights * (normaliser - chosen + z_loss * normaliser**2)).sum()


@pytest.mark.parametrize("softcap", [0.0, 1.5])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("chunked", [False, True])
def test_value_and_gradients(softcap, z_loss, chunked, monkeypatch):
    if chunked:
        monkeypatch.setattr(ops, "num_chunks", lambda *sizes: 6)
    x, head, targets, weights = map(jnp.asarray, inputs())
    expected = jax.value_and_grad(plainly, argnums=(0, 1))(x, head, targets, weights, softcap, z_loss)

    def scaled(x, head):
        return 0.5 * ops.cross_entropy(x, head, targets, weights, softcap=softcap, z_loss=z_loss)[0]

    found = jax.jit(jax.value_and_grad(scaled, argnums=(0, 1)))(x, head)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, 0.5 * b, rtol=2e-5, atol=2e-6)
    evaluated, parts = ops.cross_entropy(x, head, targets, weights, softcap=softcap, z_loss=z_loss)
    np.testing.assert_allclose(evaluated, expected[0], rtol=1e-5)
    logits = np.einsum("bld,vd->blv", x, head)
    assert parts.correct == (weights * (logits.argmax(-1) == targets)).sum()


@pytest.mark.parametrize("shape", [(8, 1), (4, 2), (2, 4), (1, 8)])
@pytest.mark.parametrize("embed", ["data", None])
def test_sharded_vocabulary_gives_the_same(shape, embed):
    x, head, targets, weights = inputs(rows=8)
    expected = jax.value_and_grad(plainly, argnums=(0, 1))(x, head, targets, weights, 2.0, 0.01)
    mesh = make_mesh({"data": shape[0], "model": shape[1]})
    with jax.set_mesh(mesh):
        put = lambda a, *spec: jax.device_put(a, jax.NamedSharding(mesh, jax.P(*spec)))  # noqa: E731
        arrays = put(x, "data"), put(head, "model", embed), put(targets, "data"), put(weights, "data")
        loss = lambda x, head: ops.cross_entropy(x, head, *arrays[2:], softcap=2.0, z_loss=0.01)[0]  # noqa: E731
        found = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(*arrays[:2])
        assert found[1][1].sharding.spec == jax.P("model", embed)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def test_logits_of_all_tokens_are_never_in_memory():
    rows, length, width, vocab = 4, 1024, 32, 65_536
    shapes = [jax.ShapeDtypeStruct(s, d) for s, d in [
        ((rows, length, width), jnp.float32), ((vocab, width), jnp.float32),
        ((rows, length), jnp.int32), ((rows, length), jnp.float32),
    ]]  # fmt: skip
    gradients = jax.grad(lambda *a: ops.cross_entropy(*a)[0], argnums=(0, 1))
    memory = jax.jit(gradients).lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.5 * rows * length * vocab * 4


def test_chunks_cover_any_length():
    for length in (1, 7, 128, 1000, 1021):
        chunks = ops.num_chunks(2, length, 100_000)
        assert length % chunks == 0
