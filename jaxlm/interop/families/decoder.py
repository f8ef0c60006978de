"""What most families share: names of fields, kinds of attention, and tensors named as Llama's are."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxlm.interop.families.fields import MOST_LAYERS, Fields
from jaxlm.interop.table import Entry
from jaxlm.model.config import ModelConfig

TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "gelu_python_tanh")
# Their activation functions -> ours, with a gate and without; the first of several spellings is written.
GATED = {"silu": "swiglu", "swish": "swiglu", "gelu": "geglu_exact", "gelu_python": "geglu_exact", "relu": "reglu"} | {
    name: "geglu" for name in TANH
}
PLAIN = {
    "gelu": "gelu", "gelu_python": "gelu", "relu": "relu", "relu2": "relu2", "silu": "silu", "swish": "silu",
} | {name: "gelu_tanh" for name in TANH}  # fmt: skip
ATTENTION = {"full_attention": "global", "sliding_attention": "sliding"}


def spelled(activation: str, options: Mapping[str, str]) -> str:
    """Return their name of an activation function; ours where they have none, which reading it back then refuses."""
    preferred = {"geglu": "gelu_pytorch_tanh"}.get(activation)
    return preferred or next((name for name, ours in options.items() if ours == activation), activation)


def read_decoder(f: Fields, defaults: Mapping[str, Any], activation: str = "hidden_act") -> dict[str, Any]:
    """Return the ModelConfig fields that every Llama-like family has; `defaults` are its configuration class's."""
    heads = f.integer("num_attention_heads", defaults["num_attention_heads"])
    return {
        "vocab_size": f.integer("vocab_size", defaults["vocab_size"]),
        "num_layers": f.integer("num_hidden_layers", defaults["num_hidden_layers"], 1, MOST_LAYERS),
        "hidden_size": f.integer("hidden_size", defaults["hidden_size"]),
        "intermediate_size": f.integer("intermediate_size", defaults["intermediate_size"]),
        "num_heads": heads,
        "num_kv_heads": f.optional_integer("num_key_value_heads", defaults["num_key_value_heads"]) or heads,
        "head_dim": f.optional_integer("head_dim", defaults.get("head_dim")) or 0,
        "activation": f.choice(activation, defaults.get(activation, "silu"), GATED),
        "norm_epsilon": f.number("rms_norm_eps", defaults.get("rms_norm_eps", 1e-6), 0.0, 1.0),
        "tie_embeddings": f.flag("tie_word_embeddings", defaults.get("tie_word_embeddings", False)),
    }


def max_positions(f: Fields, default: int) -> int:
    """Return the longest row that a configuration names."""
    return f.integer("max_position_embeddings", default)


def write_decoder(model: ModelConfig, activation: str = "hidden_act") -> dict[str, Any]:
    """Return their fields of what `read_decoder` reads."""
    return {
        "vocab_size": model.vocab_size, "num_hidden_layers": model.num_layers, "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size, "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.kv_heads, "head_dim": model.head_size,
        activation: spelled(model.activation, GATED), "rms_norm_eps": model.norm_epsilon,
        "tie_word_embeddings": model.tie_embeddings,
    }  # fmt: skip


def one_window(f: Fields, num_layers: int, window: int | None) -> dict[str, Any]:
    """Return the pattern of a model whose layers all see the same; a `layer_types` that says otherwise is refused."""
    kind = "full_attention" if window is None else "sliding_attention"
    types = f.items("layer_types", str)
    if types is not None and types != [kind] * num_layers:
        raise f.fault(
            "layer_types", types, f"is not supported here: with this sliding_window all {num_layers} layers are {kind}"
        )
    return {"attention_pattern": (ATTENTION[kind],), "sliding_window": window or 0}


