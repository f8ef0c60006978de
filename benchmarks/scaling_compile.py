"""What is compiled to see how compiling grows: with the layers of a model, alike and unlike, and with the devices of a mesh.

The program is the train step that `jaxlm train` compiles; decoding's is that which makes one token. Seconds are of tracing,
lowering and compiling, with every cache of JAX emptied before, as the processor counts them: what neighbours do is not in them.
"""

import dataclasses
import gc
import math
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType
from rich.console import Console

from benchmarks.scaling_fit import Measured
from jaxlm import param
from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.decode.cache import empty_cache
from jaxlm.decode.forward import one_token
from jaxlm.decode.weights import Weights, prepare
from jaxlm.experiment import Experiment
from jaxlm.layout import MESH_AXES, Layout, MeshConfig
from jaxlm.model import transformer
from jaxlm.model.config import ModelConfig
from jaxlm.model.moe_config import MoeConfig
from jaxlm.ops.masks import Tokens
from jaxlm.plan.build import trace_step
from jaxlm.plan.compiled import compile_for, has_compiler
from jaxlm.plan.topology import parse_topology

VOCAB = 512


def tiny(layers: int, **changes: Any) -> ModelConfig:
    """Return a model of width 64."""
    fields = {"vocab_size": VOCAB, "hidden_size": 64, "num_heads": 4, "intermediate_size": 128, "max_length": 128}
    return ModelConfig(num_layers=layers, **(fields | changes))


def experiment_of(model: ModelConfig, rows: int, **changes: Any) -> Experiment:
    """Return an experiment whose step is compiled; it is never run, and reads no data."""
    data = DataConfig(sequence_length=model.max_length, tokenizer=TokenizerConfig(kind="byte", vocab_size=259))
    return Experiment(name="scaling", steps=1000, batch_size=rows, model=model, data=data, **changes)


def train_step(model: ModelConfig) -> Any:
    """Compile a model's train step for the devices present."""
    mesh = jax.sharding.get_mesh()
    step, state, inputs = trace_step(experiment_of(model, 2), mesh, jax.default_backend())
    return jax.jit(step, donate_argnums=0).lower(state, inputs).compile()


def decoding_step(model: ModelConfig, weights: Weights) -> Any:
    """Compile what makes one token of a row from a cache of 128."""
    layout = Layout(length=None)  # rows are whole on their device
    cache = jax.eval_shape(lambda: empty_cache(model, layout, 1, 128))

    def step(weights: Weights, token: jax.Array, at: Tokens, cache: Any) -> Any:
        return one_token(weights, token, at, cache, model, layout)

    integer = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    inputs = (weights, jax.ShapeDtypeStruct((1,), jnp.int32), Tokens(integer, integer), cache)
    return jax.jit(step, donate_argnums=3).lower(*inputs).compile()


def decoding_weights(model: ModelConfig) -> Weights:
    """Return weights as decoding lays them out."""
    spec = transformer.spec(model)
    return prepare(jax.jit(lambda: param.initialize(spec, jax.random.key(0), Layout()))(), model, Layout())


def by_turns(builds: dict[int, Callable[[], Any]], *, rounds: int, bound: float) -> tuple[Measured, list[Any]]:
    """Build all points once a round within a bound on seconds; return what was measured, and what the first round built."""
    began, found, built = time.process_time(), [], []
    builds[min(builds)]()  # the first compilation of a process loads the compiler
    for number in range(rounds):
        if number and time.process_time() - began + sum(found[0]) > bound:
            break
        seconds = []
        for build in builds.values():
            jax.clear_caches()
            gc.collect()
            start = time.process_time()
            made = build()
            seconds.append(time.process_time() - start)
            built += [made] if number == 0 else []
        found.append(seconds)
    return Measured(list(builds), found, []), built


def by_depth(builds: dict[int, Callable[[], Any]], quick: bool) -> Measured:
    """Compile a program at several depths."""
    measured, programs = by_turns(builds, rounds=1 if quick else 3, bound=40.0)
    measured.bytes = [int(program.memory_analysis().temp_size_in_bytes) for program in programs]
    return measured


