"""Memorisation where it was planted: a row that a model was fitted to, and models that know nothing."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mixtures import draw
from models import batch_of, placed, tiny

from jaxlm.analysis.interventions import batch_of as rows_of
from jaxlm.analysis.measure import NotSuited
from jaxlm.analysis.probes.memorization import MemorizationConfig, completed, exposure, passages_of, probe
from jaxlm.analysis.view import View
from jaxlm.data.byte_tokenizer import BYTE_VOCAB_SIZE, ByteTokenizer
from jaxlm.errors import DataError
from jaxlm.layout import Layout, make_mesh
from jaxlm.objective import language_model

CONFIG = tiny(num_layers=1, vocab_size=BYTE_VOCAB_SIZE, attention_kernel="plain")
TOKENIZER = ByteTokenizer()
SECRET, OTHER = "the key is 4711", "a box of 29 nails"


@pytest.fixture(scope="module")
def fitted():
    """Parameters after a few steps on one secret alone, which comes again and again in a row."""
    ids = [1, *TOKENIZER.encode(SECRET)]
    row = np.array([ids], np.int32)
    batch = rows_of(row[:, :-1])._replace(targets=row[:, 1:], weights=np.ones((1, len(ids) - 1), np.float32))
    optimizer, params = optax.adam(1e-2), draw(CONFIG)

    @jax.jit
    def fit(params, batch):
        def step(carry, _):
            params, state = carry
            gradient = jax.grad(lambda p: language_model.loss(p, batch, CONFIG, Layout())[0])(params)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), length=60)[0][0]

    with jax.set_mesh(make_mesh({}, jax.devices()[:1])):
        return fit(params, placed(batch))


def test_a_planted_secret_is_completed_and_another_is_not(fitted, tmp_path):
    path = tmp_path / "planted.jsonl"
    lines = [
        {"prompt": "the key is ", "answer": "4711", "candidates": ["4712", "0815", "9999"]},
        {"prompt": "a box of ", "answer": "29 nails"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    view = View.of({0: fitted}, CONFIG, batch_of(vocab=20), tokenizer=TOKENIZER)
    found = probe(view, MemorizationConfig(texts=str(path)))
    assert found["memorised_by_text"].values.tolist() == [1, 0]
    assert found["planted_memorised"].values == 0.5
    assert found["exposure_by_text"].values[0] == 2  # first of four
    assert np.isnan(found["exposure_by_text"].values[1])
    assert found["log_prob_by_text"].values[0] > -0.3 > -2 > found["log_prob_by_text"].values[1]


def test_rows_trained_on_stand_apart_from_others(fitted):
    train, validation = (rows_of(np.array([[1, *TOKENIZER.encode(text)][:16]])) for text in (SECRET, OTHER))
    view = View.of({0: fitted}, CONFIG, validation, training=train)
    found = probe(view, MemorizationConfig(prefix=4, suffix=12))
    assert found["memorised"].values.tolist() == [1, 0]
    assert found["gap"].values == pytest.approx(found["log_prob"].values[0] - found["log_prob"].values[1])
    assert found["gap"].values > 2
    with pytest.raises(NotSuited, match="has 40 tokens in a row"):
        probe(view, MemorizationConfig(prefix=20, suffix=20))
    with pytest.raises(NotSuited):
        probe(View.of({0: fitted}, CONFIG, validation), MemorizationConfig())


def test_a_model_that_knows_nothing_gives_each_token_its_share():
    nothing = jax.tree.map(jnp.zeros_like, draw(CONFIG))
    found = completed(View.of({0: nothing}, CONFIG, batch_of()), [([1, 5], [7, 8, 9]), ([1], [4])])
    np.testing.assert_allclose(found.log_prob, -np.log(BYTE_VOCAB_SIZE) * np.array([3, 1]), rtol=1e-5)
    assert found.per_token == pytest.approx(-np.log(BYTE_VOCAB_SIZE), rel=1e-5)
    assert not found.exact.any()


def test_exposure_is_by_rank():
    assert exposure(-1.0, [-2.0, -3.0, -4.0]) == 2
    assert exposure(-5.0, [-2.0, -3.0, -4.0]) == 0
    assert exposure(-1.0, [-1.0]) == 0  # not told apart


def test_passages_lie_within_documents():
    rows = batch_of(rows=1, length=12, documents=1)  # the last tokens are padding
    assert len(passages_of(rows, 2, 3, 9)) == 2
    segments = rows.segments.copy()
    segments[0, 7:] = 2
    found = passages_of(rows._replace(segments=segments), 2, 3, 9)
    assert found == [(rows.tokens[0, :2].tolist(), rows.tokens[0, 2:5].tolist())]


def test_faults_of_a_file_name_it(tmp_path):
    path = tmp_path / "planted.jsonl"
    path.write_text('{"prompt": "a", "answer": "b", "candidates": "c"}')
    view = View.of({0: None}, CONFIG, batch_of(), tokenizer=TOKENIZER)
    with pytest.raises(DataError, match='"candidates" must be a list of texts'):
        probe(view, MemorizationConfig(texts=str(path)))
    path.write_text("not json")
    with pytest.raises(DataError, match=r"planted\.jsonl:1 is not JSON"):
        probe(view, MemorizationConfig(texts=str(path)))
