"""Logits, loss and gradients of every family against Hugging Face transformers, from stored outputs.

The fixtures are made by tests/reference/make_hugging_face.py, in an environment of its own.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.layout import Layout
from jaxlm.model import transformer
from jaxlm.model.config import ModelConfig
from jaxlm.model.layers import Attention, Mlp, Norm
from jaxlm.ops.attention import Tokens
from jaxlm.ops.cross_entropy import cross_entropy

REFERENCE = Path(__file__).parents[1] / "reference"
BIASES = {
    "llama_bias_tied": ("q", "k", "v", "o", "gate", "up", "down"),
    "stablelm": ("q", "k", "v"),
    "gpt2": ("q", "k", "v", "o", "up", "down"),
}
FAMILY = {
    "llama": {},
    "llama_bias_tied": {},
    "mistral": {"attention_pattern": ("sliding",), "sliding_window": 7},
    "qwen3": {"qk_norm": "head"},
    "olmo2": {"qk_norm": "all", "norm_position": "after"},
    "stablelm": {"norm": "layer", "norm_bias": True, "rope_fraction": 0.5},
    "gpt2": {"norm": "layer", "norm_bias": True, "positions": "learned", "activation": "gelu_tanh"},
    "gemma2": {
        "norm_position": "both", "norm_plus_one": True, "scale_embeddings": True, "activation": "geglu",
        "attention_pattern": ("sliding", "global"),
    },
}  # fmt: skip
# Our norms -> theirs; the same name means different things in different families.
NORMS = {
    "attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm",
    "attention_post_norm": "post_attention_layernorm", "mlp_post_norm": "post_feedforward_layernorm",
}  # fmt: skip


def config_of(name: str, theirs: dict) -> ModelConfig:
    rope = theirs.get("rope_parameters") or {}
    fields = {
        "vocab_size": theirs["vocab_size"],
        "num_layers": theirs.get("num_hidden_layers") or theirs["n_layer"],
        "hidden_size": theirs.get("hidden_size") or theirs["n_embd"],
        "num_heads": theirs.get("num_attention_heads") or theirs["n_head"],
        "num_kv_heads": theirs.get("num_key_value_heads") or 0,
        "head_dim": theirs.get("head_dim") or 0,
        "intermediate_size": theirs.get("intermediate_size") or 4 * theirs["n_embd"],
        "norm_epsilon": next(theirs[k] for k in ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon") if k in theirs),
        "tie_embeddings": bool(theirs["tie_word_embeddings"]),
        "rope_theta": float(rope.get("rope_theta") or theirs.get("rope_theta") or 10_000.0),
        "biases": BIASES.get(name, ()),
        "max_length": 32,
        "compute_dtype": "float32",
        "attention_kernel": "blocked",
    }
    if name == "gemma2":
        fields |= {
            "attention_softcap": theirs["attn_logit_softcapping"], "logit_softcap": theirs["final_logit_softcapping"],
            "query_scale": theirs["query_pre_attn_scalar"] ** -0.5, "sliding_window": theirs["sliding_window"],
        }  # fmt: skip
    return ModelConfig(**(fields | FAMILY[name]))


def load(name: str, prefix: str, w: dict, config: ModelConfig) -> dict:
    """Return {leaf name of one layer: array} of a Hugging Face layer whose tensors begin with `prefix`."""
    D, N, K, H = config.hidden_size, config.num_heads, config.kv_heads, config.head_size
    get = lambda key: w.get(prefix + key)  # noqa: E731
    if name == "gpt2":
        q, k, v = np.split(get("attn.c_attn.weight"), 3, axis=1)
        qb, kb, vb = np.split(get("attn.c_attn.bias"), 3)
        attention = Attention(
            q.reshape(D, N, H), k.reshape(D, K, H), v.reshape(D, K, H), get("attn.c_proj.weight").reshape(N, H, D),
            qb.reshape(N, H), kb.reshape(K, H), vb.reshape(K, H), get("attn.c_proj.bias"), None, None,
        )  # fmt: skip
        mlp = Mlp(None, get("mlp.c_fc.weight"), get("mlp.c_proj.weight"), None, get("mlp.c_fc.bias"), get("mlp.c_proj.bias"))
        norms = {"attention_norm": "ln_1", "mlp_norm": "ln_2"}
    else:
        part = lambda key, heads: None if get(key) is None else get(key).reshape(heads, H)  # noqa: E731
        proj = {x: f"self_attn.{x}_proj" for x in "qkvo"}
        qk_norm = [None, None]
        if config.qk_norm != "none":
            qk_norm = [Norm(get(f"self_attn.{x}_norm.weight"), None) for x in "qk"]
            if config.qk_norm == "all":
                qk_norm = [Norm(n.scale.reshape(heads, H), None) for n, heads in zip(qk_norm, (N, K), strict=True)]
        attention = Attention(
            get(proj["q"] + ".weight").T.reshape(D, N, H), get(proj["k"] + ".weight").T.reshape(D, K, H),
            get(proj["v"] + ".weight").T.reshape(D, K, H), get(proj["o"] + ".weight").T.reshape(N, H, D),
            part(proj["q"] + ".bias", N), part(proj["k"] + ".bias", K), part(proj["v"] + ".bias", K), get(proj["o"] + ".bias"),
            *qk_norm,
        )  # fmt: skip
        mlp = Mlp(
            *(get(f"mlp.{x}_proj.weight").T for x in ("gate", "up", "down")),
            *(get(f"mlp.{x}_proj.bias") for x in ("gate", "up", "down")),
        )
        norms = dict(NORMS)
        if name == "gemma2":
            norms["mlp_norm"] = "pre_feedforward_layernorm"
    wanted = {
        "before": ("attention_norm", "mlp_norm"),
        "after": ("attention_post_norm", "mlp_post_norm"),
        "both": tuple(NORMS),
    }[config.norm_position]
    layer_norms = dict.fromkeys(NORMS) | {n: Norm(get(norms[n] + ".weight"), get(norms[n] + ".bias")) for n in wanted}
    return {"attention": attention, "mlp": mlp, "moe": None, **layer_norms}


def import_weights(name: str, w: dict, config: ModelConfig) -> transformer.Transformer:
    top = {"embed": "model.embed_tokens.weight", "norm": "model.norm", "layers": "model.layers.{}."}
    if name == "gpt2":
        top = {"embed": "transformer.wte.weight", "norm": "transformer.ln_f", "layers": "transformer.h.{}."}
    layers = [transformer.Block(**load(name, top["layers"].format(i), w, config)) for i in range(config.num_layers)]
    period = len(config.attention_pattern)
    return transformer.Transformer(
        embed=w[top["embed"]],
        position_embed=w.get("transformer.wpe.weight"),
        blocks=tuple(jax.tree.map(lambda *x: jnp.stack(x), *layers[place::period]) for place in range(period)),
        final_norm=Norm(w[top["norm"] + ".weight"], w.get(top["norm"] + ".bias")),
        head=None if config.tie_embeddings else w["lm_head.weight"],
    )


@pytest.mark.parametrize("name", sorted(FAMILY))
def test_equals_transformers(name):
    stored = np.load(REFERENCE / f"{name}.npz")
    w = {k[2:]: stored[k] for k in stored.files if k.startswith("w/")}
    config = config_of(name, json.loads(str(stored["config"])))
    params = jax.tree.map(jnp.asarray, import_weights(name, w, config))
    expected = jax.tree.map(lambda p: p.shape, transformer.spec(config), is_leaf=lambda x: hasattr(x, "init"))
    assert jax.tree.map(jnp.shape, params) == expected
    tokens = jnp.asarray(stored["tokens"])
    at = Tokens(jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape))

    def loss(params):
        x, _ = transformer.forward(params, tokens, at, config, Layout())
        weights = jnp.broadcast_to((jnp.arange(tokens.shape[1]) < tokens.shape[1] - 1).astype(jnp.float32)[None], tokens.shape)
        total, _ = cross_entropy(
            x, transformer.head(params), jnp.roll(tokens, -1, axis=1), weights, softcap=config.logit_softcap
        )
        return total / weights.sum(), transformer.unembed(params, x, config, Layout())

    (found, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(logits, stored["logits"], atol=5e-5 * np.abs(stored["logits"]).max())
    np.testing.assert_allclose(found, stored["loss"], rtol=2e-6)
    theirs = {k[2:]: stored[k] for k in stored.files if k.startswith("g/")}
    ours = jax.tree.map(np.asarray, gradients)
    embedding = theirs["transformer.wte.weight" if name == "gpt2" else "model.embed_tokens.weight"]
    np.testing.assert_allclose(ours.embed, embedding, atol=1e-5 * np.abs(embedding).max() + 1e-7)
    final = theirs["transformer.ln_f.weight" if name == "gpt2" else "model.norm.weight"]
    np.testing.assert_allclose(ours.final_norm.scale, final, atol=1e-5 * np.abs(final).max() + 1e-7)
    if name != "gpt2":
        q = theirs["model.layers.0.self_attn.q_proj.weight"].T.reshape(ours.blocks[0].attention.q.shape[1:])
        np.testing.assert_allclose(ours.blocks[0].attention.q[0], q, atol=2e-5 * np.abs(q).max() + 1e-7)
        last = config.num_layers - 1
        place = last % len(config.attention_pattern)
        down = theirs[f"model.layers.{last}.mlp.down_proj.weight"].T
        np.testing.assert_allclose(ours.blocks[place].mlp.down[-1], down, atol=2e-5 * np.abs(down).max() + 1e-7)
