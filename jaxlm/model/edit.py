"""Reading and changing activations from outside: one function that every layer calls at named sites."""

from collections.abc import Callable

from jax import Array

# edit(site, layer, x) -> x reads or changes an activation. Sites, in order: embed; then in each layer attn_in, q, k, v,
# heads, attn_out, ffn_in, in a mixture of experts router_logits, experts and gates, then ffn_out, resid; then final.
# `layer` is a traced integer (0 for embed and final).
Edit = Callable[[str, Array | int, Array], Array]


def unchanged(site: str, layer: Array | int, x: Array) -> Array:
    """The edit that edits nothing."""
    return x
