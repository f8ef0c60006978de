"""The objective on real models: at the reference, against TRL's numbers, under filling and padding, on every kind of mesh."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models import draw, placed, shardings, tiny

from jaxlm.data.pairs import PairBatch
from jaxlm.layout import MESH_AXES, Layout, make_mesh
from jaxlm.model import transformer
from jaxlm.model.moe_config import MoeConfig
from jaxlm.objective import preference
from jaxlm.objective.preference_config import PreferenceConfig
from jaxlm.ops.log_probs import TokenScores

STORED = np.load(Path(__file__).parents[1] / "reference" / "preferences.npz")
MODELS = {
    "dense": tiny(num_layers=1, num_kv_heads=4, dropout=0.3, logit_softcap=3.0),
    "mixture": tiny(
        num_layers=1,
        moe=MoeConfig(num_experts=4, expert_size=16, capacity_factor=0.3, jitter=0.3, expert_dropout=0.3, kernel="ragged",
                      load_balancing_loss=0.1, router_z_loss=0.1),
    ),
}  # fmt: skip
KTO = PreferenceConfig(loss="kto", beta=0.3, desirable_weight=1.5, sft_weight=0.2)
DPO = PreferenceConfig(beta=0.3)
DPO_AND_SFT = PreferenceConfig(beta=0.3, sft_weight=0.2)


def pairs_of(num_pairs=8, length=16, filling=1, seed=0, labels=False):
    """Return pairs with a prompt in common, the last `filling` of them empty."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, 64, (2 * num_pairs, length + 1)).astype(np.int32)
    prompts = np.repeat(rng.integers(2, 6, num_pairs), 2)
    ends = prompts + rng.integers(2, length - 6, 2 * num_pairs)
    place = np.broadcast_to(np.arange(length, dtype=np.int32), (2 * num_pairs, length))
    tokens[1::2] = np.where(np.arange(length + 1) < prompts[1::2, None], tokens[::2], tokens[1::2])
    real = place <= ends[:, None]
    weights = (real & (place >= prompts[:, None] - 1) & (place < ends[:, None])).astype(np.float32)
    real[2 * (num_pairs - filling) :], weights[2 * (num_pairs - filling) :] = False, 0
    named = np.repeat(rng.integers(0, 2, num_pairs), 2) if labels else np.tile([1, 0], num_pairs)
    return PairBatch(
        tokens[:, :-1], tokens[:, 1:], weights, real.astype(np.int32), np.where(real, place, 0),
        named.astype(np.float32), np.where(weights.any(1), rng.normal(-20, 3, 2 * num_pairs), 0).astype(np.float32),
    )  # fmt: skip


def put(batch, layout=Layout()):
    """Return the batch on the current mesh."""
    rows = jax.NamedSharding(jax.sharding.get_mesh(), layout.spec("batch"))
    return PairBatch(*placed(batch[:5], layout), *jax.device_put(batch[5:], rows))


@functools.cache
def weights(name, seed=0):
    return jax.device_get(draw(MODELS[name], seed=seed, spread=0.2))


@functools.partial(jax.jit, static_argnames=("name", "settings"))
def gradients_of(params, batch, name, settings, reference=None):
    """Return ((summed loss, sums), gradients of the summed loss)."""
    of = lambda p: preference.loss(p, batch, MODELS[name], Layout(), settings, reference_params=reference)  # noqa: E731
    return jax.value_and_grad(of, has_aux=True)(params)


@functools.partial(jax.jit, static_argnames="name")
def cached(params, batch, name):
    return preference.reference_log_probs(params, batch, MODELS[name], Layout())


def metrics_of(sums):
    return {name: float(value) for name, value in jax.device_get(sums.metrics()).items()}


def assert_near(found, expected, rtol=1e-4):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6 + 2e-6 * np.abs(b).max(initial=0))


@pytest.mark.parametrize("name", MODELS)
def test_at_the_reference_the_loss_is_ln_2(name):
    params, batch = weights(name), put(pairs_of())
    beside = gradients_of(params, batch, name, DPO, params)
    given = gradients_of(params, batch._replace(reference=cached(params, batch, name)), name, DPO)
    for (_, sums), gradients in (beside, given):
        found = metrics_of(sums)
        np.testing.assert_allclose(found["loss"], np.log(2), rtol=2e-7)
        assert [found[key] for key in ("rewards/margins", "rewards/accuracies", "rewards/chosen", "accuracy")] == [0, 0, 0, 0]
        assert abs(found.get("kl", 0)) < 1e-7
        assert optax.tree.norm(gradients) > 0.1  # and yet there is something to learn


