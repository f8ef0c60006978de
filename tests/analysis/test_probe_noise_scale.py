"""Gradient noise where it is known: none in equal rows, that of a normal of known covariance, that of a model by hand."""

import functools
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from mixtures import draw, sparse
from models import batch_of, placed, tiny

from jaxlm.analysis.measure import NotSuited
from jaxlm.analysis.probes.noise_scale import NoiseScaleConfig, Norms, gradient_norms, noise_scale, probe
from jaxlm.analysis.view import View
from jaxlm.data.packing import Batch
from jaxlm.layout import Layout
from jaxlm.objective import language_model
from jaxlm.param import named_leaves


def norms_of(gradients):
    """Return the norms of gradients [n, size], as one group."""
    mean = gradients.mean(axis=0)
    return Norms(np.array([mean @ mean]), np.sum(gradients**2, axis=1)[None], (gradients @ mean)[None])


def test_gradients_of_a_known_normal_have_its_noise_scale():
    rng, true = np.random.default_rng(0), np.full(40, 0.3)
    spread = np.linspace(0.5, 1.5, 40)
    expected = np.sum(spread**2) / np.sum(true**2)
    drawn = [noise_scale(norms_of(true + spread * rng.standard_normal((64, 40)))) for _ in range(200)]
    assert np.mean([found.noise for found in drawn]) == pytest.approx(np.sum(spread**2), rel=0.02)
    assert np.mean([found.signal for found in drawn]) == pytest.approx(np.sum(true**2), rel=0.03)
    assert np.median([found.scale for found in drawn]) == pytest.approx(expected, rel=0.06)
    within = np.mean([found.low <= expected <= found.high for found in drawn])
    assert 0.88 <= within < 1  # of 200, and an interval without an end would hold all


def test_routers_have_no_part_and_pairs_no_noise():
    config, rows = sparse(load_balancing_loss=5.0, router_z_loss=5.0), batch_of(rows=3)
    plain = sparse(load_balancing_loss=0.0, router_z_loss=0.0)
    params = draw(config)
    found, without = (gradient_norms(View.of({0: params}, each, rows), rows)[1] for each in (config, plain))
    np.testing.assert_array_equal(found.mean, without.mean)
    said = probe(View.of({0: params}, config, rows), NoiseScaleConfig())["noise_scale"].about
    assert said.endswith("; without the routers' losses")
    labels = SimpleNamespace(data=SimpleNamespace(form="labels"))
    with pytest.raises(NotSuited, match="rows of labels"):
        probe(View.of({0: params}, config, rows, experiment=labels), NoiseScaleConfig())
    own = SimpleNamespace(data=SimpleNamespace(form="text"), objective="mine.py:loss")
    with pytest.raises(NotSuited, match="objective = 'mine.py:loss'"):
        probe(View.of({0: params}, config, rows, experiment=own), NoiseScaleConfig())


def test_noise_alone_has_no_scale():
    rng = np.random.default_rng(1)
    drawn = [noise_scale(norms_of(rng.standard_normal((8, 100)))) for _ in range(50)]
    assert np.mean([np.isnan(found.scale[0]) for found in drawn]) > 0.3
    assert np.mean([np.isinf(found.high[0]) for found in drawn]) > 0.9


def test_equal_rows_have_no_noise():
    config, rows = tiny(num_layers=1), batch_of(rows=1)
    same = Batch(*(np.repeat(x, 4, axis=0) for x in rows))
    found = probe(View.of({0: draw(config)}, config, same), NoiseScaleConfig())
    assert found["noise_scale"].values == found["low"].values == found["high"].values == 0
    assert np.all(found["scale_by_weight"].values == 0)
    assert found["signal"].values > 0


def test_norms_are_those_of_the_rows_gradients():
    config, rows = tiny(num_layers=1), batch_of(rows=3, length=16)
    rows.weights[0, :8] = 0  # rows need not have as many targets
    params = draw(config)
    names, norms = gradient_norms(View.of({0: params}, config, rows), rows)
    whole = jax.jit(jax.grad(functools.partial(_mean, config=config)))(params, placed(rows))
    expected = {name: float(np.sum(np.square(g))) for name, g in named_leaves(whole).items()}
    assert dict(zip(names, norms.mean, strict=True)) == pytest.approx(expected, rel=1e-3)
    np.testing.assert_allclose(norms.along.mean(axis=1), norms.mean, rtol=1e-4)
    found = probe(View.of({0: params}, config, rows), NoiseScaleConfig())
    n, single, mean = 3, norms.each.sum(axis=0).mean(), norms.mean.sum()
    assert found["noise"].values == pytest.approx((single - mean) / (1 - 1 / n))
    assert found["signal"].values == pytest.approx((n * mean - single) / (n - 1), abs=1e-6)
    assert "attention.q" in found["scale_by_weight"].labels["weight"]


def _mean(params, batch, config):
    total, sums = language_model.loss(params, batch, config, Layout())
    return total / sums.tokens


def test_two_rows_are_too_few():
    config = tiny(num_layers=1)
    with pytest.raises(NotSuited, match="three rows"):
        probe(View.of({0: draw(config)}, config, batch_of(rows=2)), NoiseScaleConfig())
