"""The decoder's algebra: what must hold for every combination of options."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import batch_of, draw, tiny

from jaxlm import param
from jaxlm.errors import ConfigError
from jaxlm.layout import Layout
from jaxlm.model import transformer
from jaxlm.ops.masks import Tokens

OPTIONS = {
    "plain": {},
    "grouped-query, qk-norm, sliding pattern": {
        "num_kv_heads": 2, "qk_norm": "head", "num_layers": 5, "attention_pattern": ("sliding", "sliding", "global"),
        "sliding_window": 4,
    },
    "multi-query, soft-caps, both norms": {
        "num_kv_heads": 1, "attention_softcap": 3.0, "logit_softcap": 2.0, "norm_position": "both", "norm_plus_one": True,
        "scale_embeddings": True, "activation": "geglu",
    },
    "layer norm, learned positions, biases, untied": {
        "norm": "layer", "norm_bias": True, "positions": "learned", "activation": "gelu", "tie_embeddings": False,
        "biases": ("q", "k", "v", "o", "up", "down"),
    },
    "norm after, partial rope": {"norm_position": "after", "rope_fraction": 0.5, "activation": "relu2", "qk_norm": "all"},
    "sinusoidal": {"positions": "sinusoidal", "activation": "gelu_tanh"},
    "no positions": {"positions": "none", "biases": ("gate", "o"), "query_scale": 0.2},
}  # fmt: skip


def logits_of(config, params, tokens, positions=None, segments=None, **more):
    tokens = jnp.asarray(tokens)
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
    x, _ = transformer.forward(params, tokens, Tokens(jnp.asarray(positions), segments), config, Layout(), **more)
    return transformer.unembed(params, x, config, Layout())


@pytest.mark.parametrize("name", OPTIONS)
def test_causal_and_packed_rows_equal_their_documents_apart(name):
    config = tiny(**OPTIONS[name])
    params, batch = draw(config), batch_of(rows=1)

    packed = np.asarray(logits_of(config, params, batch.tokens, batch.positions, batch.segments)[0])
    run = jax.jit(lambda tokens: logits_of(config, params, tokens))
    for document in range(1, 4):
        here = batch.segments[0] == document
        alone = np.zeros((1, 24), np.int32)
        alone[0, : here.sum()] = batch.tokens[0, here]  # what follows the document must not matter: causality
        np.testing.assert_allclose(packed[here], np.asarray(run(alone))[0, : here.sum()], atol=3e-5)
    # Causality by gradient: the logits of one token, by the embedding of every input.
    place = 13
    here = (jnp.arange(24) == place).astype(jnp.float32)[None, :, None]

    def chosen(change):
        edit = lambda site, layer, x: x + change if site == "embed" else x  # noqa: E731
        return (logits_of(config, params, batch.tokens, edit=edit) * here).sum()

    reach = np.abs(jax.jit(jax.grad(chosen))(jnp.zeros((1, 24, 32)))[0]).sum(-1)
    assert (reach[place + 1 :] == 0).all() and (reach[place] > 0)
    assert (reach[: place + 1] > 0).any()


def test_bidirectional_attention_sees_what_follows():
    config = tiny(causal=False, attention_kernel="plain")
    params, tokens = draw(config), batch_of(rows=1).tokens
    changed = tokens.copy()
    changed[0, -1] += 1
    first = logits_of(config, params, tokens)[0, 0]
    assert np.abs(first - logits_of(config, params, changed)[0, 0]).max() > 1e-4


def test_windows_apply_to_the_layers_of_the_pattern_and_no_others():
    config = tiny(num_layers=5, attention_pattern=("sliding", "global"), sliding_window=3)
    assert [config.window(layer) for layer in range(5)] == [3, 0, 3, 0, 3]
    assert [len(b.attention.q) for b in draw(config).blocks] == [3, 2]
    seen = []

    def edit(site, layer, x):
        jax.debug.callback(lambda layer: seen.append(int(layer)), layer, ordered=True) if site == "resid" else None
        return x

    logits_of(config, draw(config), batch_of(rows=1).tokens, edit=edit).block_until_ready()
    jax.effects_barrier()
    assert seen == [0, 1, 2, 3, 4]


def test_an_edit_reads_and_changes_any_site():
    config = tiny()
    params, tokens = draw(config), batch_of(rows=1).tokens
    plain = logits_of(config, params, tokens)
    shapes = {}

    def record(site, layer, x):
        shapes[site] = x.shape
        return x

    np.testing.assert_array_equal(plain, logits_of(config, params, tokens, edit=record))
    assert list(shapes) == ["embed", "attn_in", "q", "k", "v", "heads", "attn_out", "ffn_in", "ffn_out", "resid", "final"]
    assert shapes["q"] == (1, 24, 8, 4) and shapes["resid"] == (1, 24, 32)
    silenced = logits_of(
        config, params, tokens, edit=lambda s, layer, x: jnp.where(layer == 1, 0 * x, x) if s in ("attn_out", "ffn_out") else x
    )
    one_layer = dataclasses.replace(config, num_layers=1)
    shallow = dataclasses.replace(params, blocks=jax.tree.map(lambda w: w[:1], params.blocks))
    np.testing.assert_allclose(silenced, logits_of(one_layer, shallow, tokens), atol=1e-6)


def test_remat_changes_nothing():
    config = tiny(attention_pattern=("sliding", "global"), sliding_window=4, num_layers=3)
    params, tokens = draw(config), batch_of(rows=2).tokens

    def gradients(remat):
        return jax.jit(jax.grad(lambda p: (logits_of(config, p, tokens, remat=remat) ** 2).sum()))(params)

    expected = gradients("none")
    for remat in ("dots", "full"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), gradients(remat), expected)


def test_dropout_is_off_without_a_key_and_keeps_the_mean():
    config = tiny(dropout=0.5)
    params, tokens = draw(config), batch_of(rows=1).tokens
    np.testing.assert_array_equal(logits_of(config, params, tokens), logits_of(tiny(), params, tokens))
    dropped = [logits_of(config, params, tokens, key=jax.random.key(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(dropped[0], dropped[1])
    assert np.abs(dropped[0] - dropped[2]).max() > 1e-3
    x = transformer.dropout(jnp.ones((1, 100, 100)), jax.random.key(2), 0.25)
    assert set(np.unique(x)) == {0.0, np.float32(1 / 0.75)} and abs(float(x.mean()) - 1) < 0.02


def test_initial_values_follow_names_not_meshes_or_neighbours():
    spec = transformer.spec(tiny())
    first = param.initialize(spec, jax.random.key(0), Layout())
    more = param.initialize(transformer.spec(tiny(biases=("q",), tie_embeddings=False)), jax.random.key(0), Layout())
    np.testing.assert_array_equal(first.blocks[0].mlp.up, more.blocks[0].mlp.up)
    assert np.abs(first.blocks[0].mlp.up - first.blocks[0].mlp.gate).max() > 0.1
    std = np.asarray(first.blocks[0].attention.q).std()
    assert abs(std - 32**-0.5) < 0.02
    assert abs(np.asarray(first.blocks[0].mlp.down).std() - (48 * 2 * 2) ** -0.5) < 0.01


def test_bfloat16_stays_near_float32():
    config = tiny()
    params, tokens = draw(config, spread=0.02), batch_of(rows=2).tokens
    exact = logits_of(config, params, tokens)
    rough = logits_of(dataclasses.replace(config, compute_dtype="bfloat16"), params, tokens)
    assert rough.dtype == jnp.float32
    assert 0 < np.abs(exact - rough).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("fields", "fix"),
    [
        ({"head_dim": 0, "num_heads": 5}, "take 4 heads"),
        ({"num_kv_heads": 3}, "key-value heads"),
        ({"rope_fraction": 0.1}, "even"),
        ({"attention_pattern": ("sliding",)}, "set model.sliding_window"),
        ({"sliding_window": 4}, "add one"),
        ({"norm_bias": True}, 'model.norm = "layer"'),
        ({"biases": ("gate",), "activation": "gelu"}, "take it out"),
        ({"attention_pattern": ()}, "name at least one"),
        ({"hiden_size": 3}, "hidden_size"),
        ({"activation": "swigl"}, "swiglu"),
        ({"dropout": 1.5}, "between 0 and 0.99"),
    ],
)
def test_contradictions_are_refused_with_the_fix(fields, fix):
    with pytest.raises(ConfigError, match=fix):
        tiny(**fields)
