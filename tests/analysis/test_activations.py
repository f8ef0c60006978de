"""Captured activations are those of the model: its own attention comes out of them, and its losses."""

import jax
import numpy as np
import pytest
from mixtures import draw, sparse
from models import batch_of, placed, tiny

from jaxlm.analysis.activations import check_sites
from jaxlm.analysis.measure import NotSuited
from jaxlm.analysis.view import View, _bytes_of
from jaxlm.errors import CheckpointError, ConfigError
from jaxlm.layout import Layout
from jaxlm.model.rope_config import SelfExtend
from jaxlm.objective import language_model

GROUPED = {"num_kv_heads": 2, "num_heads": 4, "attention_softcap": 3.0}
SLIDING = GROUPED | {"num_layers": 3, "attention_pattern": ("global", "sliding"), "sliding_window": 5}  # a layer left over


def looked_at(model, **given):
    return View.of({0: draw(model), 5: draw(model, seed=1)}, model, batch_of(rows=4), **given)


@pytest.mark.parametrize("model", [tiny(**SLIDING), tiny(**GROUPED, positions="alibi")], ids=["sliding", "alibi"])
def test_attention_times_values_is_what_heads_give(model):
    view = looked_at(model)
    found = view.activations("attention", "v", "heads", "resid", "layer_in", "embed")
    assert list(found["attention"]) == list(range(model.num_layers)) and list(found["embed"]) == [0]
    for layer, weights in found["attention"].items():
        values = np.repeat(found["v"][layer], 2, axis=2)
        np.testing.assert_allclose(np.einsum("bnls,bsnh->blnh", weights, values), found["heads"][layer], atol=1e-5)
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
        behind = view.rows.positions[:, :, None] - view.rows.positions[:, None, :]
        apart = view.rows.segments[:, :, None] != view.rows.segments[:, None, :]
        hidden = apart | (behind < 0) | ((behind >= 5) & (model.window(layer) > 0))
        assert not weights[np.broadcast_to(hidden[:, None], weights.shape)].any()
    for layer in range(1, model.num_layers):
        np.testing.assert_array_equal(found["layer_in"][layer], found["resid"][layer - 1])
    np.testing.assert_array_equal(found["layer_in"][0], found["embed"][0])


def scaled(site, layer, x, factor):
    return x * factor if site == "embed" else x


def test_losses_are_those_of_training_and_an_edit_changes_them():
    model = tiny(logit_softcap=5.0)
    view = looked_at(model)
    total, sums = jax.jit(lambda p, batch: language_model.loss(p, batch, model, Layout()))(view.params, placed(view.rows))
    assert view.mean_loss() == pytest.approx(float(total / sums.tokens), rel=1e-5)
    assert view.losses().shape == view.rows.tokens.shape and not view.losses()[view.rows.weights == 0].any()
    assert view.previous.mean_loss() != view.mean_loss() == view.last.mean_loss()
    assert view.scores().correct[view.rows.weights > 0].sum() == float(sums.correct)
    twice = jax.tree_util.Partial(scaled, factor=np.float32(2))
    np.testing.assert_array_equal(view.losses(edit=jax.tree_util.Partial(scaled, factor=np.float32(1))), view.losses())
    assert view.mean_loss(edit=twice) != view.mean_loss()
    np.testing.assert_array_equal(
        view.activations("embed", edit=twice)["embed"][0], 2 * view.activations("embed")["embed"][0]
    )  # fmt: skip


def test_pieces_are_the_whole(monkeypatch):
    view = looked_at(tiny())
    whole = view.activations("resid")["resid"][1]
    assert view.activations("resid")["resid"][1] is whole  # kept for the next probe
    monkeypatch.setattr("jaxlm.analysis.view.BYTES_OF_ACTIVATIONS", 3 * 4 * 24 * 2 * 32)
    again = View.of({0: view.params}, tiny(), view.rows)
    parts = list(again.pieces("resid"))
    assert [len(batch.tokens) for batch, _ in parts] == [3, 1]
    np.testing.assert_allclose(np.concatenate([found["resid"][1] for _, found in parts]), whole, atol=1e-5)


def test_sites_of_mixtures_are_those_of_their_layers():
    model = sparse(every=2, model={"num_layers": 3})
    view = View.of({0: draw(model)}, model, batch_of(rows=4))
    found = view.activations("experts", "gates", "resid")
    assert list(found["experts"]) == list(model.moe_layers) == [1] and list(found["resid"]) == [0, 1, 2]
    assert found["experts"][1].dtype == np.int32 and found["gates"][1].dtype == np.float32


def test_memory_is_reckoned_of_what_experts_choose():
    plain = sparse(experts_per_token=1)
    chosen = sparse(router="expert_choice", evaluation_capacity_factor=1.0, allow_leaks=True)
    assert _bytes_of("experts", 24, chosen) == 4 * _bytes_of("experts", 24, plain)


def test_sites_that_are_not_there():
    view = looked_at(tiny())
    with pytest.raises(ConfigError, match=r"no site 'residual'. Did you mean 'resid'"):
        view.activations("residual")
    with pytest.raises(NotSuited, match="no layer of this model is a mixture"):
        view.activations("gates")
    with pytest.raises(NotSuited, match="Self-Extend"):
        check_sites(["attention"], tiny(self_extend=SelfExtend(group_size=4, window_size=16)))
    with pytest.raises(CheckpointError, match="has no checkpoint of step 3: it has 0, 5"):
        view.at(3)
    with pytest.raises(NotSuited, match="no training text"):
        view.training_rows(2)
