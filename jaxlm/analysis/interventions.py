"""Interventions on activations: patching in what another input gave, adding a direction, and what predictions make of it."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from jaxlm.analysis.activations import placed
from jaxlm.analysis.predictions import logits_of
from jaxlm.analysis.random_text import drawn
from jaxlm.analysis.view import View
from jaxlm.data.packing import Batch
from jaxlm.errors import DataError
from jaxlm.layout import Layout
from jaxlm.model import transformer
from jaxlm.model.config import ModelConfig
from jaxlm.model.edit import unchanged
from jaxlm.ops.masks import Tokens

PATCHED = ("resid", "attn_out", "ffn_out")
_LEAST_EFFECT = 1e-6  # in logits: below it there is nothing to recover


class Pairs(NamedTuple):
    """Clean prompts and corrupted ones that differ in what decides the answer, [N, L] each, int32."""

    clean: np.ndarray
    corrupted: np.ndarray
    lengths: np.ndarray
    """Tokens of each prompt, [N]: what follows is padding."""
    answer: np.ndarray
    """The next token after the clean prompt, [N]."""
    wrong: np.ndarray
    """The token it is held against, [N]."""

    @property
    def groups(self) -> dict[str, np.ndarray]:
        """Return bool [N, L] by name: all tokens; those that differ; the last one; those between that do not differ."""
        place = np.arange(self.clean.shape[1])[None]
        real, last = place < self.lengths[:, None], place == self.lengths[:, None] - 1
        differ = (self.clean != self.corrupted) & real
        first = np.where(differ.any(axis=1), differ.argmax(axis=1), self.lengths)[:, None]
        after = real & ~differ & ~last & (place > first)
        return {"all": real, "changed": differ, "between": after, "last": last}


def pairs_of(prompts: Sequence[tuple[Sequence[int], Sequence[int], int, int]]) -> Pairs:
    """Return rows of (clean, corrupted, answer, wrong), filled up to one length; DataError where two differ in length."""
    for number, (clean, corrupted, _, _) in enumerate(prompts):
        if len(clean) != len(corrupted) or not len(clean):
            raise DataError(
                f"pair {number} has {len(clean)} clean and {len(corrupted)} corrupted tokens: they must be as many, and one or "
                "more, for activations are put in the same places; choose words of equal token counts"
            )
    (clean, lengths), (corrupted, _) = (filled([prompt[which] for prompt in prompts]) for which in (0, 1))
    answers = np.array([prompt[2:] for prompt in prompts], np.int32)
    return Pairs(clean, corrupted, lengths, answers[:, 0], answers[:, 1])


def filled(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return token ids of several texts as rows of one length, int32 [N, L], 0 past a text's end, and their lengths [N]."""
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.zeros((len(rows), int(lengths.max())), np.int32)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = row
    return tokens, lengths


