"""Spectra of matrices whose ranks are known, and the probe on a model in which they were planted."""

import jax
import numpy as np
import pytest
from mixtures import draw, sparse
from models import batch_of, tiny

from jaxlm.analysis.probes.weights import WeightsConfig, matrices, probe
from jaxlm.analysis.spectra import power_iteration, singular_values, spectrum, tail_exponent
from jaxlm.analysis.view import View

RNG = np.random.default_rng(0)


def orthogonal(size):
    return np.linalg.qr(RNG.standard_normal((size, size)))[0]


def test_a_rank_one_matrix_has_ranks_of_one():
    matrix = np.outer(RNG.standard_normal(30), RNG.standard_normal(20))
    found = spectrum(matrix)
    assert found.stable_rank == pytest.approx(1, abs=1e-6)
    assert found.effective_rank == pytest.approx(1, abs=1e-5)
    assert found.frobenius == pytest.approx(np.linalg.norm(matrix))
    assert found.spectral == pytest.approx(np.linalg.norm(matrix, 2))


def test_an_orthogonal_matrix_has_all_ranks():
    found = spectrum(np.stack([3 * orthogonal(16), np.zeros((16, 16))]))
    np.testing.assert_allclose(found.stable_rank, [16, 0])
    np.testing.assert_allclose(found.effective_rank, [16, 0])
    np.testing.assert_allclose(found.spectral, [3, 0])


def test_singular_values_are_those_of_the_decomposition():
    matrix = RNG.standard_normal((7, 12))
    np.testing.assert_allclose(singular_values(matrix), np.linalg.svd(matrix, compute_uv=False)[::-1])


def test_above_the_limit_the_norm_is_estimated_from_below():
    matrix = orthogonal(40) @ np.diag([5.0, 3.0] + [1.0] * 38) @ orthogonal(40)
    found = spectrum(matrix, largest=39)
    assert found.spectral == pytest.approx(5, rel=1e-6)
    assert found.frobenius == pytest.approx(np.sqrt(25 + 9 + 38))
    assert np.isnan(found.effective_rank)
    assert power_iteration(matrix, 3) < 5


def test_the_tail_of_a_power_law_is_found():
    eigenvalues = (1 - RNG.random(4000)) ** (-1 / 1.5)  # density l^-2.5
    assert tail_exponent(np.sqrt(eigenvalues)) == pytest.approx(2.5, abs=0.2)
    assert np.isnan(tail_exponent(np.ones(5)))


def test_updates_are_measured_where_they_were_made():
    config = tiny()
    before = draw(config)
    q = np.asarray(before.blocks[0].attention.q).copy()
    update = np.outer(RNG.standard_normal(32), RNG.standard_normal(32)).reshape(32, 8, 4).astype(np.float32)
    q[1] += update
    attention = before.blocks[0].attention.replace(q=jax.device_put(q, before.blocks[0].attention.q.sharding))
    after = before.replace(blocks=(before.blocks[0].replace(attention=attention),))
    view = View.of({0: before, 5: after}, config, batch_of())
    found = probe(view, WeightsConfig(tail=True))
    row = found["update_stable_rank"].labels["weight"].index("attention.q")
    assert found["update_stable_rank"].values[row] == pytest.approx([0, 1], abs=1e-4)
    assert found["update_effective_rank"].values[row] == pytest.approx([0, 1], abs=1e-2)
    assert found["update_frobenius"].values.sum() == pytest.approx(np.linalg.norm(update), rel=1e-4)
    before_q = np.asarray(before.blocks[0].attention.q)[1]
    relative = np.linalg.norm(update) / np.linalg.norm(before_q)
    assert found["update_since_first_relative"].values[row, 1] == pytest.approx(relative, rel=1e-4)
    assert found["frobenius_of_heads.attention.q"].values[1, 3] == pytest.approx(np.linalg.norm(q[1, :, 3]), rel=1e-5)
    o = np.asarray(after.blocks[0].attention.o)
    assert found["frobenius_of_heads.attention.o"].values[0, 2] == pytest.approx(np.linalg.norm(o[0, 2]), rel=1e-5)
    assert found["frobenius_of_tables"].values == pytest.approx([np.linalg.norm(np.asarray(after.embed))])
    assert not any(name.startswith("update") for name in probe(view.first, WeightsConfig()))


def test_an_update_of_nothing_has_no_share():
    config = tiny(num_layers=1)
    params = draw(config)
    nothing = jax.tree.map(lambda x: 0 * x, params)
    found = probe(View.of({0: nothing, 5: params}, config, batch_of()), WeightsConfig(heads=False))
    assert np.isnan(found["update_relative"].values).all() and np.isnan(found["mean_update_relative"].values)
    assert np.isfinite(found["update_frobenius"].values).all()


def test_layers_and_experts_stand_apart():
    config = sparse(model={"num_layers": 3}, every=2)  # the middle layer is a mixture
    params = draw(config)
    found = probe(View.of({0: params}, config, batch_of()), WeightsConfig())
    norms = found["frobenius"]
    of_experts, of_mlp = (norms.values[norms.labels["weight"].index(name)] for name in ("moe.experts.up", "mlp.up"))
    assert np.isnan(of_experts).tolist() == [True, False, True]
    expected = [np.linalg.norm(w) for w in np.asarray(params.blocks[0].mlp.up)]
    assert of_mlp[[0, 2]] == pytest.approx(expected, rel=1e-5)
    by_expert = found["frobenius_of_experts"]
    up = by_expert.values[by_expert.labels["weight"].index("moe.experts.up"), 0]
    assert up == pytest.approx([np.linalg.norm(w) for w in np.asarray(params.blocks[1].moe.experts.up)[0]], rel=1e-5)
    router = next(each for each in matrices(params, View.of({0: params}, config, batch_of()).spec) if each.name == "moe.router")
    assert router.layer == 1
    assert router.matrix.shape == (32, 4)
