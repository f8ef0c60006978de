"""Low-rank adapters: they begin as nothing, merge exactly, train alone, and compute the same on every mesh."""

import functools
import math

import jax
import numpy as np
import pytest
from models import batch_of, draw, placed, tiny

from jaxlm import param
from jaxlm.errors import ConfigError
from jaxlm.layout import MESH_AXES, Layout, make_mesh
from jaxlm.model import lora, transformer
from jaxlm.model.lora import LoraConfig
from jaxlm.model.moe_config import MoeConfig
from jaxlm.objective import language_model
from jaxlm.train.optimizer import OptimizerConfig, make_optimizer

LORA = LoraConfig(rank=3, alpha=6.0)
ONE = (1, 1, 1, 1, 1)
MODELS = {
    "dense": tiny(num_kv_heads=4, num_layers=3, activation="swiglu", biases=("q", "o", "down")),
    # A layer without experts, and one with.
    "mixture": tiny(
        num_kv_heads=4, num_layers=2, activation="relu2", tie_embeddings=False,
        moe=MoeConfig(num_experts=4, experts_per_token=2, shared_experts=1, every=2, router="sigmoid"),
    ),
}  # fmt: skip


def spec_of(name, config=LORA):
    return lora.adapt(transformer.spec(MODELS[name]), config)


@functools.cache
def weights(name):
    """Return a plain model's weights, and its adapters, neither matrix of which is zero, on the host."""
    spec = spec_of(name)
    fresh = jax.jit(lambda: param.initialize(spec, jax.random.key(1), Layout()))()
    rng = np.random.default_rng(0)
    moved = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32), jax.device_get(fresh))
    return jax.device_get(draw(MODELS[name])), moved


def mean_loss(params, batch, name, remat="none"):
    total, sums = language_model.loss(params, batch, MODELS[name], Layout(), remat=remat)
    return total / sums.tokens


@functools.cache
def loss_and_gradients(name, shape):
    """Return the loss with adapters and its gradients; every mesh but that of one device recomputes whole layers."""
    spec, (base, adapted) = spec_of(name), weights(name)
    with jax.set_mesh(make_mesh(dict(zip(MESH_AXES, shape, strict=True)), jax.devices()[: math.prod(shape)])):
        places = jax.tree.map(lambda x: x.sharding, param.abstract(spec, Layout(), jax.sharding.get_mesh()))
        trained, kept = param.split(jax.device_put(lora.attach(base, adapted), places), spec)

        def loss(trained, kept, batch):
            return mean_loss(param.join(trained, kept), batch, name, "none" if shape == ONE else "full")

        value, gradients = jax.jit(jax.value_and_grad(loss))(trained, kept, placed(batch_of(length=16)))
        assert all(w.sharding == g.sharding for w, g in zip(*map(jax.tree.leaves, (trained, gradients)), strict=True))
        return float(value), jax.device_get(gradients)


@pytest.mark.parametrize(("name", "shape"), [("dense", (1, 4, 1, 1, 2)), ("mixture", (1, 1, 2, 2, 2))])
def test_an_arrangement_changes_nothing(name, shape):
    value, gradients = loss_and_gradients(name, ONE)
    found, found_gradients = loss_and_gradients(name, shape)
    np.testing.assert_allclose(found, value, rtol=2e-6)
    assert len(jax.tree.leaves(gradients)) == 2 * sum(".weight" in n for n in param.named_leaves(spec_of(name)))
    for a, b in zip(jax.tree.leaves(found_gradients), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 + 2e-6 * np.abs(b).max())


def test_merged_adapters_compute_the_same():
    name = "mixture"
    base, adapted = weights(name)
    params = jax.device_put(lora.attach(base, adapted))
    merged = lora.merge(params)
    plain = jax.jit(functools.partial(mean_loss, name=name))
    value = float(plain(merged, placed(batch_of(length=16))))
    assert value == pytest.approx(loss_and_gradients(name, ONE)[0], abs=1e-6)
    assert abs(value - float(plain(jax.device_put(base), placed(batch_of(length=16))))) > 1e-3
    assert jax.tree.structure(merged) == jax.tree.structure(base)
    jax.tree.map(np.testing.assert_array_equal, lora.detach(params), base)
    o, layer = params.blocks[0].attention.o, 0
    expected = o.weight[layer] + 6.0 / 3 * np.einsum("nhr,rd->nhd", o.down[layer], o.up[layer])
    np.testing.assert_allclose(merged.blocks[0].attention.o[layer], expected, atol=1e-6)


