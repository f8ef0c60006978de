"""Rotary frequencies of every scaling against stored ones of Hugging Face transformers (tests/reference/make_rope.py)."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from models import draw, tiny

from jaxlm.errors import ConfigError
from jaxlm.layout import Layout
from jaxlm.model import transformer
from jaxlm.model.config import ModelConfig
from jaxlm.model.moe_config import MoeConfig
from jaxlm.model.rope import angles, frequencies
from jaxlm.model.rope_config import RopeScaling
from jaxlm.ops.masks import Tokens

CASES = json.loads((Path(__file__).parents[1] / "reference" / "rope.json").read_text())


def config_of(rope: dict, head_dim: int = 16) -> ModelConfig:
    values = {"kind": rope["rope_type"], "original_length": rope.get("original_max_position_embeddings", 64)}
    for name in ("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"):
        values |= {name: float(rope[name])} if name in rope else {}
    for name in ("truncate", "attention_factor"):
        values |= {name: rope[name]} if name in rope else {}
    for name in ("short_factor", "long_factor"):
        values |= {name: tuple(rope[name])} if name in rope else {}
    return tiny(
        hidden_size=64, num_heads=4, num_kv_heads=4, head_dim=head_dim, rope_theta=rope["rope_theta"],
        rope_fraction=rope.get("partial_rotary_factor", 1.0), rope_scaling=RopeScaling(**values),
    )  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[f"{i}-{case['rope']['rope_type']}" for i, case in enumerate(CASES)])
def test_frequencies_equal_those_of_transformers(case):
    config = config_of(case["rope"], case["head_dim"])
    found = frequencies(config, jnp.array([case["length"]]))
    found = found[0] if found.ndim == 2 else found
    np.testing.assert_allclose(found, case["frequencies"], rtol=1e-6)
    np.testing.assert_allclose(config.rope_scaling.amplitude(config.rope_scaling.original_length), case["attention_factor"])


def test_static_ntk_is_dynamic_ntk_held_at_one_length():
    """transformers has no static kind; a row of 112 tokens of 64 raises the base of the dynamic one, of factor 4, as much."""
    dynamic = next(case for case in CASES if case["length"] == 112)
    assert dynamic["rope"]["rope_type"] == "dynamic" and dynamic["rope"]["factor"] == 4.0
    static = config_of(dynamic["rope"] | {"rope_type": "ntk"})
    np.testing.assert_allclose(frequencies(static), dynamic["frequencies"], rtol=1e-6)
    assert static.rope_scaling.amplitude(64) == 1.0
    with pytest.raises(ConfigError, match="'ntk' needs 3 rotated features or more"):
        tiny(rope_fraction=0.5, rope_scaling=RopeScaling(kind="ntk", factor=2.0))


def test_values_of_the_methods_by_hand():
    """Heads of 16 features, 64 positions, factor 4."""
    config = config_of({"rope_type": "yarn", "factor": 4.0, "rope_theta": 10_000.0})
    ratio = np.asarray(frequencies(config)) / np.asarray(frequencies(config_of({"rope_type": "none", "rope_theta": 1e4})))
    np.testing.assert_allclose(ratio, [1, 0.75, 0.5, 0.25, 0.25, 0.25, 0.25, 0.25], rtol=1e-6)
    np.testing.assert_allclose(config.rope_scaling.amplitude(64), 1.138629, rtol=1e-6)
    dynamic = frequencies(config_of({"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}), jnp.array([128, 256]))
    np.testing.assert_allclose(dynamic[:, 1], np.array([62924.9, 187533.2]) ** (-1 / 8), rtol=1e-6)


def test_each_kind_of_layer_has_its_base_and_each_row_its_length():
    at = Tokens(jnp.arange(80)[None].repeat(2, 0) * jnp.array([[1], [0]]))
    both = angles(at, tiny(attention_pattern=("sliding", "global"), sliding_window=4, sliding_rope_theta=50.0))
    alone = {theta: angles(at, tiny(rope_theta=theta))["global"] for theta in (50.0, 10_000.0)}
    np.testing.assert_array_equal(both["sliding"][0], alone[50.0][0])
    np.testing.assert_array_equal(both["global"][1], alone[10_000.0][1])
    dynamic = tiny(rope_scaling=RopeScaling(kind="dynamic", factor=4.0, original_length=40))
    long, short = np.asarray(frequencies(dynamic, jnp.array([80, 1])))
    np.testing.assert_array_equal(short, np.asarray(frequencies(tiny())))
    np.testing.assert_allclose(angles(at, dynamic)["global"][0][0, 79], np.cos(79 * long), atol=1e-5)


def test_parallel_residual_is_a_sum_over_one_input():
    config = tiny(num_layers=1, parallel_residual=True)
    params, tokens = draw(config), jnp.arange(5, 17)[None]
    at = Tokens(jnp.arange(12)[None])
    seen = {}

    def watch(site, layer, x):
        seen.setdefault(site, x)
        return x

    block = transformer.jax.tree.map(lambda w: w[0], params.blocks[0])
    x = transformer.embed(params, tokens, at, config, Layout())
    rope = angles(at, config)["global"]
    attend = lambda q, k, v: transformer.attention(q, k, v, at, at, scale=config.attention_scale)  # noqa: E731
    y, _ = transformer.block(block, x, attend, rope, tokens > 0, 0, config, Layout(), watch)
    np.testing.assert_allclose(y, x + seen["attn_out"] + seen["ffn_out"], rtol=1e-6)
    np.testing.assert_allclose(seen["ffn_in"], transformer.layers.norm(block.mlp_norm, x, config), rtol=1e-6)
    assert not np.allclose(seen["ffn_in"], seen["attn_in"])


def test_dense_layers_among_mixtures():
    moe = MoeConfig(num_experts=4, experts_per_token=2, renormalize=True, capacity_factor=None, dense_layers=(1,))
    config = tiny(num_layers=3, moe=moe)
    assert config.moe_layers == (0, 2) and config.period == 3
    kinds = [block.moe is not None for block in transformer.spec(config).blocks]
    assert kinds == [True, False, True]


MISTAKES = {
    "dense_layers names layer 9": lambda: tiny(moe=MoeConfig(num_experts=4, dense_layers=(9,))),
    "leaves no layer a mixture": lambda: tiny(moe=MoeConfig(num_experts=4, dense_layers=(0, 1))),
    "one for each of the 2 rotated pairs": lambda: tiny(rope_scaling=RopeScaling(kind="longrope", short_factor=(1.0,))),
    "divide frequencies": lambda: RopeScaling(kind="longrope", short_factor=(0.0,)),
    "go with rope_scaling.kind": lambda: RopeScaling(kind="yarn", long_factor=(1.0,)),
    "Llama 3.1 has 1 and 4": lambda: RopeScaling(kind="llama3", low_freq_factor=4.0),
    "how many times longer": lambda: RopeScaling(kind="linear", factor=0.0),
    'no "sliding" layer': lambda: tiny(sliding_rope_theta=10.0),
    "above 1, 10000": lambda: tiny(rope_theta=1.0),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_contradictions_are_refused(message):
    with pytest.raises(ConfigError, match=message):
        MISTAKES[message]()
