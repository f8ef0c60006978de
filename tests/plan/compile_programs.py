"""Compile the small programs whose texts `test_hlo.py` reads, for devices that are not there.

    python tests/plan/compile_programs.py [NAME ...]

writes `programs/NAME.hlo.xz`, without names all of them; needs the extra `plan`, and for names that begin with `gpu` the extra
`plan-cuda`. Kernels' bodies are left out of the texts. What each program must move and how often is written down in the test,
from the program, not read off the compiler's text.
"""

import lzma
import os
import re
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "programs"


def apart(x):
    """Every kind of collective once, work between them; x is [1024, 2048] float32 over data x model = 4 x 4."""

    def one(x):
        x = jnp.sin(lax.all_gather(x, "data", axis=0, tiled=True))
        x = jnp.cos(lax.psum(x, "model"))
        x = jnp.sin(lax.psum(x, ("data", "model")))
        x = jnp.cos(lax.psum_scatter(x, "model", scatter_dimension=0, tiled=True))
        x = jnp.sin(lax.all_to_all(x, "data", split_axis=0, concat_axis=1, tiled=True))
        return jnp.cos(lax.ppermute(x, "model", [(i, (i + 1) % 4) for i in range(4)]))

    return jax.shard_map(one, in_specs=jax.P("data", "model"), out_specs=jax.P("data", "model"), check_vma=False)(x)


def loops(x, weights):
    """Seven steps, in each a sum over `model` and three over `data`; x is [1024, 512], weights [7, 512, 512]."""

    def one(x, weights):
        def step(x, weight):
            x = lax.fori_loop(2, 5, lambda _, x: jnp.sin(lax.psum(x, "data")), x)
            return lax.psum(x @ weight, "model"), None

        return lax.scan(step, x, weights)[0]

    return jax.shard_map(one, in_specs=(jax.P("data"), jax.P()), out_specs=jax.P("data"), check_vma=False)(x, weights)


def sharded(weights, x):
    """Gradients of seven layers whose weights [7, 2048, 2048] lie on all 16 devices: gathered forward and again backward."""

    def loss(weights, x):
        def layer(x, weight):
            return jnp.tanh(x @ jax.sharding.reshard(weight.astype(jnp.bfloat16), jax.P())), None

        return lax.scan(jax.checkpoint(layer), x, weights)[0].astype(jnp.float32).sum()

    return jax.grad(loss)(weights, x)


def branches(x, index):
    """A product and a sum over `data`, or nothing but a sine; x is [1024, 1024]."""

    def one(x, index):
        return lax.cond(index[0] > 0, lambda x: lax.psum(x @ x, "data"), jnp.sin, x)

    return jax.shard_map(one, in_specs=jax.P(), out_specs=jax.P(), check_vma=False)(x, index)


def slices(x):
    """Collectives between 2 x 2 slices of 2 x 2 chips; x is [4096, 1024] over data x model."""

    def one(x):
        sums = lax.psum(x, "replica"), lax.psum(x, ("replica", "expert", "data"))
        return *sums, lax.all_gather(x, "expert", tiled=True)

    return jax.shard_map(one, in_specs=jax.P("data", "model"), out_specs=(jax.P("data", "model"),) * 3, check_vma=False)(x)


def moving(x, index):
    """What the compiler does not cost: rows [4096, 256] gathered, added to and sorted."""
    x = x.at[index].get(out_sharding=jax.P())
    return jnp.sort(x.at[index[::-1]].add(1.0), axis=0)


def experts(x, weights, sizes):
    """A grouped product [8192, 1024] x [8, 1024, 4096] and its gradients."""

    def one(x, weights, sizes):
        def loss(x, weights):
            return jnp.square(lax.ragged_dot(x, weights, sizes).astype(jnp.float32)).sum()

        return jax.grad(loss, (0, 1))(x, weights)

    return jax.shard_map(one, in_specs=jax.P(), out_specs=jax.P(), check_vma=False)(x, weights, sizes)


def train_step(mesh):
    """Return the train step of a small Llama with its abstract arguments: 4 layers, FSDP over 4, tensors split over 2."""
    from jaxlm.data.prepare import DataConfig
    from jaxlm.experiment import Experiment
    from jaxlm.model.config import ModelConfig
    from jaxlm.plan.build import trace_step

    model = ModelConfig(
        vocab_size=4096, num_layers=4, hidden_size=512, num_heads=4, num_kv_heads=2, head_dim=128, intermediate_size=1024,
    )  # fmt: skip
    data = DataConfig(sources=("stdlib",), sequence_length=512)
    experiment = Experiment(name="small", steps=10, batch_size=4, model=model, data=data, remat="full")
    step, *arguments = trace_step(experiment, mesh, "tpu")
    return step, arguments


