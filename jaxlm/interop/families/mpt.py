"""MPT: ALiBi instead of rotations, LayerNorm and no biases."""

from typing import Any

from jaxlm.interop.families.decoder import ends, norm
from jaxlm.interop.families.family import Family
from jaxlm.interop.families.fields import INERT, MOST_LAYERS, Fields
from jaxlm.interop.table import Entry, Table
from jaxlm.model.config import ModelConfig

# How its first releases were made, initialised, trained and saved.
INERT_HERE = frozenset(
    "embedding_fraction fc_type init_config init_device max_position_embeddings name tokenizer_name verbose".split()
)
INERT_ATTENTION = frozenset(INERT | {"attn_impl", "attn_pdrop"})
# What a head's slopes are made for; transformers takes this value whatever the configuration says.
BIAS_MAX = 8


def read_mpt(f: Fields) -> ModelConfig:
    """LayerNorm without a bias, GELU without a gate, distances in the place of positions."""
    width, heads = f.integer("d_model", 2048), f.integer("n_heads", 16)
    if width % heads:
        raise f.fault("d_model", width, f"does not divide by n_heads = {heads}")
    f.only("expansion_ratio", 4)
    f.only("no_bias", True)
    f.only("logit_scale", None)
    f.only("norm_type", "low_precision_layernorm", "layernorm")
    f.flag("learned_pos_emb", True)  # without influence beside ALiBi
    for name in sorted(INERT_HERE):
        f.get(name)
    rates = [f.number(name, 0.0, 0.0, 1.0) for name in ("emb_pdrop", "resid_pdrop")]
    attention = Fields(f.nested("attn_config"), f"{f.where}: attn_config")
    attention.only("kv_n_heads", None, heads)
    scale = attention.optional_number("softmax_scale")
    _only_alibi(attention)
    return ModelConfig(
        vocab_size=f.integer("vocab_size", 50368), num_layers=f.integer("n_layers", 24, 1, MOST_LAYERS), hidden_size=width,
        num_heads=heads, intermediate_size=4 * width, max_length=f.integer("max_seq_len", 2048), activation="gelu",
        norm="layer", norm_epsilon=f.number("layer_norm_epsilon", 1e-5, 0.0, 1.0), positions="alibi",
        query_scale=scale or 0.0, tie_embeddings=f.flag("tie_word_embeddings", True),
        dropout=min(rates[0], 0.99) if len(set(rates)) == 1 else 0.0,
    )  # fmt: skip


def _only_alibi(attention: Fields) -> None:
    """Refuse what makes another attention than multi-head attention with ALiBi."""
    attention.only("attn_type", "multihead_attention")
    attention.only("alibi", True)
    attention.only("alibi_bias_max", BIAS_MAX)
    attention.only("clip_qkv", None)
    for name in ("attn_uses_sequence_id", "prefix_lm", "qk_ln"):
        attention.only(name, False)
    attention.finish(INERT_ATTENTION)


def write_mpt(model: ModelConfig) -> dict[str, Any]:
    """Fields of an MptConfig."""
    usual = round(model.attention_scale, 12) == round(model.head_size**-0.5, 12)
    attention = {"alibi": True, "alibi_bias_max": BIAS_MAX, "softmax_scale": None if usual else model.attention_scale}
    return {
        "vocab_size": model.vocab_size, "d_model": model.hidden_size, "n_layers": model.num_layers,
        "n_heads": model.num_heads, "expansion_ratio": 4, "max_seq_len": model.max_length, "attn_config": attention,
        "layer_norm_epsilon": model.norm_epsilon, "tie_word_embeddings": model.tie_embeddings, "no_bias": True,
        "emb_pdrop": model.dropout, "resid_pdrop": model.dropout,
    }  # fmt: skip


def mpt_table(model: ModelConfig) -> Table:
    """Matrices lie outputs first, those of queries, keys and values below one another."""
    layer = "transformer.blocks.{layer}."
    entries = [Entry(f"blocks.attention.{x}", f"{layer}attn.Wqkv.weight", f"dnh -> ({i}/3 nh)d") for i, x in enumerate("qkv")]
    entries += [
        Entry("blocks.attention.o", f"{layer}attn.out_proj.weight", "nhd -> d(nh)"),
        Entry("blocks.mlp.up", f"{layer}ffn.up_proj.weight", "df -> fd"),
        Entry("blocks.mlp.down", f"{layer}ffn.down_proj.weight", "fd -> df"),
    ]
    norms = norm("blocks.attention_norm", f"{layer}norm_1") + norm("blocks.mlp_norm", f"{layer}norm_2")
    return ends(model, "transformer.wte.weight", "transformer.norm_f") + tuple(entries) + norms


MPT_FAMILY = Family(
    ("mpt",), "MptForCausalLM", "transformer.", read_mpt, write_mpt, mpt_table,
    synonyms={"hidden_size": "d_model", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"},
)  # fmt: skip
