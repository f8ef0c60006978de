"""Routers whose load, specialisation, churn and likeness are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixtures import draw, sparse
from models import batch_of, tiny

from jaxlm.analysis.information import by_chance, entropy, mutual_information, telling
from jaxlm.analysis.measure import NotSuited
from jaxlm.analysis.probes.routers import Choices, RoutersConfig, choices_of, churn, dropped, outputs_of, probe
from jaxlm.analysis.view import View
from jaxlm.data.byte_tokenizer import BYTE_VOCAB_SIZE, ByteTokenizer
from jaxlm.model import layers
from jaxlm.model.moe_config import MoeConfig
from jaxlm.ops import routing

RNG = np.random.default_rng(2)


def replaced(params, **changes):
    block = params.blocks[0]
    return params.replace(blocks=(block.replace(moe=block.moe.replace(**changes)),))


def test_what_one_label_tells_of_another():
    labels = RNG.integers(0, 4, 5000)
    assert mutual_information(labels, 3 - labels) == pytest.approx(entropy(labels))
    assert entropy(labels) == pytest.approx(2, abs=0.01)
    others = RNG.integers(0, 50, 5000)
    plain, corrected = (mutual_information(labels, others, corrected) for corrected in (False, True))
    assert plain == pytest.approx(3 * 49 / (2 * 5000 * np.log(2)), rel=0.3)
    assert abs(corrected) < plain / 3
    assert by_chance(labels, others) == pytest.approx(plain, rel=0.3)
    assert mutual_information(labels, labels % 2) == pytest.approx(1, abs=0.01)


def test_telling_labels_are_frequent_here_and_rare_elsewhere():
    groups = np.array([0] * 10 + [1] * 10)
    labels = np.array([5] * 4 + [9] * 6 + [5] * 4 + [8] * 5 + [7])
    assert telling(labels, groups, 3, 2) == [[9], [8, 7], []]


def test_a_router_that_goes_by_the_token_tells_all_of_it():
    config = sparse(model={"vocab_size": BYTE_VOCAB_SIZE})
    params = draw(config)
    attention = params.blocks[0].attention
    block = params.blocks[0].replace(attention=attention.replace(o=jnp.zeros_like(attention.o)))
    params = params.replace(blocks=(block,))
    rows = batch_of(rows=4, vocab=20)
    found = probe(View.of({0: params, 1: params}, config, rows, tokenizer=ByteTokenizer()), RoutersConfig())
    assert found["token_information"].values == pytest.approx(found["choice_entropy"].values)
    assert found["choice_entropy"].values[0] > 0.5
    assert found["token_information_by_chance"].values[0] < found["choice_entropy"].values[0] - 0.1
    assert found["churn_previous"].values == found["churn_last"].values == [0]
    assert found["load"].values.sum() == pytest.approx(1) and found["mean_churn_last"].values == 0
    assert found["dead_experts"].values == np.sum(found["load"].values == 0)
    assert found["max_load"].values == pytest.approx(4 * found["load"].values.max())
    by_class = found["load_by_class"].values[0]
    seen = [name for name, row in zip(found["load_by_class"].labels["class"], by_class, strict=True) if np.isfinite(row).all()]
    assert seen == ["punctuation", "whitespace"]  # all there is in the first 17 bytes
    assert found["top_tokens"].values.shape == (1, 4, 5)
    assert found["entropy"].values[0] < np.log(4)


def test_equal_experts_are_alike_and_negative_ones_opposite():
    config = sparse()
    params = draw(config)
    experts = params.blocks[0].moe.experts
    experts = jax.tree.map(lambda w: w.at[:, 1].set(w[:, 0]), experts)
    experts = experts.replace(down=experts.down.at[:, 2].set(-experts.down[:, 0]))
    experts = experts.replace(up=experts.up.at[:, 2].set(experts.up[:, 0]), gate=experts.gate.at[:, 2].set(experts.gate[:, 0]))
    found = probe(View.of({0: replaced(params, experts=experts)}, config, batch_of()), RoutersConfig(tokens=40))
    for name in ("weight_cosine", "output_cosine", "output_cka"):
        values = found[name].values[0]
        assert values[0, 1] == pytest.approx(1, abs=1e-6)
        assert abs(values[0, 3]) < 0.9
        np.testing.assert_allclose(values, values.T)
    assert found["output_cosine"].values[0, 0, 2] == pytest.approx(-1)
    assert found["output_cka"].values[0, 0, 2] == pytest.approx(1)


def test_churn_counts_tokens_that_moved():
    config = sparse(experts_per_token=2)
    params, rows = draw(config), batch_of()
    router = params.blocks[0].moe.router
    moved = replaced(params, router=jnp.roll(router, 1, axis=-1))  # every expert is the next one
    views = View.of({0: params, 1: moved}, config, rows)
    now, then = choices_of(views), choices_of(views.previous)
    assert churn(now, then) == [1]
    assert churn(now, now) == [0]
    np.testing.assert_array_equal(now.first, (then.first + 1) % 4)
    np.testing.assert_allclose(now.load, np.roll(then.load, 1))
    assert now.first.shape == (1, np.count_nonzero(rows.segments))


def test_more_than_the_capacity_is_dropped():
    experts = np.zeros((1, 2, 16, 1), np.int32)  # all to one of four
    choices = Choices(np.ones((2, 16), bool), np.zeros((1, 2, 16, 4), np.float32), experts)
    settings = MoeConfig(num_experts=4, capacity_factor=1.0)
    assert dropped(choices, settings) == pytest.approx([1 - 4 / 16])
    experts[0, :, 8:] = 4  # padding takes no place
    assert dropped(choices._replace(experts=experts), settings) == pytest.approx([1 - 4 / 8])
    assert dropped(choices, MoeConfig(num_experts=4, capacity_factor=None)) == [0]
    experts = RNG.integers(0, 4, (1, 2, 16, 2)).astype(np.int32)
    places = routing.capacity(1.0, 2, 16, 4, 4)
    queued = np.asarray(routing.queue_positions(jnp.asarray(experts[0]), "token"))
    settings = MoeConfig(num_experts=4, experts_per_token=2, capacity_factor=1.0, rows_per_group=1)
    found = dropped(choices._replace(experts=experts), settings)
    assert found == pytest.approx([np.mean(queued >= places)]) and found[0] > 0


def test_outputs_are_those_of_the_model():
    config = sparse(model={"biases": ("up", "down")})
    experts = jax.tree.map(lambda w: w[0], draw(config).blocks[0].moe.experts)
    x = RNG.standard_normal((6, 32)).astype(np.float32)
    found = outputs_of(jax.tree.map(np.asarray, experts), x, config)
    one = jax.tree.map(lambda w: w[2], experts)
    hidden = layers.activate("swiglu", x @ one.up + one.up_bias[None], x @ one.gate)
    np.testing.assert_allclose(found[2], hidden @ one.down + one.down_bias[None], rtol=1e-4, atol=1e-5)


def test_expert_choice_leaves_tokens_without_an_expert():
    E = 3
    experts = np.array([[[[E, 1, E], [0, E, 2], [E, E, E]]]])
    logits = np.array([[[[9.0, 1, 9], [1, 9, 2], [1, 2, 3]]]])
    assert Choices(np.ones((1, 3), bool), logits, experts).first.tolist() == [[1, 2, E]]


def test_dense_models_have_no_routers():
    config = tiny()
    with pytest.raises(NotSuited, match="mixture"):
        probe(View.of({0: draw(config)}, config, batch_of()), RoutersConfig())
