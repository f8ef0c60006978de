"""Self-Extend and ALiBi over a cache: at every position what the full forward pass gives, however the tokens come."""

import dataclasses
import functools
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import batch_of, draw, tiny

from jaxlm.decode import loop
from jaxlm.decode.beam import Beams, beam_search
from jaxlm.decode.cache import empty_cache, enlarge, forget, reorder
from jaxlm.decode.forward import extend, prefill
from jaxlm.decode.generate import Request, generate
from jaxlm.decode.generate import batch_of as asked
from jaxlm.decode.loop import begin
from jaxlm.decode.sampling import Sampling
from jaxlm.decode.weights import prepare
from jaxlm.layout import Layout, make_mesh
from jaxlm.model import transformer
from jaxlm.model.moe_config import MoeConfig
from jaxlm.model.rope_config import SelfExtend
from jaxlm.ops import attention_kernels
from jaxlm.ops.masks import Tokens
from jaxlm.run.score import row_logits, token_log_probs

WHOLE = Layout(batch=None)
ROWS, LENGTH, SLOTS, PROMPT, CHUNK = 3, 32, 40, 16, 8
GROUPED = [(1, 4), (2, 6), (3, 3)]  # group and window; their models have 1, 2 and 1 layers, the last scales its queries


def small(group=1, window=0, scale_base=0.0, **changes):
    """Return a model that reads LENGTH tokens and more; its heads are far from uniform attention."""
    how = SelfExtend(group_size=group, window_size=window, scale_base=scale_base) if window else SelfExtend()
    return tiny(**{"num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "max_length": 48, "self_extend": how} | changes)


@functools.cache
def model(group, window, **changes):
    """Return configuration, parameters and weights for decoding."""
    config = small(group, window, **{"scale_base": 8.0 if group == 3 else 0.0, "num_layers": 2 if group == 2 else 1} | changes)
    params = draw(config)
    return SimpleNamespace(config=config, params=params, weights=prepare(params, config, WHOLE))


@functools.partial(jax.jit, static_argnames="config")
def all_logits(params, tokens, at, config):
    """Return float32 logits [B, L, V] of rows whose tokens stand where `at` says."""
    at = jax.tree.map(lambda x: jax.reshard(x, jax.P(None, None)), at)
    x_BLD, _ = transformer.forward(params, jax.reshard(tokens, jax.P(None, None)), at, config, WHOLE)
    return transformer.unembed(params, x_BLD, config, WHOLE)


def dense(params, tokens, config):
    """Return the logits of whole rows by the reference, which takes one softmax over every logit."""
    return np.asarray(row_logits(params, tokens, dataclasses.replace(config, attention_kernel="plain"), WHOLE))


def shifted(tokens, pads):
    """Return the rows with padding on their left, and where their tokens stand."""
    place = np.arange(tokens.shape[1])[None] - np.asarray(pads)[:, None]
    rows = np.where(place >= 0, np.take_along_axis(tokens, np.maximum(place, 0), 1), 0).astype(np.int32)
    return rows, Tokens(np.maximum(place, 0).astype(np.int32), (place >= 0).astype(np.int32))


def by_parts(model, rows, at, sizes, layout=WHOLE, slots=SLOTS):
    """Yield (tokens so far, logits): a prompt, and chunks or single tokens, in programs of three widths alone."""
    cache, done = None, 0
    for size in sizes:
        width = PROMPT if cache is None else 1 if size == 1 else CHUNK
        tokens, *where = (np.pad(x[:, done : done + size], ((0, 0), (0, width - size))) for x in (rows, *at))
        given = model.weights, tokens, Tokens(*where), np.int32(size)
        if cache is None:
            logits, cache = prefill(*given, model.config, layout, slots)
        else:
            logits, cache = extend(*given, cache, model.config, layout)
        done += size
        yield done, np.asarray(logits)


def compare(found, expected, pads, atol=1e-5):
    """Hold the logits of `by_parts` against those of whole rows."""
    for done, logits in found:
        for row, pad in enumerate(pads):
            np.testing.assert_allclose(logits[row], expected[row, done - 1 - pad], atol=atol)


@pytest.mark.parametrize(("group", "window"), GROUPED)
@settings(max_examples=10)
@given(data=st.data())
def test_dense_two_passes_and_a_cache_agree(group, window, data):
    made, rng = model(group, window), np.random.default_rng(data.draw(st.integers(0, 2**16)))
    tokens = rng.integers(3, 64, (ROWS, LENGTH)).astype(np.int32)
    first = data.draw(st.integers(1, PROMPT))
    pads = data.draw(st.lists(st.integers(0, first - 1), min_size=ROWS, max_size=ROWS))
    sizes, rest = [first], data.draw(st.lists(st.sampled_from((1, 1, 2, 5, CHUNK)), max_size=12))
    for size in rest:
        sizes += [size] if sum(sizes) + size <= LENGTH else []
    expected, (rows, at) = dense(made.params, tokens, made.config), shifted(tokens, pads)
    whole = np.asarray(all_logits(made.params, rows, at, made.config))
    for row, pad in enumerate(pads):
        np.testing.assert_allclose(whole[row, pad:], expected[row, : LENGTH - pad], atol=1e-5)
    compare(by_parts(made, rows, at, sizes), expected, pads)
    if group < 3:
        plain = dense(made.params, tokens, dataclasses.replace(made.config, self_extend=SelfExtend()))
        same = slice(window if group > 1 else None)
        np.testing.assert_allclose(plain[:, same], expected[:, same], atol=1e-5)
        assert group == 1 or np.abs(plain - expected)[:, window + group :].max() > 1e-2


def test_documents_of_a_packed_row_are_as_alone(monkeypatch):
    monkeypatch.setattr(attention_kernels, "QUERY_BLOCK", 8)  # so that rows of 24 have several blocks
    config = small(2, 4, num_layers=1)
    params, batch = draw(config), batch_of(rows=2, length=24)
    packed = np.asarray(all_logits(params, batch.tokens, Tokens(batch.positions, batch.segments), config))
    compared = 0
    for row, number in np.ndindex(2, 3):
        (here,) = np.nonzero(batch.segments[row] == number + 1)
        alone = np.pad(batch.tokens[row, here], (0, 24 - len(here)))[None]
        np.testing.assert_allclose(packed[row, here], dense(params, alone, config)[0, : len(here)], atol=1e-5)
        compared += len(here) > 6
    assert compared > 2


def test_rows_that_fit_the_window_are_read_as_without():
    tokens = np.random.default_rng(0).integers(3, 64, (ROWS, LENGTH)).astype(np.int32)
    rows, at = shifted(tokens, (0, 3, 5))
    extended = model(4, LENGTH)
    plain = SimpleNamespace(weights=extended.weights, config=dataclasses.replace(extended.config, self_extend=SelfExtend()))
    # Room for near keys alone: to the bit. With room for far ones sums are of other widths.
    found = [list(by_parts(each, rows, at, (14, CHUNK, 1, 1), slots=LENGTH)) for each in (extended, plain)]
    for (_, one), (_, other) in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_texts_and_beams_are_those_of_full_forward_passes():
    made, prompts, new = model(2, 6), [[5, 9, 11], [*range(7, 19)]], 14
    greedy = generate(
        made.weights, made.config, WHOLE, [Request(prompt=p, sampling=Sampling(temperature=0.0)) for p in prompts], new
    )
    searched = [found[0][1] for found in beam_search(made.weights, made.config, WHOLE, prompts, new, Beams(count=3))]
    for completions in (greedy, searched):
        rows = np.zeros((ROWS, LENGTH), np.int32)
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            rows[row, : len(prompt) + new] = [*prompt, *completion.tokens]
        logits = dense(made.params, rows, made.config)
        log_probs = token_log_probs(logits[:, :-1], rows[:, 1:])
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            here = slice(len(prompt) - 1, len(prompt) + new - 1)
            np.testing.assert_allclose(completion.log_probs, log_probs[row, here], atol=1e-5)
            if completions is greedy:
                assert logits[row, here].argmax(axis=-1).tolist() == completion.tokens


def test_a_ring_is_forgotten_enlarged_and_reordered_with_the_rest():
    made = model(2, 6)
    tokens = np.random.default_rng(1).integers(3, 64, (ROWS, LENGTH)).astype(np.int32)
    expected = dense(made.params, tokens, made.config)

    def at(start, stop):
        return Tokens(
            *np.stack([np.tile(np.arange(start, stop, dtype=np.int32), (ROWS, 1)), np.ones((ROWS, stop - start), int)])
        )

    _, cache = prefill(made.weights, tokens[:, :4], at(0, 4), np.int32(4), made.config, WHOLE, 6)
    assert cache.near[0].shape[2] == 6
    # Wrong tokens, as many as a larger ring has room for, forgotten again.
    cache = enlarge(cache, made.config, SLOTS)
    assert cache.near[0].shape[2] == 8 and cache.keys[0].shape[2] == SLOTS
    _, cache = extend(made.weights, tokens[:, 9:13], at(4, 8), np.int32(4), cache, made.config, WHOLE)
    cache = reorder(forget(cache, np.int32(4)), np.array([2, 0, 1], np.int32))
    for start in range(4, 12, 4):
        here = slice(start, start + 4)
        logits, cache = extend(
            made.weights, tokens[[2, 0, 1], here], at(start, start + 4), np.int32(4), cache, made.config, WHOLE
        )
        np.testing.assert_allclose(logits, expected[[2, 0, 1], start + 3], atol=1e-5)


@pytest.mark.parametrize("name", ["mixture", "ALiBi"])
def test_other_models_by_parts(name):
    config = small(positions="alibi", num_heads=6, num_kv_heads=3, attention_pattern=("sliding", "global"), sliding_window=5)
    if name == "mixture":
        config = small(2, 4, num_layers=1, moe=MoeConfig(num_experts=4, experts_per_token=2))
    params = draw(config)
    tokens = np.random.default_rng(2).integers(3, 64, (ROWS, LENGTH)).astype(np.int32)
    rows, at = shifted(tokens, (0, 2, 4))
    made, expected = SimpleNamespace(config=config, weights=prepare(params, config, WHOLE)), dense(params, tokens, config)
    compare(by_parts(made, rows, at, (9, *[1] * 6) if name == "mixture" else (9, 4, 1, 1, 8, 1)), expected, (0, 2, 4))


@pytest.mark.parametrize(("positions", "sizes"), [("rope", (9, 8, 1)), ("alibi", (9, 1))])
def test_a_mesh_gives_the_same(positions, sizes):
    tokens = np.random.default_rng(3).integers(3, 64, (2, LENGTH)).astype(np.int32)
    rows, at = shifted(tokens, (0, 3))
    config, layout = small(*((2, 4) if positions == "rope" else ()), num_layers=1, positions=positions), Layout()
    expected = dense(draw(config), tokens, config)
    with jax.set_mesh(make_mesh({"data": 2, "model": 2}, jax.devices()[:4])):
        made = SimpleNamespace(config=config, weights=prepare(draw(config, layout), config, layout))
        compare(by_parts(made, rows, at, sizes, layout), expected, (0, 3))


def test_the_loop_copies_no_cache():
    made = model(2, 6)
    state = begin(np.zeros((2, 64), np.float32), empty_cache(made.config, WHOLE, 2, SLOTS), np.ones(2, np.int32), 8)
    batch = asked([Request(prompt=[5]), Request(prompt=[6])], (), made.config)
    text = loop.decode.lower(made.weights, batch, state, np.int32(4), made.config, WHOLE).compile().as_text()
    assert f"f32[2,2,{SLOTS},8]" in text and "f32[2,2,8,8]" in text
    assert not re.findall(rf"f32\[2,2,(?:{SLOTS}|8),8\]\S* copy\(", text)
