"""The balancing bias, what a configuration makes of a model, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixtures import DROPLESS, assert_near, draw, draw_layer, inputs, layer_and_gradients, run_layer, sparse
from models import batch_of

from jaxlm import param
from jaxlm.errors import ConfigError
from jaxlm.layout import Layout
from jaxlm.model import moe, transformer
from jaxlm.model.moe_config import MoeConfig
from jaxlm.objective import language_model
from jaxlm.train.optimizer import OptimizerConfig, make_optimizer, schedule
from jaxlm.train.step import GuardConfig, init_state, make_train_step

# The balancing bias.

RATE = 0.005
BIASED = {
    "router": "sigmoid", "experts_per_token": 2, "renormalize": True, "bias_update_rate": RATE, "load_balancing_loss": 0.0,
} | DROPLESS  # fmt: skip


def balanced_training(config, accumulate):
    """Return (state, step), the step as a run compiles it, with decisions."""
    spec = transformer.spec(config)
    settings = OptimizerConfig(learning_rate=1e-3, weight_decay=0.5, schedule="constant")
    optimizer = make_optimizer(settings, 100, spec)

    def loss_of(params, batch, key):
        return language_model.loss(params, batch, config, Layout(), key=key, record=True)

    def after_update(params, sums):
        return params.replace(blocks=moe.rebalance(params.blocks, sums.router.load, config))

    rate = schedule(settings, 100)
    step = make_train_step(loss_of, spec, optimizer, rate, GuardConfig(), accumulate, after_update)
    return jax.jit(lambda: init_state(spec, optimizer, Layout(), 0))(), jax.jit(step)


def test_the_balancing_bias_moves_by_its_rate_towards_balance_and_evens_the_load():
    config = sparse(**BIASED)
    state, step = balanced_training(config, accumulate=2)
    planted = jnp.array([[0.05, 0.0, 0.0, -0.05]])
    blocks = (state.params.blocks[0].replace(moe=state.params.blocks[0].moe.replace(bias=planted)),)
    state = state.replace(params=state.params.replace(blocks=blocks))
    batch = jax.tree.map(lambda x: x.reshape(2, 4, 24), batch_of())
    history = []
    for _ in range(25):
        before = np.asarray(state.params.blocks[0].moe.bias)
        state, metrics = step(state, batch)
        assert metrics["skipped"] == 0
        load = np.bincount(np.asarray(metrics["decisions"].experts).ravel(), minlength=5)[:4]
        expected = before + np.float32(RATE) * np.sign(load.mean() - load).astype(np.float32)
        np.testing.assert_array_equal(state.params.blocks[0].moe.bias, expected)
        history.append(float(metrics["router_load_max"][0]))
    assert history[0] > 1.7 and max(history[-5:]) < 1.35


def test_an_expert_with_the_mean_load_stays_and_every_layer_follows_its_own():
    config = sparse(
        **BIASED, every=2, model={"num_layers": 5, "attention_pattern": ("global", "sliding", "global"), "sliding_window": 4}
    )
    blocks = transformer.spec(config).blocks
    params = param.tree_map(lambda p: jnp.zeros(p.shape), blocks)
    load = jnp.array([[4.0, 4, 4, 4], [7, 1, 4, 4]])
    moved = moe.rebalance(params, load, config)
    biases = {place: np.asarray(b.moe.bias) / RATE for place, b in enumerate(moved) if b.moe is not None}
    assert {place: b.tolist() for place, b in biases.items()} == {1: [[0, 0, 0, 0]], 3: [[-1, 1, 0, 0]]}


def test_the_balancing_bias_has_no_gradient_and_chooses_without_weighing():
    config = sparse(**BIASED)
    p, x = draw_layer(config), inputs()
    _, (gradients, _) = layer_and_gradients(p, x, x, config)
    assert (np.asarray(gradients.bias) == 0).all() and np.abs(gradients.router).max() > 0
    _, (_, decisions) = run_layer(p.replace(bias=jnp.array([9.0, 0, 0, 9])), x, config)
    assert (np.sort(decisions.experts, axis=-1) == [0, 3]).all()
    scores = np.asarray(jax.nn.sigmoid(x @ p.router))
    chosen = np.take_along_axis(scores, np.asarray(decisions.experts), -1)
    assert_near(decisions.gates, chosen / chosen.sum(-1, keepdims=True))


# What a configuration makes.


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_initial_experts_do_not_depend_on_how_many_there_are(scale):
    config = sparse(num_experts=8, expert_size=48, model={"init_scale": scale, "num_layers": 2, "hidden_size": 64})
    p = param.initialize(transformer.spec(config), jax.random.key(0), Layout()).blocks[0].moe
    assert p.experts.up.shape == (2, 8, 64, 48)
    for name, std in (("up", (scale / 64) ** 0.5), ("gate", (scale / 64) ** 0.5), ("down", (scale / 48) ** 0.5 / 2)):
        np.testing.assert_allclose(
            np.asarray(getattr(p.experts, name)).std(), std, rtol=0.02
        )  # residual outputs: 1/sqrt(2 x 2)
    first = np.asarray(p.experts.up)[0]
    assert len({first[e, 0, 0] for e in range(8)}) == 8
    np.testing.assert_allclose(np.asarray(p.router).std(), 0.02, rtol=0.1)


def test_a_noisy_router_starts_at_zero():
    p = param.initialize(transformer.spec(sparse(router="noisy")), jax.random.key(0), Layout()).blocks[0].moe
    assert (np.asarray(p.router) == 0).all() and (np.asarray(p.noise) == 0).all()


@pytest.mark.parametrize(
    ("every", "layers", "pattern", "mixtures"),
    [(2, 5, 1, (1, 3)), (1, 5, 2, (0, 1, 2, 3, 4)), (3, 7, 2, (2, 5)), (4, 4, 1, (3,)), (2, 4, 1, (1, 3))],
)
def test_every_nth_layer_is_a_mixture(every, layers, pattern, mixtures):
    pattern = ("global", "sliding")[:pattern]
    model = {"num_layers": layers, "attention_pattern": pattern, "sliding_window": 4 if "sliding" in pattern else 0}
    config = sparse(**DROPLESS, every=every, model=model)
    assert config.moe_layers == mixtures
    params = param.tree_map(lambda p: np.zeros(p.shape), transformer.spec(config))
    found = {}
    for place, block in enumerate(params.blocks):
        assert (block.moe is None) != (block.mlp is None)
        repeats = len(block.attention.q)
        found |= {place + i * len(params.blocks): block.moe is not None for i in range(repeats)}
    assert found == {layer: layer in mixtures for layer in range(layers)}


@pytest.mark.parametrize("every", [1, 2])
def test_statistics_come_in_the_order_of_layers_with_one_left_over(every):
    model = {"num_layers": 5, "attention_pattern": ("global", "sliding"), "sliding_window": 4}
    config = sparse(num_experts=5, **DROPLESS, every=every, model=model)

    def edit(site, layer, x):
        return jnp.full_like(x, layer) if site == "experts" else x

    batch = batch_of(rows=1)
    run = jax.jit(lambda p, b: language_model.loss(p, b, config, Layout(), edit=edit, record=True)[1])
    sums, tokens = run(draw(config), batch), (batch.segments != 0).sum()
    expected = tokens * np.eye(5)[list(config.moe_layers)]
    np.testing.assert_array_equal(sums.router.load, expected)
    np.testing.assert_array_equal(sums.decisions.experts[:, 0, 0, 0], config.moe_layers)


@pytest.mark.parametrize("over", ["mean", "sum"])
def test_router_losses_are_weighted_averaged_or_added_over_layers(over):
    weights = {"load_balancing_loss": 0.5, "router_z_loss": 0.25, "importance_loss": 2.0, "load_loss": 3.0}
    settings = MoeConfig(num_experts=4, router="noisy", losses_over_layers=over, **weights)
    sums = language_model.Statistics(*(jnp.zeros(2) for _ in range(10)))._replace(
        tokens=jnp.array([10.0, 10]), balance=jnp.array([10.0, 20]), z=jnp.array([40.0, 0]),
        importance=jnp.array([10.0, 30]), load_variation=jnp.array([0.0, 10]),
    )  # fmt: skip
    layers = (0.5 + 1 + 2, 1 + 6 + 3)
    expected = sum(layers) / (2 if over == "mean" else 1)
    np.testing.assert_allclose(language_model.router_loss(sums, settings), expected)


@pytest.mark.parametrize(
    ("fields", "fix"),
    [
        ({"experts_per_token": 5}, "experts-per-token 4 or fewer"),
        ({"router": "expert_choice", "evaluation_capacity_factor": 1.0}, "use router = 'softmax', or --model.moe.allow-leaks"),
        ({"router": "expert_choice"}, "evaluation-capacity-factor, 1.0 for example"),
        ({"priority": "choice", "experts_per_token": 2}, "use priority = 'token', or --model.moe.allow-leaks"),
        ({"priority": "confidence"}, "use priority = 'token'"),
        ({"capacity_factor": 0.0}, "set 1.25, for example, or None"),
        ({"evaluation_capacity_factor": 0.0}, "set 1.25, for example, or None"),
        ({"load_loss": 0.1}, "choose that, or importance_loss"),
        ({"router": "sigmoid", "expert_groups": 3}, "take a divisor"),
        ({"router": "sigmoid", "expert_groups": 4, "experts_per_token": 2}, "keep between 2 and 4 groups"),
        ({"router": "sigmoid", "expert_groups": 2, "groups_per_token": 3}, "keep between 1 and 2 groups"),
        ({"expert_groups": 2}, "needs moe.router = 'sigmoid'"),
        ({"every": 2}, "set it to 1 or less"),
        ({"jitter": 1.0}, "between 0 and 0.99"),
    ],
)
def test_contradictions_are_refused_with_the_fix(fields, fix):
    with pytest.raises(ConfigError, match=fix):
        sparse(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"priority": "choice"},  # of one choice: the same as by token
        {"priority": "choice", "experts_per_token": 2, "capacity_factor": None},  # nothing is dropped
        {"priority": "confidence", "model": {"causal": False}},
        {"num_experts": 0, "experts_per_token": 9},
    ],
)
def test_what_only_looks_contradictory_is_allowed(fields):
    sparse(**fields)


def test_experts_that_do_not_divide_over_the_mesh_are_refused():
    spec = transformer.spec(sparse(num_experts=6))
    param.check_layout(spec, Layout(), {"data": 1, "expert": 2, "model": 1})
    with pytest.raises(ConfigError, match=r"moe\.num_experts = 6 cannot be split evenly over mesh\.expert = 4.*--mesh\.expert"):
        param.check_layout(spec, Layout(), {"data": 1, "expert": 4, "model": 1})
    param.check_layout(spec, Layout(expert=None), {"data": 1, "expert": 4, "model": 1})
