"""Published shapes: parameter counts, FLOPs as the compiler counts them, and placement on meshes up to 512 devices."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from jaxlm import param
from jaxlm.data.packing import Batch
from jaxlm.errors import ConfigError
from jaxlm.layout import MESH_AXES, Layout, make_mesh
from jaxlm.model import flops, transformer
from jaxlm.model.presets import PRESETS
from jaxlm.objective import language_model
from jaxlm.ops.masks import Tokens
from jaxlm.train.optimizer import OptimizerConfig, make_optimizer, schedule
from jaxlm.train.step import GuardConfig, abstract_state, make_train_step

PUBLISHED = {
    "gpt2": 124_439_808, "1b": 1_235_814_400, "8b": 8_030_261_248, "70b": 70_553_706_496,
    "gemma2-2b": 2_614_341_888, "mistral-7b": 7_241_732_096, "mixtral-8x7b": 46_702_792_704,
}  # fmt: skip
# data x model, or data x expert x model, for 8, 64 and 512 devices: what heads, widths and experts divide by.
# GPT-2's vocabulary is odd: it stays whole.
MESHES = {
    "nano": [(4, 2), (32, 2), (128, 2)],
    "15m": [(4, 2), (32, 2), (96, 2)],
    "125m": [(2, 4), (16, 4), (128, 4)],
    "350m": [(4, 2), (16, 4), (32, 16)],
    "1b": [(4, 2), (16, 4), (64, 8)],
    "8b": [(4, 2), (8, 8), (64, 8)],
    "70b": [(1, 8), (8, 8), (64, 8)],
    "gpt2": [(2, 4), (16, 4), (128, 4)],
    "gemma2-2b": [(2, 4), (16, 4), (128, 4)],
    "mistral-7b": [(4, 2), (8, 8), (64, 8)],
    "switch-base": [(1, 8, 1), (2, 16, 2), (4, 64, 2)],
    "mixtral-8x7b": [(1, 8, 1), (4, 8, 2), (16, 8, 4)],
}


@pytest.fixture(autouse=True)
def one_device():
    """Leave the mesh to each test: an abstract one cannot be entered inside another of a different size."""


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_counts(name):
    count = param.count(transformer.spec(PRESETS[name]()))
    if name in PUBLISHED:
        assert count == PUBLISHED[name]
    else:
        expected = {"nano": 0.5e6, "15m": 15e6, "125m": 125e6, "350m": 350e6, "switch-base": 3.7e9}[name]
        assert abs(count / expected - 1) < 0.15


@pytest.mark.parametrize("name", ["15m", "gpt2", "1b", "gemma2-2b", "mistral-7b", "8b"])
def test_flops_are_the_compilers_own(name):
    config = dataclasses.replace(PRESETS[name]().for_platform("cpu"), attention_kernel="plain")
    period = len(config.attention_pattern)
    length = 512

    def counted(layers: int) -> float:
        # The compiler counts a loop body once: one repeat of the pattern, then the difference of two unrolled ones.
        shallow = dataclasses.replace(config, num_layers=layers)
        mesh = make_mesh({}, jax.devices()[:1])
        params = param.abstract(transformer.spec(shallow), Layout(), mesh)

        def run(params, tokens):
            at = Tokens(jnp.broadcast_to(jnp.arange(length)[None], (1, length)))
            x = transformer.embed(params, tokens, at, shallow, Layout())
            for layer in range(layers):
                weights = jax.tree.map(lambda w, i=layer // period: w[i], params.blocks[layer % period])
                one = dataclasses.replace(params, blocks=(jax.tree.map(lambda w: w[None], weights),))
                single = dataclasses.replace(
                    shallow, num_layers=1, attention_pattern=(config.attention_pattern[layer % period],),
                    sliding_window=config.window(layer),
                )  # fmt: skip
                x, _ = transformer.forward(
                    one, tokens, at, single, Layout(), edit=lambda s, _, y, x=x: x if s == "embed" else y
                )
            return transformer.unembed(params, x, shallow, Layout())

        with jax.set_mesh(mesh):
            lowered = jax.jit(run).lower(params, jax.ShapeDtypeStruct((1, length), jnp.int32))
        return lowered.cost_analysis()["flops"] / length

    one, two = counted(period), counted(2 * period)
    whole = one + (two - one) * (config.num_layers / period - 1)
    assert whole == pytest.approx(flops.forward_flops_per_token(config, length), rel=0.02)


@pytest.mark.parametrize("name", PRESETS)
def test_the_train_step_type_checks_on_large_meshes(name):
    config = PRESETS[name]().for_platform("tpu")
    layout = Layout(vocab=None) if name == "gpt2" else Layout()
    spec = transformer.spec(config)
    optimizer = make_optimizer(OptimizerConfig(), 100, spec)
    for data, *expert, model in MESHES[name]:
        shape = dict.fromkeys(MESH_AXES, 1) | {"data": data, "expert": (expert or [1])[0], "model": model}
        devices = math.prod(shape.values())
        param.check_layout(spec, layout, shape)
        mesh = AbstractMesh(tuple(shape.values()), MESH_AXES, axis_types=(AxisType.Explicit,) * len(MESH_AXES))
        state = abstract_state(spec, optimizer, layout, mesh)
        rows, length = 2 * devices // model, 256
        sharding = jax.NamedSharding(mesh, layout.spec("batch", "length"))
        batch = Batch(*(jax.ShapeDtypeStruct((rows, length), dtype, sharding=sharding) for dtype in "iifii"))

        def loss_of(params, batch, key, config=config, layout=layout):
            return language_model.loss(params, batch, config, layout, remat="full", key=key)

        step = make_train_step(loss_of, spec, optimizer, schedule(OptimizerConfig(), 100), GuardConfig())
        with jax.sharding.use_abstract_mesh(mesh):
            after, metrics = jax.eval_shape(step, state, batch)
        assert metrics["loss"].shape == ()
        for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(after), strict=True):
            assert (old.shape, old.dtype) == (new.shape, new.dtype), path
            assert old.sharding.spec == new.sharding.spec or old.ndim == 0, path
        # Every matrix and embedding is split over all devices; norms are whole; so are the moments of AdamW.
        held = sum(np.prod(x.sharding.shard_shape(x.shape)) * 4 for x in jax.tree.leaves(state.params))
        assert held == param.bytes_per_device(spec, layout, shape)
        leaves = param.named_leaves(spec)
        large = sum(np.prod(p.shape) for name, p in leaves.items() if p.kind != "vector" and "router" not in name)
        if layout.vocab and config.positions != "learned":
            assert held <= 4 * large / devices + 4 * (param.count(spec) - large)
        moments = sum(np.prod(x.sharding.shard_shape(x.shape)) * 4 for x in jax.tree.leaves(state.optimizer) if x.ndim)
        assert moments == 2 * held


def test_uneven_sharding_names_the_field_and_what_works():
    spec = transformer.spec(PRESETS["gpt2"]())
    with pytest.raises(
        ConfigError, match=r"model.vocab_size = 50257 cannot be split evenly over mesh.model = 4.*--layout.vocab None"
    ):
        param.check_layout(spec, Layout(), {"data": 2, "model": 4})
    with pytest.raises(ConfigError, match=r"model.num_kv_heads = 8 .*mesh.model = 16.*8"):
        param.check_layout(transformer.spec(PRESETS["8b"]()), Layout(), {"data": 1, "model": 16})


def test_peaks_are_found_by_device_kind():
    assert flops.peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert flops.peak_flops("NVIDIA H100 PCIe") == 756e12
    assert flops.peak_flops("TPU v5 lite") == 197e12
    assert flops.peak_flops("cpu") is None