def test_fresh_adapters_change_nothing_to_the_bit():
    base, _ = weights("dense")
    drawn = jax.jit(lambda: param.initialize(spec_of("dense"), jax.random.key(1), Layout()))()
    params, plain = lora.attach(base, drawn), jax.jit(functools.partial(mean_loss, name="dense"))
    assert float(plain(params, placed(batch_of(length=16)))) == float(plain(base, placed(batch_of(length=16))))
    for adapter, inputs in ((params.blocks[0].mlp.down, 48), (params.blocks[0].attention.o, 32)):
        assert not np.any(adapter.up)
        assert np.abs(adapter.down).max() == pytest.approx(inputs**-0.5, rel=0.1)
        assert np.std(adapter.down) == pytest.approx((3 * inputs) ** -0.5, rel=0.2)
    assert not np.array_equal(params.blocks[0].mlp.gate.down, params.blocks[0].mlp.up.down)


def test_no_product_is_made_for_a_frozen_weight():
    # One layer, so that a loop's body, which is counted once, is the whole model.
    config, adapters = tiny(num_layers=1, vocab_size=256, hidden_size=64), LoraConfig(rank=1)
    batch = placed(batch_of(length=16))

    def loss(trained, kept):
        total, sums = language_model.loss(param.join(trained, kept), batch, config, Layout())
        return total / sums.tokens

    def operations(spec):
        trained, kept = param.split(param.abstract(spec, Layout(), jax.sharding.get_mesh()), spec)
        return jax.jit(jax.grad(loss)).lower(trained, kept).compile().cost_analysis()["flops"]

    plain = transformer.spec(config)
    adapted = lora.adapt(plain, adapters)
    matrices = param.count(plain.blocks) + param.count(plain.embed)  # norms are few; the embedding is the head
    spared = 2 * batch.tokens.size * (matrices - 3 * (param.count(adapted) - param.count(plain)))
    assert operations(plain) - operations(adapted) > 0.9 * spared


@pytest.mark.parametrize("kind", ["adamw", "adafactor", "lion", "sgd", "muon"])
def test_every_optimizer_moves_adapters_alone(kind):
    spec = spec_of("dense", LoraConfig(rank=2, targets=("o",)))
    trained, _ = param.split(param.initialize(spec, jax.random.key(0), Layout()), spec)
    optimizer = make_optimizer(OptimizerConfig(kind=kind, weight_decay=0.1), 10, spec)
    state = optimizer.init(trained)
    updates, after = jax.jit(optimizer.update)(jax.tree.map(np.ones_like, trained), state, trained)
    assert jax.tree.structure(updates) == jax.tree.structure(trained)
    assert all(np.all(np.isfinite(u)) and np.any(u) for u in jax.tree.leaves(updates))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert sum(x.size for x in jax.tree.leaves(state)) < 2.1 * sum(x.size for x in jax.tree.leaves(trained))


def test_what_is_adapted():
    found = {name for name, p in param.named_leaves(spec_of("mixture")).items() if p.kind != "state"}
    assert "blocks.1.moe.shared.down.up" in found and "blocks.0.mlp.up.down" in found
    assert not any("experts" in name or "router" in name or "norm" in name or "embed" in name for name in found)
    assert all(name.endswith((".down", ".up")) for name in found)
    some = spec_of("dense", LoraConfig(rank=2, targets=("q", "v")))
    names = {name.split(".")[-2] for name, p in param.named_leaves(some).items() if p.kind != "state"}
    assert names == {"q", "v"}
    assert lora.adapt(some, LoraConfig()) is some
    with pytest.raises(ConfigError, match=r"'q_proj' is no weight .* Did you mean 'q'\? There are q, k, v, o, gate"):
        LoraConfig(rank=2, targets=("q_proj",))
    with pytest.raises(ConfigError, match="'gate': this model has no such weight.* It has q, k, v, o, up, down;"):
        spec_of("mixture", LoraConfig(rank=2, targets=("q", "gate")))
    with pytest.raises(ConfigError, match="alpha = 0 takes all effect"):
        LoraConfig(rank=2, alpha=0.0)
