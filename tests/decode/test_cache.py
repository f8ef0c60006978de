"""A cache gives at every position what the full forward pass gives, however the tokens come."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import draw, tiny

from jaxlm.decode import loop
from jaxlm.decode.cache import empty_cache, enlarge, forget, reorder
from jaxlm.decode.forward import extend, prefill
from jaxlm.decode.generate import Request, batch_of
from jaxlm.decode.loop import begin
from jaxlm.decode.weights import prepare
from jaxlm.layout import Layout, make_mesh
from jaxlm.model.rope_config import RopeScaling
from jaxlm.ops.masks import Tokens
from jaxlm.run.score import row_logits

LENGTH = 20
MODELS = {
    "ring smaller than the prompt": {
        "num_kv_heads": 2, "attention_pattern": ("sliding", "global"), "sliding_window": 5, "num_layers": 3,
    },
    "rings alone, their own base": {
        "attention_pattern": ("sliding",), "sliding_window": 8, "sliding_rope_theta": 100.0, "qk_norm": "head",
    },
    "learned positions, soft-caps": {"positions": "learned", "attention_softcap": 2.0, "logit_softcap": 4.0},
}  # fmt: skip


def unequal():
    """Return tokens [2, 23] whose second row begins 3 later, their positions and their segments."""
    tokens = np.random.default_rng(0).integers(3, 64, (2, LENGTH)).astype(np.int32)
    place = np.arange(LENGTH + 3)[None] - np.array([[0], [3]])
    real = (place >= 0) & (place < LENGTH)
    shifted = np.where(real, np.take_along_axis(tokens, np.clip(place, 0, LENGTH - 1), 1), 0).astype(np.int32)
    return tokens, shifted, Tokens(np.maximum(place, 0).astype(np.int32), real.astype(np.int32))


def padded(x, here, more):
    return np.pad(x[:, here], ((0, 0), (0, more)))


def run_through(weights, config, layout, sizes, *, begin_empty):
    """Yield (tokens so far, logits) after each chunk of these sizes; longer ones come with three columns of padding."""
    _, tokens, at = unequal()
    cache, done = empty_cache(config, layout, 2, 32), 0
    for size in sizes:
        here, more = slice(done, done + size), 3 if size > 1 else 0
        rows, where = padded(tokens, here, more), jax.tree.map(lambda x, h=here, m=more: padded(x, h, m), at)
        if done == 0 and not begin_empty:
            logits, cache = prefill(weights, rows, where, np.int32(size), config, layout, 32)
        else:
            logits, cache = extend(weights, rows, where, np.int32(size), cache, config, layout)
        done += size
        yield done, np.asarray(logits)


@pytest.mark.parametrize("name", MODELS)
def test_chunks_and_single_tokens_equal_the_full_forward(name):
    config = tiny(**MODELS[name])
    params = draw(config)
    expected = np.asarray(row_logits(params, unequal()[0], config, Layout()))
    weights, compared = prepare(params, config, Layout()), 0
    for begin_empty in (False, True):
        for done, logits in run_through(weights, config, Layout(), (6, 6, 1, 1, 6, 1, 1), begin_empty=begin_empty):
            for row, last in enumerate((done - 1, done - 4)):
                if 0 <= last < LENGTH:
                    np.testing.assert_allclose(logits[row], expected[row, last], atol=2e-5)
                    compared += 1
    assert compared == 24


def test_a_mesh_gives_the_same():
    layout, shape = Layout(), {"data": 2, "model": 2, "context": 2}
    config = tiny(num_kv_heads=4, attention_pattern=("sliding", "global"), sliding_window=5)
    weights = prepare(draw(config), config, Layout())
    alone = [logits for _, logits in run_through(weights, config, Layout(), (6, 6, 1), begin_empty=False)]
    with jax.set_mesh(make_mesh(shape)):
        weights = prepare(draw(config, layout), config, layout)
        for index, (_, logits) in enumerate(run_through(weights, config, layout, (6, 6, 1), begin_empty=False)):
            np.testing.assert_allclose(logits, alone[index], atol=2e-5)


def test_frequencies_that_grow_with_the_row_are_those_of_its_present_length():
    # One layer: in deeper ones, what a token made of those before it is not computed anew when frequencies change.
    config = tiny(num_layers=1, rope_scaling=RopeScaling(kind="dynamic", factor=4.0, original_length=6))
    params = draw(config, spread=0.4)
    weights, tokens, changed = prepare(params, config, Layout()), unequal()[0], 0.0
    expected = {}
    for length in (5, 8, 9, 14, 15):
        expected[length] = np.asarray(row_logits(params, tokens[:, :length], config, Layout()))[:, -1]
    cache, done = None, 0
    for size in (5, 3, 1, 5, 1):
        here = slice(done, done + size)
        where = Tokens(np.tile(np.arange(done, done + size, dtype=np.int32), (2, 1)), np.ones((2, size), np.int32))
        if cache is None:
            logits, cache = prefill(weights, tokens[:, here], where, np.int32(size), config, Layout(), 32)
        else:
            logits, cache = extend(weights, tokens[:, here], where, np.int32(size), cache, config, Layout())
        done += size
        np.testing.assert_allclose(logits, expected[done], atol=2e-5)
    fixed = tiny(num_layers=1)
    changed = np.abs(np.asarray(row_logits(params, tokens[:, :15], fixed, Layout()))[:, -1] - expected[15]).max()
    assert changed > 1e-2


def test_forgetting_enlarging_and_reordering():
    config = tiny(num_kv_heads=4)
    weights, (tokens, _, _) = prepare(draw(config), config, Layout()), unequal()

    def at(start, stop):
        return Tokens(np.tile(np.arange(start, stop, dtype=np.int32), (2, 1)), np.ones((2, stop - start), np.int32))

    _, cache = prefill(weights, tokens[:, :6], at(0, 6), np.int32(6), config, Layout(), 8)
    after, _ = extend(weights, tokens[:, 6:7], at(6, 7), np.int32(1), jax.tree.map(jnp.copy, cache), config, Layout())
    # Four wrong tokens more, in a larger cache, forgotten again.
    cache = enlarge(cache, config, 16)
    _, cache = extend(weights, tokens[:, 10:14], at(6, 10), np.int32(4), cache, config, Layout())
    cache = reorder(forget(cache, np.int32(6)), np.array([1, 0], np.int32))
    again, cache = extend(weights, tokens[::-1, 6:7], at(6, 7), np.int32(1), cache, config, Layout())
    np.testing.assert_allclose(again[::-1], after, atol=1e-6)
    assert int(cache.used) == 7


def test_the_loop_copies_no_cache():
    config = tiny(num_layers=2, attention_pattern=("sliding", "global"), sliding_window=8, num_kv_heads=2)
    weights = prepare(draw(config), config, Layout())
    cache = empty_cache(config, Layout(batch=None), 2, 48)
    state = begin(np.zeros((2, 64), np.float32), cache, np.ones(2, np.int32), 8)
    batch = batch_of([Request(prompt=[5]), Request(prompt=[6])], (), config)
    text = loop.decode.lower(weights, batch, state, np.int32(4), config, Layout(batch=None)).compile().as_text()
    assert "f32[2,2,48,4]" in text and "f32[2,2,8,4]" in text
    assert not re.findall(r"f32\[2,2,(?:48|8),4\]\S* copy\(", text)
