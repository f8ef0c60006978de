"""Every family against stored outputs of Hugging Face transformers: logits, loss, gradients, padding, meshes, decoding, export.

Nothing here knows a family: what differs between them is in their readers and tables.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import (
    FIXTURES,
    REFERENCE,
    SHORT,
    batch,
    cases,
    export,
    opened,
    per_layer,
    placed,
    stored,
)

from jaxlm.decode.cache import empty_cache
from jaxlm.decode.forward import one_token
from jaxlm.decode.weights import prepare
from jaxlm.interop import table as tables
from jaxlm.interop.families.family import function_of
from jaxlm.interop.families.find import family_for, family_of
from jaxlm.layout import Layout, make_mesh
from jaxlm.model import transformer
from jaxlm.ops.cross_entropy import cross_entropy
from jaxlm.ops.masks import Tokens

WITH_GRADIENTS = [(name, "base") for name in FIXTURES] + [("gpt_neox", "sequential")]
# Frequencies there change with a row's length: what a whole row gives is not what its beginnings gave.
BY_LENGTH = [("llama", "dynamic"), ("llama", "longrope")]


def expected(name, case):
    """Return the stored outputs of a case, and by how much a logit may be off."""
    theirs = {key.split("/", 1)[1]: value for key, value in stored(name).items() if key.startswith(f"{case}/")}
    return theirs, 5e-5 * np.abs(theirs["logits"]).max()


def compute(model, rows, at, layout=Layout()):
    """Return a function of the parameters: the mean loss over the first two rows, and all logits."""
    counted = np.zeros(rows.shape, np.float32)
    counted[:2, :-1] = 1

    def loss(params, rows, targets, at, counted):
        x, _ = transformer.forward(params, rows, at, model, layout)
        total, _ = cross_entropy(x, transformer.head(params), targets, counted, softcap=model.logit_softcap)
        return total / (2 * rows.shape[1] - 2), transformer.unembed(params, x, model, layout)

    inputs = rows, np.roll(rows, -1, axis=1), at, counted
    given = jax.device_put(inputs, jax.NamedSharding(jax.sharding.get_mesh(), layout.spec("batch", "length")))
    return lambda params, transform=lambda f: f: jax.jit(transform(loss))(params, *given)


@functools.cache
def whole(name, case):
    """Return loss, logits and, for some cases, gradients of the batch in one pass."""
    model, _, table, tensors = opened(name, case)
    rows, at = batch(stored(name)[f"{case}/tokens"])
    params = placed(model, table, tensors)
    if (name, case) not in WITH_GRADIENTS:
        return *jax.device_get(compute(model, rows, at)(params)), None
    if model.moe.num_experts:
        # Its gradients compile in half the time of the loop's, which all other tests here take.
        model = dataclasses.replace(model, moe=dataclasses.replace(model.moe, kernel="ragged"))
    of = compute(model, rows, at)
    (loss, logits), gradients = jax.device_get(of(params, functools.partial(jax.value_and_grad, has_aux=True)))
    return loss, logits, gradients


@pytest.mark.parametrize(("name", "case"), cases())
def test_equals_transformers(name, case):
    theirs, bar = expected(name, case)
    loss, logits, gradients = whole(name, case)
    np.testing.assert_allclose(logits[:2], theirs["logits"], atol=bar, rtol=0)
    np.testing.assert_allclose(loss, theirs["loss"], rtol=5e-6)
    if "left" in theirs:
        np.testing.assert_allclose(logits[2, -SHORT:], theirs["left"], atol=bar, rtol=0)
        np.testing.assert_allclose(logits[3, :SHORT], theirs["right"], atol=bar, rtol=0)
    if gradients is not None:
        model, _, table, tensors = opened(name, case)
        ours = [tables.their_tensor(table, model, key, per_layer(gradients)) for key in sorted(tensors.shapes())]
        norms = np.array([np.linalg.norm(x) for x in ours])
        np.testing.assert_allclose(norms, theirs["gradients"], rtol=2e-4, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(norms), np.linalg.norm(theirs["gradients"]), rtol=1e-5)


@pytest.mark.parametrize("name", FIXTURES)
def test_equals_transformers_on_a_mesh(name):
    """Four ways over rows and widths, two over heads: each device reads its own part of each tensor."""
    theirs, bar = expected(name, "base")
    model, _, table, tensors = opened(name)
    layout = Layout() if model.kv_heads % 2 == 0 else Layout(kv_heads=None)
    with jax.set_mesh(make_mesh({"data": 4, "model": 2}, jax.devices())):
        params = placed(model, table, tensors, layout)
        loss, logits = jax.device_get(compute(model, *batch(theirs["tokens"]), layout)(params))
    np.testing.assert_allclose(logits[:2], theirs["logits"], atol=bar, rtol=0)
    np.testing.assert_allclose(loss, theirs["loss"], rtol=5e-6)


def decoded(model, params, rows, at):
    """Return logits [rows, L, V] of a batch, one token at a time through the cache, padding included."""
    layout = Layout(length=None)
    weights = prepare(params, model, layout)

    @jax.jit
    def run(weights, rows, at):
        def one(cache, token):
            token_B, where = token
            logits, cache = one_token(weights, token_B, jax.tree.map(lambda x: x[:, None], where), cache, model, layout)
            return cache, logits

        cache = empty_cache(model, layout, rows.shape[0], rows.shape[1] + 1)
        _, logits = jax.lax.scan(one, cache, jax.tree.map(jnp.transpose, (rows, at)))
        return jnp.swapaxes(logits, 0, 1)

    return np.asarray(run(weights, jnp.asarray(rows), jax.device_put(at)))


@pytest.mark.parametrize(("name", "case"), [(name, "base") for name in FIXTURES])
def test_decoding_from_a_cache_equals_the_full_forward_at_every_position(name, case):
    theirs, bar = expected(name, case)
    model, _, table, tensors = opened(name, case)
    logits = decoded(model, placed(model, table, tensors), *batch(theirs["tokens"]))
    np.testing.assert_allclose(logits[:2], theirs["logits"], atol=bar, rtol=0)
    np.testing.assert_allclose(logits[2, -SHORT:], theirs["left"], atol=bar, rtol=0)
    # Rows padded on the right go on after their padding, which they must not see.
    np.testing.assert_allclose(logits[3, :SHORT], theirs["right"], atol=bar, rtol=0)


@pytest.mark.parametrize(("name", "case"), BY_LENGTH)
def test_decoding_equals_the_full_forward_of_each_beginning(name, case):
    """Of one layer: what reaches the second of an earlier token was computed when the row was shorter."""
    theirs, bar = expected(name, case)
    model, _, table, tensors = opened(name, case)
    model = dataclasses.replace(model, num_layers=1)
    params, tokens = placed(model, table, tensors), theirs["tokens"][0]
    real = np.tri(len(tokens), dtype=np.int32)
    at = Tokens(np.arange(len(tokens), dtype=np.int32) * real, real)
    _, logits = jax.device_get(compute(model, tokens * real, at)(params))
    found = decoded(model, params, *batch(theirs["tokens"]))
    np.testing.assert_allclose(found[0], np.einsum("iiv->iv", logits), atol=bar, rtol=0)


@pytest.mark.parametrize("name", FIXTURES)
def test_import_and_export_give_back_every_tensor(name):
    model, family, table, tensors = opened(name)
    leaves = per_layer(jax.device_get(placed(model, table, tensors)))
    plain = family.table(model)
    assert dict(tables.their_tensors(plain, model)) == tensors.shapes()
    for key, value in tensors.arrays.items():
        np.testing.assert_array_equal(tables.their_tensor(plain, model, key, leaves), value, err_msg=key)


@pytest.mark.parametrize(("name", "case"), cases())
def test_what_transformers_read_back_is_what_is_exported(name, case):
    """The stored result of tests/reference/read_back.py holds for these very bytes."""
    found = json.loads((REFERENCE / "exported.json").read_text())[f"{name}/{case}"]
    assert found["difference"] <= 5e-5
    assert export(name, case, None) == found["digest"]


@pytest.mark.parametrize(("name", "case"), cases())
def test_a_model_finds_a_family_that_holds_it(name, case):
    model = opened(name, case)[0]
    fields = family_for(model).write(model)
    assert function_of(family_of(fields).read(fields)) == function_of(model)
