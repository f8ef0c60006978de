"""GPT-2 and GPT-NeoX."""

from typing import Any

from jaxlm.errors import ConfigError
from jaxlm.interop.families.decoder import PLAIN, ends, max_positions, norm, spelled
from jaxlm.interop.families.family import Family
from jaxlm.interop.families.fields import MOST_LAYERS, Fields
from jaxlm.interop.families.rope import read_rope, their_max_length, write_rope
from jaxlm.interop.table import Entry, Table
from jaxlm.model.config import ModelConfig

ATTENTION_BIASES, MLP_BIASES = ("q", "k", "v", "o"), ("up", "down")


def read_gpt2(f: Fields) -> ModelConfig:
    """LayerNorm, learned positions, biases everywhere, no gate."""
    f.only("scale_attn_by_inverse_layer_idx", False)
    f.flag("reorder_and_upcast_attn", False)  # an order of computing: float32 results are the same
    width, rates = f.integer("n_embd", 768), [f.number(name, 0.1, 0.0, 1.0) for name in ("embd_pdrop", "resid_pdrop")]
    positions = f.integer("n_positions", 1024)
    f.only("n_ctx", positions)
    scaled = f.flag("scale_attn_weights", True)
    return ModelConfig(
        vocab_size=f.integer("vocab_size", 50257), num_layers=f.integer("n_layer", 12, 1, MOST_LAYERS), hidden_size=width,
        num_heads=f.integer("n_head", 12), intermediate_size=f.optional_integer("n_inner") or 4 * width, max_length=positions,
        activation=f.choice("activation_function", "gelu_new", PLAIN), norm="layer", norm_bias=True, positions="learned",
        norm_epsilon=f.number("layer_norm_epsilon", 1e-5, 0.0, 1.0), biases=ATTENTION_BIASES + MLP_BIASES,
        query_scale=0.0 if scaled else 1.0, tie_embeddings=f.flag("tie_word_embeddings", True), dropout=_dropout(rates),
    )  # fmt: skip


