"""Continuations: of the model that the full forward pass is, whatever else is in the batch, ended where they should be."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from families import opened, placed
from models import draw, tiny

from jaxlm.data.byte_tokenizer import ByteTokenizer
from jaxlm.decode import generate as module
from jaxlm.decode.beam import Beams, beam_search
from jaxlm.decode.generate import Completion, Request, best, generate, generate_text, stream
from jaxlm.decode.loop import decode
from jaxlm.decode.sampling import Sampling
from jaxlm.decode.text import TextStream
from jaxlm.decode.weights import prepare
from jaxlm.errors import ConfigError, DataError
from jaxlm.layout import Layout, make_mesh
from jaxlm.model.rope_config import RopeScaling
from jaxlm.run.score import row_logits, token_log_probs

STORED = json.loads((Path(__file__).parents[1] / "reference" / "generation.json").read_text())
PROMPTS = [[5, 9, 11], [7, 8, 9, 10, 11, 12, 13], [4]]
WHOLE = Layout(batch=None)


def requests(sampling=Sampling(), seed=3, prompts=PROMPTS):
    return [Request(prompt=prompt, sampling=sampling, seed=seed) for prompt in prompts]


@pytest.fixture(scope="module")
def model():
    config = tiny(num_kv_heads=4, attention_pattern=("sliding", "global"), sliding_window=6)
    with jax.set_mesh(make_mesh({}, jax.devices()[:1])):
        return config, prepare(draw(config), config, WHOLE), draw(config)


def test_greedy_tokens_and_log_probs_are_those_of_the_full_forward(model):
    config, weights, params = model
    made = generate(weights, config, WHOLE, requests(Sampling(temperature=0.0)), 6)
    rows = np.zeros((3, 16), np.int32)
    for row, (prompt, completion) in enumerate(zip(PROMPTS, made, strict=True)):
        rows[row, : len(prompt) + 6] = [*prompt, *completion.tokens]
    logits = np.asarray(row_logits(params, rows, config, WHOLE))
    log_probs = token_log_probs(logits[:, :-1], rows[:, 1:])
    for row, (prompt, completion) in enumerate(zip(PROMPTS, made, strict=True)):
        here = slice(len(prompt) - 1, len(prompt) + 5)
        assert logits[row, here].argmax(axis=-1).tolist() == completion.tokens
        np.testing.assert_allclose(completion.log_probs, log_probs[row, here], atol=1e-5)
        assert completion.finish == "length" and completion.text is None


@pytest.mark.parametrize("case", STORED["greedy"], ids=lambda case: f"penalty {case['repetition_penalty']}")
def test_greedy_tokens_are_those_of_transformers(case):
    config, _, table, tensors = opened("llama")
    sampling = Sampling(temperature=0.0, repetition_penalty=case["repetition_penalty"])
    made = generate(placed(config, table, tensors), config, WHOLE, requests(sampling, prompts=STORED["prompts"]), 12)
    assert [completion.tokens for completion in made] == case["found"]


def test_neither_place_nor_company_nor_stretches_change_a_text(model, monkeypatch):
    config, weights, _ = model
    sampling = Sampling(top_p=0.9, frequency_penalty=0.3)
    together = [completion.tokens for completion in generate(weights, config, WHOLE, requests(sampling), 12)]
    reverse = generate(weights, config, WHOLE, requests(sampling)[::-1], 12)
    assert [completion.tokens for completion in reverse[::-1]] == together
    monkeypatch.setattr(module, "LONGEST_STRETCH", 1)
    alone = generate(weights, config, WHOLE, requests(sampling)[1:2], 12)
    assert alone[0].tokens == together[1]
    other = generate(weights, config, WHOLE, [Request(prompt=PROMPTS[1], sampling=sampling, seed=3, sample=1)], 12)
    assert other[0].tokens != together[1]


def test_the_same_text_on_a_mesh(model):
    config, weights, _ = model
    expected = [completion.tokens for completion in generate(weights, config, WHOLE, requests(Sampling(top_k=9)), 5)]
    layout = Layout(kv_heads=None, batch=None)
    with jax.set_mesh(make_mesh({"data": 2, "model": 4})):
        made = generate(draw(config, layout), config, layout, requests(Sampling(top_k=9)), 5)
        with pytest.raises(ConfigError, match="3 requests do not divide over 2 parts of the mesh"):
            generate(None, config, Layout(), requests(), 5)
        with pytest.raises(ConfigError, match="1 requests do not divide over 2 parts"):
            beam_search(None, config, Layout(), PROMPTS[:1], 5, Beams())
    assert [completion.tokens for completion in made] == expected


def test_longrope_is_read_anew_where_a_row_crosses_its_original_length():
    scaling = RopeScaling(
        kind="longrope", factor=4.0, original_length=8, short_factor=(1.0, 1.0), long_factor=(2.0, 9.0)
    )  # fmt: skip
    config, prompts = tiny(rope_scaling=scaling), PROMPTS[:2]
    params = draw(config, spread=0.4)
    weights = prepare(params, config, WHOLE)
    made = generate(weights, config, WHOLE, requests(prompts=prompts), 9)
    searched = [found[0][1] for found in beam_search(weights, config, WHOLE, prompts, 9, Beams(count=2))]
    for completions in (made, searched):
        rows = np.zeros((2, 16), np.int32)
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            rows[row, : len(prompt) + 9] = [*prompt, *completion.tokens]
        # As long as a row has at most 8 tokens, the next follows from short factors.
        short, long = (np.asarray(row_logits(params, rows[:, :size], config, WHOLE)) for size in (8, 16))
        assert np.abs(short[:, 7] - long[:, 7]).max() > 0.1
        logits = np.concatenate([short, long[:, 8:]], axis=1)
        log_probs = token_log_probs(logits[:, :-1], rows[:, 1:])
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            here = slice(len(prompt) - 1, len(prompt) + 8)
            np.testing.assert_allclose(completion.log_probs, log_probs[row, here], atol=1e-4)


def test_a_stop_id_ends_a_row_and_no_other(model):
    config, weights, _ = model
    greedy = Sampling(temperature=0.0)
    free = generate(weights, config, WHOLE, requests(greedy), 8)
    stop = free[0].tokens[2]
    ended = generate(weights, config, WHOLE, requests(greedy), 8, stop_ids=[stop])
    for before, after in zip(free, ended, strict=True):
        first = before.tokens.index(stop) if stop in before.tokens else 8
        assert after.tokens == before.tokens[:first]
        assert after.finish == ("stop" if first < 8 else "length")
        assert after.log_probs == pytest.approx(before.log_probs[: first + 1], abs=1e-6)
    patient = Sampling(temperature=0.0, min_tokens=5)
    later = generate(weights, config, WHOLE, requests(patient)[:1], 8, stop_ids=[stop])[0]
    assert len(later.tokens) >= 5 and stop not in later.tokens


class Letters(ByteTokenizer):
    """Bytes of the tiny model's vocabulary as letters, so that any text is printable."""

    vocab_size, stop_ids = 64, ()

    def decode_bytes(self, ids):
        return bytes(65 + i % 26 for i in ids)


