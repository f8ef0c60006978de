"""What is run to see how a step's cost grows: with the length of a row, the number of experts, the size of the vocabulary.

Everything is forward and backward, on the devices present, in the types and with the kernels that the product picks there.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.scaling_fit import Measured, take_turns
from jaxlm.data.packing import Batch
from jaxlm.layout import Layout
from jaxlm.model import moe, transformer
from jaxlm.model.config import ModelConfig
from jaxlm.model.moe_config import MoeConfig
from jaxlm.objective import language_model
from jaxlm.ops.cross_entropy import cross_entropy
from jaxlm.param import initialize

# Seconds that the runs of one law may take in all.
BOUND = 240.0


class Program:
    """A compiled gradient and its inputs; called, it computes them once."""

    def __init__(self, loss: Callable[..., Any], inputs: tuple[Any, ...], over: tuple[int, ...]):
        def gradients(before: Any, *inputs: Any) -> Any:
            return jax.grad(loss, over)(*inputs)

        # Gradients go where those of the run before were, as in a train step: fresh memory costs more than computing does.
        before = tuple(inputs[place] for place in over)
        compiled = jax.jit(gradients, donate_argnums=0, keep_unused=True).lower(before, *inputs).compile()
        self.temporary = int(compiled.memory_analysis().temp_size_in_bytes)
        self.compiled, self.inputs, self.over, self.before = compiled, inputs, over, None

    def __call__(self) -> None:
        """Compute the gradients once."""
        if self.before is None:
            self.before = jax.tree.map(jnp.zeros_like, tuple(self.inputs[place] for place in self.over))
        self.before = jax.block_until_ready(self.compiled(self.before, *self.inputs))


def run_all(programs: dict[int, Program], *, quick: bool, steepest: float) -> Measured:
    """Let programs take turns, and say where the bound on seconds stopped them."""
    rounds, bound = (1, 20.0) if quick else (3, BOUND)
    reached, seconds = take_turns(programs, rounds=rounds, bound=bound, steepest=steepest)
    note = "" if len(reached) == len(programs) else f"stopped at {reached[-1]:,}: the next would pass {bound:g} s"
    return Measured(reached, seconds, [programs[x].temporary for x in reached], note=note, wanted=max(programs))


def random_rows(rows: int, length: int, vocab: int) -> Batch:
    """Return a batch of random tokens, each row one document, on the current mesh."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, vocab, (rows, length + 1), np.int32)
    one, place = np.ones((rows, length), np.int32), np.arange(length, dtype=np.int32)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], one.astype(np.float32), one, np.broadcast_to(place, one.shape).copy())
    return jax.device_put(batch, jax.NamedSharding(jax.sharding.get_mesh(), jax.P()))


def length(quick: bool) -> Measured:
    """A model of two layers, one head of 64, over one row of 1k to 64k tokens."""
    programs = {}
    for size in (256, 1024, 4096) if quick else (1024, 4096, 16_384, 32_768, 65_536):
        model = ModelConfig(
            vocab_size=256, num_layers=2, hidden_size=64, num_heads=1, intermediate_size=128, max_length=size
        ).for_platform(jax.default_backend())
        spec = transformer.spec(model)
        params = jax.jit(lambda spec=spec: initialize(spec, jax.random.key(0), Layout()))()

        def loss(params: Any, batch: Batch, model: ModelConfig = model) -> jax.Array:
            return language_model.loss(params, batch, model, Layout())[0]

        programs[size] = Program(loss, (params, random_rows(1, size, 256)), (0,))
    return run_all(programs, quick=quick, steepest=2.0)


def experts(quick: bool) -> Measured:
    """A mixture of 1 to 128 experts, each token to one: 8 x 512 tokens of width 256, experts of 1,024, capacity factor 1.25."""
    programs = {}
    width, rows, tokens = (64, 2, 128) if quick else (256, 8, 512)
    for number in (1, 2, 4, 8) if quick else (1, 2, 4, 8, 16, 32, 64, 128):
        model = ModelConfig(
            vocab_size=1, num_layers=1, hidden_size=width, num_heads=1, intermediate_size=4 * width, activation="relu",
            moe=MoeConfig(num_experts=number, capacity_factor=1.25),
        ).for_platform(jax.default_backend())  # fmt: skip
        spec = moe.spec(model)
        params = jax.jit(lambda spec=spec: initialize(spec, jax.random.key(0), Layout()))()
        shape = (rows, tokens, width)
        x, towards = (jax.random.normal(jax.random.key(1 + n), shape, jnp.dtype(model.compute_dtype)) for n in range(2))

        def loss(params: Any, x: jax.Array, towards: jax.Array, model: ModelConfig = model) -> jax.Array:
            real, key = jnp.ones(x.shape[:2], bool), jax.random.key(3)
            return jnp.sum(moe.moe(params, x, real, 0, model, Layout(), key=key)[0] * towards)

        programs[number] = Program(loss, (params, x, towards), (0, 1))
    return run_all(programs, quick=quick, steepest=0.5)


def vocabulary(quick: bool) -> Measured:
    """The head and its cross-entropy over 8k to 256k entries: 8 x 512 tokens, so wide that few heads fit a cache."""
    programs, rows, tokens, width = {}, 8, 512, 256
    sizes = (1024, 2048, 4096, 8192) if quick else [2**power for power in range(13, 19)]
    dtype = jnp.dtype(ModelConfig(
        vocab_size=1, num_layers=1, hidden_size=width, num_heads=1, intermediate_size=1
    ).for_platform(jax.default_backend()).compute_dtype)  # fmt: skip
    for size in sizes:
        keys = jax.random.split(jax.random.key(0), 3)
        x, head = jax.random.normal(keys[0], (rows, tokens, width), dtype), jax.random.normal(keys[1], (size, width))
        targets = jax.random.randint(keys[2], (rows, tokens), 0, size)

        def loss(x: jax.Array, head: jax.Array, targets: jax.Array) -> jax.Array:
            return cross_entropy(x, head, targets, jnp.ones(targets.shape, jnp.float32))[0]

        programs[size] = Program(loss, (x, head, targets), (0, 1))
    found = run_all(programs, quick=quick, steepest=1.0)
    # Logits of the whole batch in float32, of which a quarter is allowed.
    found.most_bytes = None if quick else 4 * rows * tokens * found.x[-1] // 4
    return found
