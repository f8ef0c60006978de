"""Beams find what exhaustive search finds, and take the decisions that transformers takes."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from families import opened, placed
from models import draw, tiny

from jaxlm.decode.beam import Beams, beam_search
from jaxlm.decode.weights import prepare
from jaxlm.errors import ConfigError
from jaxlm.layout import Layout
from jaxlm.run.score import row_logits, token_log_probs

STORED = json.loads((Path(__file__).parents[1] / "reference" / "generation.json").read_text())
WHOLE = Layout(batch=None)
VOCAB, LENGTH, STOP = 5, 4, 2


def enumerated(params, config, prompt):
    """Return {tokens: summed log-probability} of every continuation that ends at STOP or after LENGTH tokens."""
    every = np.array(list(itertools.product(range(VOCAB), repeat=LENGTH)), np.int32)
    rows = np.concatenate([np.tile(np.array(prompt, np.int32), (len(every), 1)), every], axis=1)
    logits = np.asarray(row_logits(params, rows, config, WHOLE))
    log_probs = token_log_probs(logits[:, :-1], rows[:, 1:])[:, len(prompt) - 1 :]
    sums = {}
    for tokens, each in zip(every.tolist(), log_probs, strict=True):
        size = tokens.index(STOP) + 1 if STOP in tokens else LENGTH
        sums[tuple(tokens[:size])] = float(each[:size].sum())
    return sums


def test_wide_beams_find_the_best_of_all_continuations():
    config, prompts = tiny(vocab_size=VOCAB, max_length=16), [[3, 1, 4], [4]]
    params = draw(config, spread=0.3)
    weights, sums = prepare(params, config, WHOLE), [enumerated(params, config, prompt) for prompt in prompts]
    for penalty in (0.0, 1.0, 10.0, -10.0):
        beams = Beams(count=5**LENGTH // 5, length_penalty=penalty, early_stopping="never")
        found = beam_search(weights, config, WHOLE, prompts, LENGTH, beams, stop_ids=[STOP], best=4)
        for of_prompt, every in zip(found, sums, strict=True):
            scored = sorted(((total / len(tokens) ** penalty, tokens) for tokens, total in every.items()), reverse=True)[:4]
            np.testing.assert_allclose([score for score, _ in of_prompt], [score for score, _ in scored], rtol=1e-5)
            for (_, completion), (_, tokens) in zip(of_prompt, scored, strict=True):
                assert completion.tokens == [token for token in tokens if token != STOP]
                assert completion.finish == ("stop" if STOP in tokens else "length")
                assert completion.total == pytest.approx(every[tokens], rel=1e-5)


def test_equal_to_transformers():
    config, _, table, tensors = opened("llama")
    weights = prepare(placed(config, table, tensors), config, WHOLE)
    rules = {True: "full", False: "heuristic", "never": "never"}
    for case in STORED["beams"]:
        given = case["settings"]
        beams = Beams(
            count=given["num_beams"], length_penalty=given["length_penalty"], early_stopping=rules[given["early_stopping"]]
        )
        stops = given["eos_token_id"]
        found = beam_search(weights, config, WHOLE, STORED["prompts"], 8, beams, stop_ids=stops, best=beams.count)
        for of_prompt, (tokens, scores) in zip(found, case["found"], strict=True):
            without_stop = [[token for token in row if token not in stops] for row in tokens]
            assert [completion.tokens for _, completion in of_prompt] == without_stop, given
            np.testing.assert_allclose([score for score, _ in of_prompt], scores, rtol=1e-4, err_msg=str(given))


def test_more_than_the_beams_hold_is_refused():
    with pytest.raises(ConfigError, match="set beams to 3 or more"):
        beam_search(None, tiny(), WHOLE, [[1]], 3, Beams(count=2), best=3)
    with pytest.raises(ConfigError, match="give fewer"):
        beam_search(None, tiny(vocab_size=2), WHOLE, [[1]], 3, Beams(count=2), stop_ids=[0, 1])
    with pytest.raises(ConfigError, match="max_tokens = 0 asks for none"):
        beam_search(None, tiny(), WHOLE, [[1]], 0, Beams(count=2))
    for penalty in (11.0, float("nan")):
        with pytest.raises(ConfigError, match="out of range"):
            Beams(length_penalty=penalty)