def test_stop_strings_cut_the_text_and_streams_never_take_back(model):
    config, weights, _ = model
    free = generate(weights, config, WHOLE, requests(), 20, tokenizer=Letters())
    text = free[0].text
    stop = text[7:10]
    shown, last, programs = [""] * 3, None, decode._cache_size()
    for last in stream(weights, config, WHOLE, requests(), 20, tokenizer=Letters(), stop=(stop, "never there")):
        for row, completion in enumerate(last):
            assert (completion.text or "").startswith(shown[row])
            shown[row] = completion.text or ""
    assert last[0].text == text[: text.index(stop)] and last[0].finish == "stop string"
    assert len(last[0].tokens) == text.index(stop) + 3  # those that spell it are there
    assert last[1].text == free[1].text.split(stop)[0]
    assert decode._cache_size() == programs  # a stop string compiles nothing


def test_text_streams_hold_back_what_may_change():
    stream = TextStream(ByteTokenizer(), ("</end>", "<stop>"))
    seen = []
    for token in ByteTokenizer().encode("é <</end"):
        stream.feed(token)
        seen.append(stream.text)
    assert seen == ["", "é", "é ", "é ", "é <", "é <", "é <", "é <", "é <"]
    stream.feed(ByteTokenizer().encode(">")[0])
    assert stream.stopped and stream.text == "é <"
    half = TextStream(ByteTokenizer(), ("<stop>",))
    for token in ByteTokenizer().encode("a<stö")[:-1]:
        half.feed(token)
    assert half.text == "a"
    half.finish()
    assert half.text == "a<st\ufffd" and not half.stopped


def test_best_of_several():
    completions = [Completion([1, 2], [-1.0, -1.0]), Completion([1], [-1.5]), Completion([1, 2, 3], [-0.5] * 3)]
    assert [completions.index(c) for c in best(completions, 2, "total")] == [1, 2]
    assert [completions.index(c) for c in best(completions, 2, "mean")] == [2, 0]


def test_faults_are_named_before_anything_runs():
    with pytest.raises(ConfigError, match="ask for at most 4"):
        generate(None, tiny(), WHOLE, requests(prompts=[[1] * 60]), 10)
    with pytest.raises(ConfigError, match="a prompt is empty"):
        generate(None, tiny(), WHOLE, requests(prompts=[[]]), 10)
    with pytest.raises(ConfigError, match="knows 0 to 63"):
        generate(None, tiny(), WHOLE, requests(prompts=[[64]]), 10)
    with pytest.raises(ConfigError, match="max_tokens = -1 must be 0 or more"):
        generate(None, tiny(), WHOLE, requests(), -1)
    with pytest.raises(DataError, match="has no tokenizer"):
        generate(None, tiny(), WHOLE, requests(), 10, stop=("x",))
    assert generate(None, tiny(), WHOLE, requests(), 0)[0] == Completion(finish="length")


def test_texts_of_prompts():
    config = tiny(vocab_size=259)
    texts = generate_text(draw(config), config, WHOLE, ByteTokenizer(), ["ab", "", "ab"], 6, Sampling(), seed=1)
    assert len(texts) == 3 and texts[0] != texts[2]
