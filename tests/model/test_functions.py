"""A routing rule and a position scheme of one's own: what restates ours equals ours, on any mesh and in a cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixtures import draw_layer, inputs, sparse
from models import batch_of, draw, placed, shardings, tiny

from jaxlm.decode.forward import extend, prefill
from jaxlm.decode.weights import prepare
from jaxlm.errors import ConfigError
from jaxlm.interop.families.find import family_for
from jaxlm.layout import Layout, make_mesh
from jaxlm.model import functions, moe
from jaxlm.model.functions import Rows
from jaxlm.objective import language_model
from jaxlm.ops.masks import Tokens
from jaxlm.ops.routing import EXCLUDED
from jaxlm.run.score import row_logits

FILE = '''
import jax
import jax.numpy as jnp


def softmax(logits_BLE, token):
    p = jax.nn.softmax(logits_BLE, axis=-1)
    return p, logits_BLE, p


def one_of_two(logits_BLE, token):
    p = jax.nn.softmax(logits_BLE, axis=-1)
    return p, jnp.where(p > 0.25, p + token.bias, -jnp.inf)


def at_random(logits_BLE, token):
    return jax.random.uniform(token.key, logits_BLE.shape) if token.key is not None else jax.nn.softmax(logits_BLE)


def looks_on(logits_BLE, token):
    """The mean over a row: what a rule that leaks would use."""
    return jax.nn.sigmoid(logits_BLE - logits_BLE.mean(axis=1, keepdims=True))


def too_few(logits_BLE, token):
    return logits_BLE[..., :2]


def whole_numbers(logits_BLE, token):
    return (logits_BLE > 0).astype(int)


def fails(logits_BLE, token):
    return logits_BLE @ token.no_such_field


def rope(x_BLNH, positions_BL, part):
    half = x_BLNH.shape[-1] // 2
    frequency = 10_000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions_BL[:, :, None, None].astype(jnp.float32) * frequency.reshape(1, 1, 1, -1)
    a, b = jnp.split(x_BLNH.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def by_head(x_BLNH, positions_BL, part):
    at = positions_BL[:, :, None, None].astype(jnp.float32) * (1 + part.head)
    return x_BLNH * 1.01 ** (-at if part.keys else at)


def flat(x_BLNH, positions_BL, part):
    return x_BLNH.ravel()
'''


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("functions") / "mine.py"
    path.write_text(FILE)
    return path


def loss_and_gradients(config, params, shape):
    mesh = make_mesh(shape, jax.devices()[: int(np.prod(list(shape.values()) or [1]))])
    with jax.set_mesh(mesh):
        there = jax.device_put(params, shardings(config))
        run = jax.jit(jax.value_and_grad(lambda p, b: language_model.loss(p, b, config, Layout(), key=jax.random.key(0))[0]))
        return jax.tree.map(np.asarray, run(there, placed(batch_of())))


def near(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_softmax_restated_is_softmax_to_the_bit(file):
    shape = {"data": 4, "model": 2}
    ours, own = (sparse(router=router, capacity_factor=1.0) for router in ("softmax", f"{file}:softmax"))
    params = jax.tree.map(np.asarray, draw(ours))
    blocks = tuple(b.replace(moe=b.moe.replace(bias=np.zeros((1, 4), np.float32))) for b in params.blocks)
    expected, wanted = loss_and_gradients(ours, params, shape)
    found, got = loss_and_gradients(own, params.replace(blocks=blocks), shape)
    assert found == expected and found > 0
    assert not np.any(got.blocks[0].moe.bias)
    blocks = tuple(b.replace(moe=b.moe.replace(bias=None)) for b in got.blocks)
    near(got.replace(blocks=blocks), wanted)


def test_rope_restated_is_rope(file):
    shape = {"data": 2, "context": 2, "model": 2}
    ours, own = (tiny(num_kv_heads=4, num_layers=1, positions=positions) for positions in ("rope", f"{file}:rope"))
    params = jax.tree.map(np.asarray, draw(ours))
    near(loss_and_gradients(own, params, shape), loss_and_gradients(ours, params, shape))


def test_a_cache_gives_what_the_full_forward_gives(file):
    kinds = {"attention_pattern": ("sliding", "global"), "sliding_window": 5, "num_kv_heads": 2}
    config = tiny(positions=f"{file}:by_head", **kinds)
    params, tokens = draw(config), np.random.default_rng(0).integers(3, 64, (2, 10)).astype(np.int32)
    expected, weights = np.asarray(row_logits(params, tokens, config, Layout())), prepare(params, config, Layout())
    places = Tokens(np.tile(np.arange(10, dtype=np.int32), (2, 1)), np.ones((2, 10), np.int32))
    cache, done = None, 0
    for size in (5, 1, 3, 1):
        here, at = tokens[:, done : done + size], jax.tree.map(lambda x, d=done, s=size: x[:, d : d + s], places)
        if cache is None:
            logits, cache = prefill(weights, here, at, np.int32(size), config, Layout(), 16)
        else:
            logits, cache = extend(weights, here, at, np.int32(size), cache, config, Layout())
        done += size
        np.testing.assert_allclose(logits, expected[:, done - 1], atol=2e-5)
    without = row_logits(params, tokens, tiny(positions="none", **kinds), Layout())
    assert np.abs(expected - np.asarray(without)).max() > 1e-3  # positions matter


def routed(config, key=None, edit=moe.unchanged):
    """Return the layer's output and decisions for one row of inputs."""
    p, x = draw_layer(config), inputs()
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 64, x.shape[:2]), jnp.int32)
    at = jnp.tile(jnp.arange(x.shape[1], dtype=jnp.int32)[None], (x.shape[0], 1))
    return jax.jit(
        lambda p, x: moe.moe(
            p, x, jnp.ones(x.shape[:2], bool), 0, config, Layout(), key=key, edit=edit, rows=Rows(tokens, at)
        )
    )(p, x)  # fmt: skip