# Name: topology, slices, mesh, and the program with the type and the sharding of each argument.
PROGRAMS = {
    "apart": ("v5e:4x4", 1, {"data": 4, "model": 4}, apart, [("f32", (1024, 2048), ("data", "model"))]),
    "loops": ("v5e:4x4", 1, {"data": 4, "model": 4}, loops, [("f32", (1024, 512), ("data",)), ("f32", (7, 512, 512), ())]),
    "sharded": (
        "v5e:4x4", 1, {"data": 4, "model": 4}, sharded,
        [("f32", (7, 2048, 2048), (None, ("data", "model"))), ("bf16", (8192, 2048), (("data", "model"),))],
    ),
    "branches": ("v5e:4x4", 1, {"data": 4, "model": 4}, branches, [("f32", (1024, 1024), ()), ("i32", (1,), ())]),
    "slices": (
        "v5e:2x2", 4, {"replica": 2, "expert": 2, "data": 2, "model": 2}, slices, [("f32", (4096, 1024), ("data", "model"))],
    ),
    "moving": ("v5e:2x2", 1, {"data": 4}, moving, [("f32", (4096, 256), ()), ("i32", (4096,), ())]),
    "experts": (
        "v5e:2x2", 1, {"data": 4}, experts,
        [("bf16", (8192, 1024), ()), ("bf16", (8, 1024, 4096), ()), ("i32", (8,), ())],
    ),
    "train": ("v5e:2x4", 1, {"data": 4, "model": 2}, train_step, None),
    "gpu_apart": ("h100:16", 1, {"data": 4, "model": 4}, apart, [("f32", (1024, 2048), ("data", "model"))]),
    "gpu_sharded": (
        "h100:16", 1, {"data": 4, "model": 4}, sharded,
        [("f32", (7, 2048, 2048), (None, ("data", "model"))), ("bf16", (8192, 2048), (("data", "model"),))],
    ),
}  # fmt: skip


def compiled_text(name: str) -> str:
    """Return the text of a program, compiled for its topology."""
    topology, number, shape, program, arguments = PROGRAMS[name]
    devices = devices_of(parse_topology(topology, number)[0])
    if arguments is None:
        mesh = make_mesh(shape, devices)
    elif number > 1:
        within = tuple(size if axis in ("data", "model") else 1 for axis, size in shape.items())
        across = tuple(shape[axis] // size for axis, size in zip(shape, within, strict=True))
        array = mesh_utils.create_hybrid_device_mesh(within, across, devices)
        mesh = jax.sharding.Mesh(array, tuple(shape), axis_types=(AxisType.Explicit,) * len(shape))
    else:
        mesh = jax.sharding.Mesh(np.reshape(devices, tuple(shape.values())), tuple(shape), (AxisType.Explicit,) * len(shape))
    with jax.set_mesh(mesh):
        if arguments is None:
            program, arguments = program(mesh)
        else:
            dtypes = {"f32": jnp.float32, "bf16": jnp.bfloat16, "i32": jnp.int32}
            arguments = [
                jax.ShapeDtypeStruct(dims, dtypes[dtype], sharding=NamedSharding(mesh, jax.P(*spec)))
                for dtype, dims, spec in arguments
            ]
        return jax.jit(program).lower(*arguments).compile().as_text()


if __name__ == "__main__":
    # Some of these a library reads when it is imported. On a GPU nothing can be tuned by running it.
    os.environ.update(
        JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", TPU_ACCELERATOR_TYPE="v5litepod-16", TPU_WORKER_HOSTNAMES="localhost",
        TPU_LOG_DIR="disabled", ALLOW_MULTIPLE_LIBTPU_LOAD="1", XLA_FLAGS="--xla_gpu_autotune_level=0",
    )  # fmt: skip
    import jax
    import numpy as np
    from jax import lax
    from jax import numpy as jnp
    from jax.experimental import mesh_utils
    from jax.sharding import AxisType, NamedSharding

    from jaxlm.layout import make_mesh
    from jaxlm.plan.build import devices_of
    from jaxlm.plan.topology import parse_topology

    FOLDER.mkdir(exist_ok=True)
    for wanted in sys.argv[1:] or PROGRAMS:
        text = re.sub(r'"body":"[^"]*"', '"body":""', compiled_text(wanted))
        text = re.sub(r"(?m)^(\d+ \")[^\"\n]*/(?=(jaxlm|tests|site-packages)/)", r"\1", text)
        (FOLDER / f"{wanted}.hlo.xz").write_bytes(lzma.compress(text.encode(), preset=9))
        print(f"{wanted}: {len(text)} characters")
