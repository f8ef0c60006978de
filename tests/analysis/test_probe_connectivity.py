"""Paths and averages of weights where the loss is known: of a quadratic, and of a model and its negative."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixtures import draw
from models import VOCAB, batch_of, tiny

from jaxlm.analysis.averages import along, begun, joined_by, mean_of
from jaxlm.analysis.probes import connectivity
from jaxlm.analysis.probes.connectivity import ConnectivityConfig, probe
from jaxlm.analysis.view import View
from jaxlm.errors import CheckpointError, ConfigError


def test_a_quadratic_has_no_barrier_and_two_wells_have_a_known_one():
    start, end = {"w": jnp.array([-1.0, 0.0])}, {"w": jnp.array([1.0, 0.0])}
    bowl = along(lambda p: float(jnp.sum((p["w"] - 3) ** 2)), start, end, 5)
    np.testing.assert_allclose(bowl.losses, [25, 21.25, 18, 15.25, 13])
    assert bowl.barrier == 0
    wells = along(lambda p: float((p["w"][0] ** 2 - 1) ** 2), start, end, 5)
    assert wells.barrier == pytest.approx(1)
    assert wells.parts.tolist() == [0, 0.25, 0.5, 0.75, 1]


def test_averages_are_what_they_say():
    trees = [{"w": jnp.float32(value)} for value in (1.0, 2.0, 6.0, 7.0)]
    running = begun(trees[0], (0.5,))
    for tree in trees[1:]:
        running = joined_by(running, tree, 2)
    assert float(running.mean["w"]) == pytest.approx(4)
    assert float(running.decayed[0.5]["w"]) == pytest.approx(0.125 * 1 + 0.125 * 2 + 0.25 * 6 + 0.5 * 7)
    assert [float(tree["w"]) for tree in running.latest] == [6, 7]
    assert float(mean_of(running.latest)["w"]) == pytest.approx(6.5)


def test_a_model_and_its_negative_average_to_one_that_knows_nothing():
    config = tiny()
    params = draw(config)
    view = View.of({0: jax.tree.map(jnp.negative, params), 1: params}, config, batch_of())
    settings = ConnectivityConfig(points=3, decays=(0.5,), latest=(1, 2))
    found = probe(view, settings)
    averages = dict(zip(found["average_loss"].labels["average"], found["average_loss"].values, strict=True))
    assert averages["uniform"] == pytest.approx(np.log(VOCAB), rel=1e-6)
    assert averages["last 2"] == averages["exponential 0.5"] == averages["uniform"]
    assert averages["last 1"] == averages["own"]
    assert averages["own"] != pytest.approx(np.log(VOCAB), rel=1e-2)
    assert dict(zip(found["average_of"].labels["average"], found["average_of"].values.tolist(), strict=True)) == {
        "own": 1, "uniform": 2, "exponential 0.5": 2, "last 1": 1, "last 2": 2,
    }  # fmt: skip
    assert found["barrier_to_last"].values == 0
    assert np.ptp(found["path_to_last"].values) == 0  # the last one is this one
    path = probe(view.first, settings)["path_to_last"].values
    assert path[1] == pytest.approx(np.log(VOCAB), rel=1e-6)
    assert path[2] == averages["own"]


def test_another_run_must_have_a_checkpoint_of_this_model(monkeypatch, tmp_path):
    config = tiny(num_layers=1)
    view = View.of({0: draw(config)}, config, batch_of(rows=2))
    with pytest.raises(CheckpointError, match="no checkpoint"):
        connectivity.other_params(tmp_path, view)
    monkeypatch.setattr(connectivity, "saved_steps", lambda saves: [3])
    monkeypatch.setattr(connectivity, "described", lambda *_: (None, dataclasses.replace(config, intermediate_size=40)))
    with pytest.raises(ConfigError, match=r"its blocks\.0\.mlp\.gate is \(1, 32, 40\), here \(1, 32, 48\)"):
        connectivity.other_params(tmp_path, view)