def test_a_rule_cannot_look_at_other_tokens_unless_leaks_are_allowed(file):
    """Alone in its row, a token's logits are their own mean: every score is a half."""
    for allowed in (False, True):
        config = sparse(router=f"{file}:looks_on", capacity_factor=None, allow_leaks=allowed)
        gates = np.asarray(routed(config)[1].decisions.gates)
        assert np.all(gates == 0.5) != allowed


def test_ranks_of_minus_infinity_are_never_chosen(file):
    config = sparse(router=f"{file}:one_of_two", experts_per_token=3, capacity_factor=None)

    def without_the_first(site, layer, x):
        return x.at[..., 0].set(10 * EXCLUDED) if site == "router_logits" else x

    for edit in (moe.unchanged, without_the_first):
        experts = np.asarray(routed(config, edit=edit)[1].decisions.experts)
        some, none = np.sum(experts < 4, axis=-1), experts == 4
        assert some.min() >= 1 and none.any()  # at most three of four experts have more than a quarter
        assert (edit is moe.unchanged) == bool(np.any(experts == 0))


def test_every_token_has_a_key_of_its_own_on_every_mesh(file):
    config = sparse(router=f"{file}:at_random", capacity_factor=None)
    one = np.asarray(routed(config, key=jax.random.key(3))[1].decisions.experts)
    assert len(np.unique(one)) == 4
    with jax.set_mesh(make_mesh({"data": 2, "context": 2}, jax.devices()[:4])):
        sharding = jax.NamedSharding(jax.sharding.get_mesh(), Layout().spec("batch", "length", None))
        ids = jax.device_put(jnp.zeros((2, 12), jnp.int32), jax.NamedSharding(sharding.mesh, jax.P(*sharding.spec[:2])))
        token = functions.Token(ids, ids, 0, jnp.zeros((1, 1, 4)), None, 1)

        def scores(logits, key, token=token):
            return functions.route(config.moe.router, logits, token._replace(key=key), whole=False).scores

        split = jax.jit(scores)(jax.device_put(jnp.zeros((2, 12, 4)), sharding), jax.random.key(0))
    ids = jnp.zeros((2, 12), jnp.int32)
    token = functions.Token(ids, ids, 0, jnp.zeros((1, 1, 4)), None, 1)
    whole = jax.jit(lambda x, key: scores(x, key, token))(jnp.zeros((2, 12, 4)), jax.random.key(0))
    np.testing.assert_array_equal(split, whole)
    assert len(np.unique(np.asarray(whole))) == whole.size


def test_what_a_function_must_not_return_is_refused_before_a_device_is_touched(file, monkeypatch):
    monkeypatch.setattr(jax, "devices", None)
    functions.check(sparse(router=f"{file}:at_random"))
    functions.check(tiny(positions=f"{file}:by_head"))
    with pytest.raises(ConfigError, match=r"mine\.py:too_few.* returned float32\[1, 1, 2\].*\[1, 1, 4\]"):
        functions.check(sparse(router=f"{file}:too_few"))
    with pytest.raises(ConfigError, match=r"returned int32\[1, 1, 4\]: it must return scores, floats"):
        functions.check(sparse(router=f"{file}:whole_numbers"))
    with pytest.raises(ConfigError, match=r"AttributeError.*no_such_field.*\(.*mine\.py, line 34\)"):
        functions.check(sparse(router=f"{file}:fails"))
    with pytest.raises(ConfigError, match=r"flat.* returned float32\[4\]: it must return floats of the shape of x"):
        functions.check(tiny(positions=f"{file}:flat"))
    with pytest.raises(ConfigError, match="of your own: such a model is read by jaxlm alone"):
        family_for(tiny(positions=f"{file}:rope"))
