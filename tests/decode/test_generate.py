"""Decoding from a cache equals the full forward pass; samplers keep what they should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import draw, tiny

from jaxlm.decode.cache import empty_cache, extend
from jaxlm.decode.generate import Sampling, generate
from jaxlm.decode.sampling import filtered, sample
from jaxlm.errors import ConfigError
from jaxlm.layout import Layout, make_mesh
from jaxlm.ops.attention import Tokens
from jaxlm.run.score import row_logits

MODELS = {
    "grouped-query, sliding pattern": {
        "num_kv_heads": 2,
        "attention_pattern": ("sliding", "global"),
        "sliding_window": 5,
        "num_layers": 3,
    },
    "learned positions, soft-cap": {"positions": "learned", "attention_softcap": 2.0, "logit_softcap": 4.0},
}


@pytest.mark.parametrize("name", MODELS)
def test_chunks_and_single_tokens_equal_the_full_forward(name):
    config = tiny(**MODELS[name])
    params, tokens = draw(config), np.random.default_rng(0).integers(3, 64, (2, 20)).astype(np.int32)
    expected = np.asarray(row_logits(params, tokens, config, Layout()))
    # The second row is shorter, padded on the left by 3.
    pad = np.array([[0], [3]])
    place = np.arange(23)[None] - pad
    shifted = np.where(
        (place >= 0) & (place < 20), np.take_along_axis(np.pad(tokens, ((0, 0), (0, 3))), np.clip(place, 0, 22), 1), 0
    )
    cache = empty_cache(config, Layout(), 2, 32)
    at = 0
    for size in (6, 5, 1, 1, 4, 1, 1, 1):
        here = slice(at, at + size)
        real = (place[:, here] >= 0).astype(np.int32)
        where = Tokens(np.maximum(place[:, here], 0).astype(np.int32), real)
        logits, cache = extend(params, shifted[:, here].astype(np.int32), where, cache, config, Layout())
        at += size
        for row in range(2):
            last = at - 1 - int(pad[row, 0])
            if 0 <= last < 20:
                np.testing.assert_allclose(logits[row], expected[row, last], atol=2e-5)


def test_greedy_text_is_that_of_the_full_forward_for_unequal_prompts():
    config = tiny(num_kv_heads=4, attention_pattern=("sliding", "global"), sliding_window=6)
    params = draw(config)
    prompts = [[5, 9, 11], [7, 8, 9, 10, 11, 12, 13], [4]]
    made = np.stack(
        list(generate(params, config, Layout(batch=None), prompts, 6, Sampling(temperature=0.0), jax.random.key(0))), 1
    )
    for prompt, row in zip(prompts, made, strict=True):
        sequence = list(prompt)
        for token in row:
            padded = np.zeros((1, 16), np.int32)
            padded[0, : len(sequence)] = sequence
            logits = row_logits(params, padded, config, Layout())[0, len(sequence) - 1]
            assert int(np.argmax(logits)) == token
            sequence.append(int(token))


def test_the_same_text_on_a_mesh():
    config = tiny()
    texts = []
    for shape in ({"data": 1, "model": 1}, {"data": 4, "model": 2}):
        with jax.set_mesh(make_mesh(shape, jax.devices()[: shape["data"] * shape["model"]])):
            made = generate(draw(config), config, Layout(batch=None), [[5, 6], [7]], 5, Sampling(top_p=0.9), jax.random.key(3))
            texts.append(np.stack(list(made)))
    np.testing.assert_array_equal(*texts)


def test_a_prompt_that_ends_stays_ended():
    config = tiny()
    params = draw(config)
    free = [int(t[0]) for t in generate(params, config, Layout(), [[5]], 8, Sampling(temperature=0.0), jax.random.key(0))]
    stop = free[2]
    made = [
        int(t[0])
        for t in generate(params, config, Layout(), [[5]], 8, Sampling(temperature=0.0), jax.random.key(0), stop_id=stop)
    ]
    first = free.index(stop)
    assert made == [*free[:first], -1]


def test_too_long_is_refused():
    with pytest.raises(ConfigError, match="ask for at most 4"):
        next(generate(None, tiny(), Layout(), [[1] * 60], 10, Sampling(), jax.random.key(0)))


def kept(logits, top_k=100, top_p=1.0, temperature=1.0):
    out = filtered(jnp.asarray([logits], jnp.float32), jnp.float32(temperature), jnp.int32(top_k), jnp.float32(top_p))
    return np.flatnonzero(np.isfinite(out[0])).tolist()


def test_filters_at_their_boundaries():
    assert kept([1.0, 1.0, 0.0], top_k=1) == [0, 1]  # ties with the k-th are kept
    assert kept([3.0, 2.0, 1.0], top_k=2) == [0, 1]
    probabilities = np.log([0.5, 0.3, 0.2])
    for top_p, count in ((0.0, 1), (0.49, 1), (0.5, 1), (0.79, 2), (0.81, 3), (1.0, 3)):
        assert len(kept(probabilities, top_p=top_p)) == count, top_p
    assert kept(np.log([0.2, 0.5, 0.3]), top_p=0.6) == [1, 2]
    assert kept([5.0, 4.9, 0.0], top_k=2, top_p=0.3) == [0]


def test_samples_follow_the_distribution():
    probabilities = np.array([0.5, 0.25, 0.2, 0.05])
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(probabilities, jnp.float32))[None], (20_000, 4))
    keys = jax.random.split(jax.random.key(0), 20_000)
    controls = jnp.float32(1.0), jnp.int32(4), jnp.float32(1.0)
    counts = np.bincount(sample(logits, keys, *controls), minlength=4)
    assert (
        ((counts - 20_000 * probabilities) ** 2) / (20_000 * probabilities)
    ).sum() < 16.3  # chi-square, 3 degrees, p = 0.001
    assert set(np.asarray(sample(logits[:50], jax.random.split(jax.random.key(1), 50), jnp.float32(0.0), *controls[1:]))) == {0}