def windows_by_layer(f: Fields, num_layers: int, window: int | None, usual: Sequence[str]) -> dict[str, Any]:
    """Return the pattern of a model whose layers differ, as `layer_types` says or as is `usual`."""
    types = f.items("layer_types", str, num_layers) or list(usual)
    unknown = [kind for kind in types if kind not in ATTENTION]
    if unknown:
        raise f.fault("layer_types", unknown[0], f"is not supported; supported are {', '.join(ATTENTION)}")
    if "sliding_attention" in types and window is None:
        raise f.fault("layer_types", types, "has sliding layers, but no sliding_window is in force")
    pattern = shortest_period([ATTENTION[kind] for kind in types])
    return {"attention_pattern": pattern, "sliding_window": window if "sliding" in pattern else 0}


def shortest_period(kinds: Sequence[str]) -> tuple[str, ...]:
    """Return the shortest pattern that, repeated, gives these layers: a model scans over it."""
    fits = lambda n: all(kind == kinds[i % n] for i, kind in enumerate(kinds))  # noqa: E731
    # Longer patterns than these are not worth a search that grows with the square of the layers.
    n = next((n for n in range(1, min(len(kinds), 64) + 1) if fits(n)), len(kinds))
    return tuple(kinds[:n])


def their_layer_types(model: ModelConfig) -> list[str]:
    """Return `layer_types`."""
    theirs = {ours: name for name, ours in ATTENTION.items()}
    return [theirs[model.attention_kind(layer)] for layer in range(model.num_layers)]


def norm(ours: str, theirs: str) -> tuple[Entry, ...]:
    """Return the entries of a norm over the model's width."""
    return Entry(f"{ours}.scale", f"{theirs}.weight", "d -> d"), Entry(f"{ours}.bias", f"{theirs}.bias", "d -> d")


def attention(model: ModelConfig, block: str = "model.layers.{layer}.self_attn.") -> tuple[Entry, ...]:
    """Return the entries of an attention with a matrix each, and of norms of queries and keys."""
    entries = []
    for x in "qkv":
        entries.append(Entry(f"blocks.attention.{x}", f"{block}{x}_proj.weight", "dnh -> (nh)d"))
        entries.append(Entry(f"blocks.attention.{x}_bias", f"{block}{x}_proj.bias", "nh -> (nh)"))
    entries.append(Entry("blocks.attention.o", f"{block}o_proj.weight", "nhd -> d(nh)"))
    entries.append(Entry("blocks.attention.o_bias", f"{block}o_proj.bias", "d -> d"))
    shape = "nh -> (nh)" if model.qk_norm == "all" else "h -> h"
    entries += [Entry(f"blocks.attention.{x}_norm.scale", f"{block}{x}_norm.weight", shape) for x in "qk"]
    return tuple(entries)


def mlp(block: str = "model.layers.{layer}.mlp.") -> tuple[Entry, ...]:
    """Return the entries of a gated feed-forward sub-layer."""
    entries = []
    for x, formula in (("gate", "df -> fd"), ("up", "df -> fd"), ("down", "fd -> df")):
        entries.append(Entry(f"blocks.mlp.{x}", f"{block}{x}_proj.weight", formula))
        entries.append(Entry(f"blocks.mlp.{x}_bias", f"{block}{x}_proj.bias", "f -> f"))
    return tuple(entries)


def ends(
    model: ModelConfig, embed: str = "model.embed_tokens.weight", last_norm: str = "model.norm", head: str = "lm_head.weight"
) -> tuple[Entry, ...]:
    """Return the entries outside of layers. A tied model may be stored under the head's name alone."""
    other = (Entry("embed", head, "vd -> vd"),) if model.tie_embeddings else ()
    return Entry("embed", embed, "vd -> vd"), *other, Entry("head", head, "vd -> vd"), *norm("final_norm", last_norm)


def layer_norms(names: Mapping[str, str]) -> tuple[Entry, ...]:
    """Return the entries of a block's norms, our name -> theirs."""
    return tuple(entry for ours, theirs in names.items() for entry in norm(f"blocks.{ours}", "model.layers.{layer}." + theirs))
