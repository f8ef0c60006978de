"""Which keys a query sees, from explicit positions and segments."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

# A finite stand-in for minus infinity: a query that may see nothing gets a uniform distribution instead of NaN.
MASKED = -1e30


class Tokens(NamedTuple):
    """Where tokens stand: positions [B, L], and segments [B, L] (documents of a packed row; None where there is only one)."""

    positions: Array
    segments: Array | None = None


def visible(query: Tokens, key: Tokens, *, causal: bool, window: int = 0, beyond: int = 0) -> Array:
    """Return bool [B, Lq, Lk]: which keys each query may attend to.

    Both must lie in the same segment; causal queries see positions up to their own; a window counts the query itself, so
    `window` positions at most (0: no limit; without `causal`, that many to either side). `beyond` leaves what such a window
    would not show.
    """
    distance = query.positions[:, :, None] - key.positions[:, None, :]
    seen = distance >= 0 if causal else jnp.ones_like(distance, dtype=bool)
    if window:
        seen &= (distance < window) if causal else (jnp.abs(distance) < window)
    if beyond:
        seen &= (distance >= beyond) if causal else (jnp.abs(distance) >= beyond)
    if query.segments is not None and key.segments is not None:
        seen &= query.segments[:, :, None] == key.segments[:, None, :]
    return seen


class Masks(NamedTuple):
    """Which keys of its segment a query sees: arguments of `visible`."""

    causal: bool
    window: int
    beyond: int

    def seen(self, query: Tokens, key: Tokens) -> Array:
        """Return bool [B, Lq, Lk]."""
        return visible(query, key, causal=self.causal, window=self.window, beyond=self.beyond)
