"""An objective of one's own: what restates next-token prediction equals it to the bit."""

import jax
import numpy as np
import pytest
from mixtures import sparse
from models import batch_of, draw, shardings

from jaxlm.errors import ConfigError
from jaxlm.eval.language_model import evaluate
from jaxlm.function_file import settled
from jaxlm.layout import Layout, make_mesh
from jaxlm.objective import language_model, own
from jaxlm.train.step import accumulated_gradients

FILE = """
import jax.numpy as jnp
from jaxlm.model import transformer
from jaxlm.objective import language_model
from jaxlm.ops.cross_entropy import cross_entropy
from jaxlm.ops.masks import Tokens


def loss(params, batch, config, layout, *, z_loss, record, **settings):
    at = Tokens(batch.positions, batch.segments)
    x_BLD, routed = transformer.forward(params, batch.tokens, at, config, layout, **settings)
    total, parts = cross_entropy(x_BLD, transformer.head(params), batch.targets, batch.weights, z_loss=z_loss)
    sums = language_model.Sums(jnp.sum(batch.weights), *parts)
    return language_model.with_routers(total, sums, routed, config, record=record)


def doubled(*args, **settings):
    total, sums = loss(*args, **settings)
    return 2 * total, sums._replace(z=None)


def alone(*args, **settings):
    return loss(*args, **settings)[0]
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("objectives") / "mine.py"
    path.write_text(FILE)
    return path


def test_restated_it_is_next_token_prediction_to_the_bit_also_accumulated_and_on_4_x_2(file):
    config = sparse(capacity_factor=1.0)
    params = jax.tree.map(np.asarray, draw(config))
    batch = jax.tree.map(lambda x: x.reshape(2, 4, -1), batch_of())
    settings = {"z_loss": 1e-3, "remat": "full"}
    with jax.set_mesh(make_mesh({"data": 4, "model": 2}, jax.devices()[:8])):
        there = jax.device_put(params, shardings(config))
        rows = jax.device_put(batch, jax.NamedSharding(jax.sharding.get_mesh(), jax.P(None, *Layout().spec("batch", "length"))))

        def run(loss_of):
            step = jax.jit(lambda p, b: accumulated_gradients(loss_of, p, b, jax.random.key(0), 2))
            return jax.tree.map(np.asarray, step(there, rows))

        ours = run(lambda p, b, key: language_model.loss(p, b, config, Layout(), key=key, **settings))
        mine = run(lambda p, b, key: own.loss(settled(f"{file}:loss"), p, b, config, Layout(), key=key, **settings))
    jax.tree.map(np.testing.assert_array_equal, ours[0], mine[0])
    assert mine[1].language._replace(router=None) == ours[1]._replace(router=None, decisions=None)
    jax.tree.map(np.testing.assert_array_equal, ours[1].router, mine[1].router)
    told = mine[1].metrics()
    assert told["objective"] > told["loss"] == ours[1].metrics()["loss"]  # routers and the log-normaliser are in it


def test_an_evaluation_reports_cross_entropy_and_then_the_objective(file):
    config = sparse(capacity_factor=None)
    params, batch = draw(config), jax.device_put(batch_of())
    plain = jax.jit(lambda p, b: language_model.loss(p, b, config, Layout())[1])
    twice = jax.jit(lambda p, b: own.loss(settled(f"{file}:doubled"), p, b, config, Layout())[1])
    expected, found = (evaluate(sums, params, [(batch, 100)] * 2) for sums in (plain, twice))
    assert {name: found[name] for name in expected} == expected
    balance = expected["router_balance_loss"][0] * config.moe.load_balancing_loss
    assert found["objective"] == pytest.approx(2 * (expected["loss"] + balance), rel=1e-5)
    assert "z" not in twice(params, batch).metrics()


def test_what_is_no_objective_is_refused(file):
    config = sparse()
    with pytest.raises(ConfigError, match=r"mine\.py:alone.* returned \w+: it must return the summed loss"):
        jax.eval_shape(lambda p, b: own.loss(settled(f"{file}:alone"), p, b, config, Layout()), draw(config), batch_of())