def read_gpt_neox(f: Fields) -> ModelConfig:
    """LayerNorm, partial rotation, sub-layers side by side or one after the other."""
    width, heads = f.integer("hidden_size", 6144), f.integer("num_attention_heads", 64)
    if width % heads:
        raise f.fault("hidden_size", width, f"does not divide by num_attention_heads = {heads}")
    f.only("head_dim", None, width // heads)
    f.only("num_key_value_heads", None, heads)
    rope = read_rope(
        f,
        max_length=max_positions(f, 2048),
        theta_name="rotary_emb_base",
        fraction_name="rotary_pct",
        fraction=0.25,
        partial=True,
    )
    # Names that other families have: without influence at their home, so they must not say anything else.
    f.only("rope_theta", None, rope["rope_theta"], int(rope["rope_theta"]))
    f.only("partial_rotary_factor", None, rope["rope_fraction"])
    biases = ATTENTION_BIASES if f.flag("attention_bias", True) else ()
    return ModelConfig(
        vocab_size=f.integer("vocab_size", 50432), num_layers=f.integer("num_hidden_layers", 44, 1, MOST_LAYERS),
        hidden_size=width, num_heads=heads, intermediate_size=f.integer("intermediate_size", 24576),
        activation=f.choice("hidden_act", "gelu", PLAIN), norm="layer", norm_bias=True,
        norm_epsilon=f.number("layer_norm_eps", 1e-5, 0.0, 1.0), biases=biases + MLP_BIASES,
        parallel_residual=f.flag("use_parallel_residual", True), tie_embeddings=f.flag("tie_word_embeddings", False),
        dropout=_dropout([f.number("hidden_dropout", 0.0, 0.0, 1.0)]), **rope,
    )  # fmt: skip


def _dropout(rates: list[float]) -> float:
    """Return the rate on the embedding and after sub-layers, where it is one; it matters in training alone."""
    return min(rates[0], 0.99) if len(set(rates)) == 1 else 0.0


def write_gpt2(model: ModelConfig) -> dict[str, Any]:
    """Fields of a GPT2Config."""
    if round(model.attention_scale, 12) not in (1.0, round(model.head_size**-0.5, 12)):
        raise ConfigError("GPT2LMHeadModel cannot hold model.query_scale other than 0 (head_dim ** -0.5) and 1")
    return {
        "vocab_size": model.vocab_size, "n_embd": model.hidden_size, "n_layer": model.num_layers, "n_head": model.num_heads,
        "n_inner": model.intermediate_size, "n_positions": model.max_length,
        "activation_function": "gelu_new" if model.activation == "gelu_tanh" else spelled(model.activation, PLAIN),
        "layer_norm_epsilon": model.norm_epsilon, "tie_word_embeddings": model.tie_embeddings,
        "scale_attn_weights": round(model.attention_scale, 12) != 1.0 or model.head_size == 1,
        "embd_pdrop": model.dropout, "resid_pdrop": model.dropout, "attn_pdrop": 0.0,
    }  # fmt: skip


def write_gpt_neox(model: ModelConfig) -> dict[str, Any]:
    """Fields of a GPTNeoXConfig."""
    rope = write_rope(model) | {"partial_rotary_factor": model.rope_fraction}
    return {
        "vocab_size": model.vocab_size, "hidden_size": model.hidden_size, "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads, "intermediate_size": model.intermediate_size,
        "max_position_embeddings": their_max_length(model), "rope_parameters": rope,
        "hidden_act": "gelu_new" if model.activation == "gelu_tanh" else spelled(model.activation, PLAIN),
        "layer_norm_eps": model.norm_epsilon, "use_parallel_residual": model.parallel_residual,
        "attention_bias": "o" in model.biases, "tie_word_embeddings": model.tie_embeddings,
        "hidden_dropout": model.dropout, "attention_dropout": 0.0,
    }  # fmt: skip


def gpt2_table(model: ModelConfig) -> Table:
    """Matrices lie inputs first, those of queries, keys and values side by side."""
    layer = "transformer.h.{layer}."
    entries = [Entry("position_embed", "transformer.wpe.weight", "ld -> ld")]
    for i, x in enumerate("qkv"):
        entries.append(Entry(f"blocks.attention.{x}", f"{layer}attn.c_attn.weight", f"dnh -> d({i}/3 nh)"))
        entries.append(Entry(f"blocks.attention.{x}_bias", f"{layer}attn.c_attn.bias", f"nh -> ({i}/3 nh)"))
    entries += [
        Entry("blocks.attention.o", f"{layer}attn.c_proj.weight", "nhd -> (nh)d"),
        Entry("blocks.attention.o_bias", f"{layer}attn.c_proj.bias", "d -> d"),
    ]
    for x, theirs in (("up", "c_fc"), ("down", "c_proj")):
        entries.append(Entry(f"blocks.mlp.{x}", f"{layer}mlp.{theirs}.weight", "df -> df"))
        entries.append(Entry(f"blocks.mlp.{x}_bias", f"{layer}mlp.{theirs}.bias", "f -> f"))
    norms = norm("blocks.attention_norm", f"{layer}ln_1") + norm("blocks.mlp_norm", f"{layer}ln_2")
    return ends(model, "transformer.wte.weight", "transformer.ln_f") + tuple(entries) + norms


def gpt_neox_table(model: ModelConfig) -> Table:
    """Matrices lie outputs first, each head's query, key and value after one another."""
    layer = "gpt_neox.layers.{layer}."
    entries = []
    for i, x in enumerate("qkv"):
        entries.append(Entry(f"blocks.attention.{x}", f"{layer}attention.query_key_value.weight", f"dnh -> (n {i}/3 h)d"))
        entries.append(Entry(f"blocks.attention.{x}_bias", f"{layer}attention.query_key_value.bias", f"nh -> (n {i}/3 h)"))
    entries += [
        Entry("blocks.attention.o", f"{layer}attention.dense.weight", "nhd -> d(nh)"),
        Entry("blocks.attention.o_bias", f"{layer}attention.dense.bias", "d -> d"),
    ]
    for x, theirs in (("up", "dense_h_to_4h"), ("down", "dense_4h_to_h")):
        entries.append(Entry(f"blocks.mlp.{x}", f"{layer}mlp.{theirs}.weight", "df -> fd"))
        entries.append(Entry(f"blocks.mlp.{x}_bias", f"{layer}mlp.{theirs}.bias", "f -> f"))
    norms = norm("blocks.attention_norm", f"{layer}input_layernorm") + norm(
        "blocks.mlp_norm", f"{layer}post_attention_layernorm"
    )
    # transformers 5 calls the head lm_head in memory and embed_out in files, as it always was.
    outside = ends(model, "gpt_neox.embed_in.weight", "gpt_neox.final_layer_norm", "embed_out.weight")
    other = () if model.tie_embeddings else (Entry("head", "lm_head.weight", "vd -> vd"),)
    return outside + other + tuple(entries) + norms


GPT2_FAMILY = Family(
    ("gpt2",), "GPT2LMHeadModel", "transformer.", read_gpt2, write_gpt2, gpt2_table,
    synonyms={
        "hidden_size": "n_embd", "max_position_embeddings": "n_positions", "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
)  # fmt: skip
GPT_NEOX_FAMILY = Family(
    ("gpt_neox",), "GPTNeoXForCausalLM", "gpt_neox.", read_gpt_neox, write_gpt_neox, gpt_neox_table,
    heads=("embed_out.weight", "lm_head.weight"),
)  # fmt: skip