def train_steps(depths: tuple[int, ...], quick: bool, **changes: Any) -> Measured:
    """Compile a model's train step at several depths."""
    return by_depth({depth: partial(train_step, tiny(depth, **changes)) for depth in (depths[:3] if quick else depths)}, quick)


def layers(quick: bool) -> Measured:
    """The train step of 2 to 64 layers that are all alike."""
    return train_steps((2, 4, 8, 16, 32, 64), quick)


def pattern(quick: bool) -> Measured:
    """The train step where every second layer is a mixture and has another kind of attention."""
    changes = {"moe": MoeConfig(num_experts=4, every=2), "attention_pattern": ("sliding", "global"), "sliding_window": 32}
    return train_steps((2, 4, 16, 64), quick, **changes)


def unlike(quick: bool) -> Measured:
    """The train step where the first of all layers is dense, the others mixtures: no part of it repeats from the start."""
    return train_steps((2, 4, 6), quick, moe=MoeConfig(num_experts=4, dense_layers=(0,)))


def decoding(quick: bool) -> Measured:
    """One token's step, whose layers are written out one after the other."""
    depths = (2, 4, 8) if quick else (2, 4, 8, 16, 32)
    models = {depth: tiny(depth).for_platform(jax.default_backend()) for depth in depths}
    return by_depth({depth: partial(decoding_step, model, decoding_weights(model)) for depth, model in models.items()}, quick)


def mesh_over(devices: int) -> MeshConfig:
    """Return a mesh with tensors split over up to four devices, and rows and weights over the others."""
    model = math.gcd(4, devices)
    return MeshConfig(data=devices // model, model=model)


def devices(quick: bool) -> Measured:
    """The train step traced and lowered for 1 to 512 devices that are not there, by JAX alone."""

    def lowered(number: int) -> Any:
        asked = dataclasses.replace(experiment_of(tiny(4, hidden_size=1024), 256), mesh=mesh_over(number))
        sizes = tuple(asked.mesh.shape(number)[axis] for axis in MESH_AXES)
        mesh = AbstractMesh(sizes, MESH_AXES, axis_types=(AxisType.Explicit,) * len(sizes))
        with jax.sharding.use_abstract_mesh(mesh):
            step, state, inputs = trace_step(asked, mesh, "tpu")
            return len(jax.jit(step, donate_argnums=0).trace(state, inputs).lower(lowering_platforms=("tpu",)).as_text())

    builds = {number: partial(lowered, number) for number in ((1, 8, 64) if quick else (1, 4, 16, 64, 256, 512))}
    measured, texts = by_turns(builds, rounds=1 if quick else 3, bound=60.0)
    return dataclasses.replace(measured, bytes=texts, bytes_of="the lowered program's text")


def pods(quick: bool) -> Measured | str:
    """The train step compiled by the TPU's compiler, up to its schedule, for slices of 4 to 256 chips of a v5e."""
    slices = {4: "2x2", 16: "4x4"} if quick else {4: "2x2", 16: "4x4", 64: "8x8", 256: "16x16"}
    if not has_compiler(parse_topology("v5e:2x2", 1)[0]):
        return "the TPU's compiler is not installed: pip install 'jaxlm[plan]'"
    model, found, memory = tiny(8, hidden_size=1024, intermediate_size=4096, num_heads=8, max_length=1024), [], []
    for number in range(1 if quick else 2):
        seconds = []
        for chips, shape in slices.items():
            topology, _ = parse_topology(f"v5e:{shape}", 1)
            with tempfile.TemporaryDirectory(prefix="scaling-") as cache:  # nothing is compiled already
                asked = experiment_of(model, 256, mesh=mesh_over(chips), remat="full")
                asked = dataclasses.replace(asked, data=dataclasses.replace(asked.data, cache=cache))
                facts = compile_for(asked, topology, stage="schedule", out=Console(quiet=True)).facts
            seconds.append(facts["lower_seconds"] + facts["compile_seconds"])
            memory += [facts["host_bytes"]] if number == 0 else []
        found.append(seconds)
    return Measured(list(slices), found, memory, bytes_of="the compiling process's peak")
