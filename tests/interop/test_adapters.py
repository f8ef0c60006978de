"""Adapters against stored outputs of PEFT: names, layout, loss, logits, gradients, merging; and what cannot be written."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import batch, opened, placed, stored

from jaxlm import param
from jaxlm.errors import ConfigError
from jaxlm.interop.adapters import adapter_config, adapter_pieces
from jaxlm.interop.axes import axes
from jaxlm.layout import Layout
from jaxlm.model import lora, transformer
from jaxlm.model.lora import LoraConfig
from jaxlm.ops.cross_entropy import cross_entropy

CONFIG = LoraConfig(rank=3, alpha=6.0)


def theirs(kind):
    """Return the stored tensors of a kind by their names."""
    return {name.split("/", 1)[1]: array for name, array in stored("lora").items() if name.startswith(f"{kind}/")}


def in_our_places(spec, pieces, tensors):
    """Return a tree like the trained part of `spec`, made of tensors under their names."""
    ours = {name: np.zeros(p.shape, np.float32) for name, p in param.named_leaves(spec).items()}
    for name, piece in pieces.items():
        ours[piece.leaf][piece.repeat] = axes(piece.axes).view(tensors[name], piece.shape)
    return jax.tree.unflatten(jax.tree.structure(spec, is_leaf=lambda x: isinstance(x, param.Param)), list(ours.values()))


def test_they_compute_what_peft_computes():
    model, _, table, tensors = opened("llama")
    spec = lora.adapt(transformer.spec(model), CONFIG)
    pieces = adapter_pieces(table, model, CONFIG)
    assert pieces.keys() == theirs("adapters").keys()
    params = lora.attach(placed(model, table, tensors), jax.device_put(in_our_places(spec, pieces, theirs("adapters"))))
    trained, kept = param.split(params, spec)
    rows, at = batch(stored("lora")["tokens"])
    rows, at = rows[:2], jax.tree.map(lambda x: x[:2], at)

    def loss(trained, kept):
        params = param.join(trained, kept)
        x, _ = transformer.forward(params, rows, at, model, Layout())
        counted = jnp.ones(rows.shape).at[:, -1].set(0)
        total, _ = cross_entropy(x, transformer.head(params), jnp.roll(rows, -1, axis=1), counted)
        return total / (2 * rows.shape[1] - 2), transformer.unembed(params, x, model, Layout())

    (value, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(trained, kept)
    expected = stored("lora")
    assert float(value) == pytest.approx(float(expected["loss"]), rel=2e-6)
    np.testing.assert_allclose(logits, expected["logits"], atol=5e-5 * np.abs(expected["logits"]).max())
    wanted, _ = param.split(in_our_places(spec, pieces, theirs("gradients")), spec)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())
    merged = lora.merge(params).blocks[0].attention.q[0]
    np.testing.assert_allclose(merged.reshape(32, 32).T, expected["merged"], atol=1e-6)


def test_the_configuration_says_what_peft_says():
    model, _, table, _ = opened("llama")
    found, expected = (
        adapter_config(adapter_pieces(table, model, CONFIG), model, CONFIG),
        json.loads(str(stored("lora")["config"])),
    )
    assert found == {name: expected[name] for name in found} | {"target_modules": sorted(expected["target_modules"])}


def test_modules_beside_experts_are_named_in_full():
    model, _, table, _ = opened("qwen3_moe")
    names = adapter_config(adapter_pieces(table, model, CONFIG), model, CONFIG)["target_modules"]
    assert names[:2] == ["model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.o_proj"]


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
def test_fused_and_turned_matrices_are_refused(name):
    model, _, table, _ = opened(name)
    with pytest.raises(ConfigError, match="Export the merged model, without --adapters"):
        adapter_pieces(table, model, CONFIG)