def repetitions(vocabulary: np.ndarray, count: int, length: int, start: Sequence[int] = (), seed: int = 0) -> Pairs:
    """Return random tokens that begin again after `length`, up to before one that is to be copied.

    Corrupted, the first copy has another token there: a model that continues by induction (arXiv:2209.11895) gives that one.
    Both prompts are alike but for a token (symmetric replacement, arXiv:2309.16042).
    """
    rng, prompts = np.random.default_rng(seed), []
    for _ in range(count):
        *said, wrong = drawn(vocabulary, length + 1, rng).tolist()
        place = int(rng.integers(length // 2, length))
        clean = [*start, *said, *said[:place]]
        corrupted = list(clean)
        corrupted[len(start) + place] = wrong
        prompts.append((clean, corrupted, said[place], wrong))
    return pairs_of(prompts)


def batch_of(tokens: np.ndarray, lengths: np.ndarray | None = None) -> Batch:
    """Return rows of token ids [N, L] as a batch, each its own document of `lengths` tokens (None: L), with no targets."""
    place = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    real = place < (tokens.shape[1] if lengths is None else lengths[:, None])
    empty = np.zeros_like(tokens, np.int32)
    return Batch(tokens.astype(np.int32), empty, empty.astype(np.float32), real.astype(np.int32), np.where(real, place, 0))


def patch(which: Array, at: Array, values: Array, where: Array, site: str, layer: Array | int, x: Array) -> Array:
    """Put `values` in the place of x [B, L, D] where `where` [B, L] says so, at site PATCHED[which] of layer `at`.

    `patching` makes an edit of it.
    """
    if site not in PATCHED:
        return x
    values, where = jax.reshard(values, jax.typeof(x).sharding), jax.reshard(where, jax.P(*jax.typeof(x).sharding.spec[:2]))
    here = where & (layer == at) & (which == PATCHED.index(site))
    return jnp.where(here[..., None], values.astype(x.dtype), x)


def add(at: Array, direction: Array, strength: Array, site: str, layer: Array | int, x: Array) -> Array:
    """Add strength x direction [D] to the residual stream after layer `at`; `adding` makes an edit of it."""
    if site != "resid":
        return x
    step = jnp.where(layer == at, strength, 0.0) * direction
    return x + jnp.broadcast_to(step.astype(x.dtype), x.shape, out_sharding=jax.typeof(x).sharding)


class Patched(NamedTuple):
    """What patching does to logit(answer) - logit(wrong), in means over pairs."""

    clean: float
    corrupted: float
    differences: np.ndarray
    """With a patch into the corrupted run, [sites, groups, layers]."""
    error: float
    """Standard error, over pairs, of clean less corrupted; NaN of one pair."""

    @property
    def recovered(self) -> np.ndarray:
        """Return the part of the clean difference that each patch brings back, 0 none and 1 all (arXiv:2309.16042).

        NaN where the corruption changes nothing.
        """
        effect = self.clean - self.corrupted
        if abs(effect) < _LEAST_EFFECT:
            return np.full(self.differences.shape, np.nan)
        return (self.differences - self.corrupted) / effect


def patched(
    view: View, pairs: Pairs, sites: Sequence[str] = PATCHED, groups: Mapping[str, np.ndarray] | None = None
) -> Patched:
    """Return what becomes of the corrupted runs' answers with activations of the clean ones at a site, layer and group.

    `groups` of places are bool [N, L] (None: those of the pairs). One program serves all of them.
    """
    groups = pairs.groups if groups is None else groups
    clean, corrupted = (batch_of(tokens, pairs.lengths) for tokens in (pairs.clean, pairs.corrupted))
    donors = view.activations(*sites, batch=clean)
    nowhere = functools.partial(patching, values=donors[sites[0]][0], where=np.zeros(clean.tokens.shape, bool))
    ask = functools.partial(logit_difference, view, pairs=pairs)
    found = np.zeros((len(sites), len(groups), view.model.num_layers))
    for s, site in enumerate(sites):
        for g, where in enumerate(groups.values()):
            for layer in range(view.model.num_layers):
                edit = patching(site, layer, donors[site][layer], where)
                found[s, g, layer] = ask(batch=corrupted, edit=edit).mean()
    # The ends through the same program, so that nothing but the patch differs.
    ends = [ask(batch=batch, edit=nowhere(sites[0], 0)) for batch in (clean, corrupted)]
    count = len(pairs.lengths)
    error = float(np.std(ends[0] - ends[1], ddof=1) / count**0.5) if count > 1 else float("nan")
    return Patched(*(float(end.mean()) for end in ends), found, error)


def patching(site: str, layer: int, values: np.ndarray, where: np.ndarray) -> Partial:
    """Return the edit that puts `values` [B, L, D] in at the places `where` [B, L] of a site and layer, for `View`."""
    return Partial(patch, *_whole(np.int32(PATCHED.index(site)), np.int32(layer), values, where))


def _whole(*arrays: Any) -> tuple[Array, ...]:
    return jax.device_put(arrays, jax.NamedSharding(jax.sharding.get_mesh(), jax.P()))


def logit_difference(view: View, batch: Batch, pairs: Pairs, edit: Any = unchanged) -> np.ndarray:
    """Return logit(answer) - logit(wrong) after each prompt of `batch`, float32 [N], under an edit."""
    edit = edit if isinstance(edit, Partial) else Partial(edit)
    places = _whole(pairs.lengths - 1, pairs.answer, pairs.wrong)
    return np.asarray(_differences(view.params, placed(batch, view.layout), *places, edit, view.model, view.layout))


@functools.partial(jax.jit, static_argnames=("model", "layout"))
def _differences(
    params: Any, batch: Batch, last: Array, answer: Array, wrong: Array, edit: Any, model: ModelConfig, layout: Layout
) -> Array:
    at = Tokens(batch.positions, batch.segments)
    x_BLD, _ = transformer.forward(params, batch.tokens, at, model, layout, edit=edit)
    x_BD = jnp.take_along_axis(jax.reshard(x_BLD, jax.P()), last[:, None, None], axis=1)[:, 0]
    logits_BV = logits_of(x_BD, jax.reshard(transformer.head(params), jax.P()), model)
    of_answer, of_wrong = (jnp.take_along_axis(logits_BV, ids[:, None], axis=1)[:, 0] for ids in (answer, wrong))
    return of_answer - of_wrong


def direction(view: View, layer: int, toward: Batch, away: Batch, masks: tuple[Any, Any] = (None, None)) -> np.ndarray:
    """Return the mean residual after a layer over `toward` less that over `away`, float32 [D] (arXiv:2308.10248, 2312.06681).

    Means are over all real tokens, or those of the masks, bool [R, L].
    """
    means = []
    for batch, mask in zip((toward, away), masks, strict=True):
        x = view.activations("resid", batch=batch)["resid"][layer]
        real = batch.segments != 0 if mask is None else mask
        if not real.any():
            raise DataError("a direction needs a token on either side: one of the two sets of rows has none")
        means.append(x[real].mean(axis=0, dtype=np.float64))
    return (means[0] - means[1]).astype(np.float32)


def steer(view: View, direction: np.ndarray, layer: int, strengths: Sequence[float], batch: Batch) -> np.ndarray:
    """Return how the log-probability of each target of `batch` changes, in nats, float32 [strengths, R, L].

    strength x `direction` [D] is added to the residual stream after `layer`, at every token. Strength 0 changes nothing.
    """
    losses = [view.losses(edit=adding(layer, direction, strength), batch=batch) for strength in (0.0, *strengths)]
    return np.stack([losses[0] - steered for steered in losses[1:]])


def adding(layer: int, direction: np.ndarray, strength: float) -> Partial:
    """Return the edit that adds strength x `direction` [D] to the residual stream after a layer, at every token, for `View`."""
    return Partial(add, *_whole(np.int32(layer), np.asarray(direction, np.float32), np.float32(strength)))