def test_a_whole_batch_is_as_trl_has_it():
    """Loss with its mean over tokens, gradients for log-probabilities and metrics, of batches of three pairs."""
    of = {name.split("/")[1]: jnp.asarray(STORED[name]) for name in STORED.files if name.startswith("tokens/")}
    zeros = np.zeros(of["weights"].shape, np.int32)
    place = zeros + np.arange(zeros.shape[1], dtype=np.int32)
    batch = PairBatch(zeros, zeros, of["weights"], of["real"], place, np.tile([1.0, 0.0], 3), of["reference"])

    @functools.partial(jax.jit, static_argnames="settings")
    def run(log_probs, settings):
        def total(log_probs):
            scores = TokenScores(log_probs, of["entropy"], of["correct"])
            return preference._combine(batch, scores, batch.reference, None, settings)

        return jax.grad(total, has_aux=True)(log_probs)

    for i, case in enumerate(json.loads(str(STORED["batches"]))):
        gradient, sums = run(of["log_probs"], PreferenceConfig(**case["config"]))
        found = metrics_of(sums)
        for name, value in case["metrics"].items():
            np.testing.assert_allclose(found[name], value, rtol=3e-6, atol=1e-6, err_msg=f"{case['config']} {name}")
        np.testing.assert_allclose(gradient / 3, STORED["batch_gradients"][i], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("settings", [DPO_AND_SFT, KTO])
def test_filling_padding_order_and_prompts_change_nothing(settings):
    labels = settings.form == "labels"
    batch, params = pairs_of(labels=labels), weights("dense")
    (total, sums), gradients = gradients_of(params, put(batch), "dense", settings)
    assert sums.weight == 7 and sums.total == total
    order = np.random.default_rng(2).permutation(8)
    rows = np.stack([2 * order, 2 * order + 1], axis=1).ravel()
    prompts = batch.targets.copy()
    prompts[batch.weights == 0] = 5
    junk = batch.reference.copy()
    junk[-2:] = np.nan
    wide = PairBatch(*(np.pad(a, ((0, 0), (0, 8))) for a in batch[:5]), *batch[5:])
    alone = PairBatch(*(a[:14] for a in batch))
    for changed in (
        PairBatch(*(a[rows] for a in batch)),
        batch._replace(targets=prompts),
        batch._replace(reference=junk),
        wide,
        alone,
    ):
        found = gradients_of(params, put(changed), "dense", settings)
        assert_near(found, ((total, sums), gradients), rtol=2e-5)


@pytest.mark.parametrize(("name", "settings"), [("mixture", DPO), ("dense", KTO), ("dense", PreferenceConfig(loss="orpo"))])
def test_a_batch_of_filling_alone_is_nothing(name, settings):
    batch = pairs_of(filling=8, labels=settings.form == "labels")
    (total, sums), gradients = gradients_of(weights(name), put(batch), name, settings)
    assert total == 0 and not any(metrics_of(sums).values())
    assert not any(np.any(g) for g in jax.tree.leaves(gradients))


def test_microbatches_add_up():
    batch, params = pairs_of(), weights("dense")
    whole = gradients_of(params, put(batch), "dense", DPO)
    first, second = batch.weights.copy(), batch.weights.copy()
    first[8:], second[:8] = 0, 0
    parts = [gradients_of(params, put(batch._replace(weights=some)), "dense", DPO) for some in (first, second)]
    assert parts[0][0][1].weight == 4
    assert_near(jax.tree.map(jnp.add, *parts), whole, rtol=2e-5)


def test_routers_losses_count_once_a_pair_or_not_at_all():
    batch, params = put(pairs_of()), weights("mixture")
    (total, sums), _ = gradients_of(params, batch, "mixture", DPO)
    layer = jax.tree.map(lambda a: a[0], sums.router)
    np.testing.assert_allclose(total - sums.total, 7 * 0.1 * (layer.balance + layer.z) / layer.tokens, rtol=1e-4)
    np.testing.assert_allclose(layer.kept, layer.load)  # the training capacity is off
    without = PreferenceConfig(beta=0.3, router_losses=False)
    alone, _ = jax.jit(lambda p, b: preference.loss(p, b, MODELS["mixture"], Layout(), without))(params, batch)
    np.testing.assert_allclose(alone, sums.total, rtol=1e-6)


def test_the_live_reference_is_the_cached_one_and_kl_is_exact():
    batch, params, other = put(pairs_of()), weights("dense"), weights("dense", seed=1)
    (total, sums), gradients = gradients_of(params, batch, "dense", DPO, other)
    given = batch._replace(reference=cached(other, batch, "dense"))
    batch = jax.device_get(batch)
    (found, found_sums), found_gradients = gradients_of(params, given, "dense", DPO)
    assert found_sums.kl is None
    assert_near((found, found_sums, found_gradients), (total, sums._replace(kl=None), gradients), rtol=2e-5)
    every = [np.asarray(jax.nn.log_softmax(jax.device_get(logits_of(p, given)))) for p in (params, other)]
    expected = np.sum(batch.weights * np.sum(np.exp(every[0]) * (every[0] - every[1]), axis=-1))
    np.testing.assert_allclose(sums.kl, expected, rtol=1e-5)
    responses = np.take_along_axis(every[1], batch.targets[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(given.reference, np.sum(batch.weights * responses, axis=1), rtol=1e-5)


@jax.jit
def logits_of(params, batch):
    config, at = MODELS["dense"], preference.Tokens(batch.positions, batch.segments)
    x_BLD, _ = transformer.forward(params, batch.tokens, at, config, Layout())
    return transformer.unembed(params, x_BLD, config, Layout())


def test_kto_measures_its_baseline_on_mismatched_responses_alone():
    batch, params = pairs_of(labels=True), weights("dense")
    found = cached(params, put(batch), "dense")
    # the policy is 2 nats above the reference on mismatched responses, 1 on others
    above = np.where(batch.weights.any(1), np.tile([1.0, 2.0], 8), 0)
    (total, sums), gradients = gradients_of(params, put(batch._replace(reference=np.float32(found - above))), "dense", KTO)
    metrics, desirable = metrics_of(sums), batch.labels[:14:2].sum()
    np.testing.assert_allclose(metrics["kto_kl"], 2.0, rtol=1e-5)
    s = 1 / (1 + np.exp(0.3))
    kept = desirable * 1.5 * (1 - s) + (7 - desirable) * s
    sft = -metrics["logps/chosen"] * desirable / sums.chosen_tokens
    np.testing.assert_allclose(total, kept + 0.2 * 7 * sft, rtol=1e-5)
    np.testing.assert_allclose(metrics["rewards/accuracies"], (7 - desirable) / 7, rtol=1e-6)
    np.testing.assert_allclose(sums.tokens, batch.weights[::2].sum())
    below = batch._replace(reference=np.float32(found + 1))
    assert metrics_of(gradients_of(params, put(below), "dense", KTO)[0][1])["kto_kl"] == 0  # never below 0
    # no gradient through mismatched rows: other tokens there, the same baseline
    other = batch.targets.copy()
    other[1::2] = 3
    moved = batch._replace(targets=other)
    moved = moved._replace(
        reference=np.float32(np.where(np.tile([True, False], 8), found, cached(params, put(moved), "dense")) - above)
    )
    assert_near(gradients_of(params, put(moved), "dense", KTO)[1], gradients, rtol=2e-5)


# replica, data, expert, context, model
@pytest.mark.parametrize(
    ("name", "shape"),
    [("dense", (1, 4, 1, 1, 2)), ("mixture", (1, 4, 1, 1, 2)), ("mixture", (1, 2, 2, 1, 2)), ("dense", (1, 2, 1, 2, 2))],
)
def test_an_arrangement_changes_nothing(name, shape):
    settings = KTO if shape[3] == 2 else DPO
    batch, other = pairs_of(labels=settings is KTO), weights(name, seed=1)
    expected = jax.device_get(gradients_of(weights(name), put(batch), name, settings, other))
    with jax.set_mesh(make_mesh(dict(zip(MESH_AXES, shape, strict=True)))):
        where = shardings(MODELS[name])
        params, reference = (jax.device_put(w, where) for w in (weights(name), other))
        found = gradients_of(params, put(batch), name, settings, reference)
        assert jax.tree.map(lambda g: g.sharding, found[1]) == where
    np.testing.assert_allclose(found[0][0], expected[0][0], rtol=2e-6)
    assert_near(found, expected)
