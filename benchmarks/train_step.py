"""Measure the real train step, guard and metrics and all, on whatever devices are present.

    python benchmarks/train_step.py --preset 125m --length 1024 --batch 32
    python benchmarks/train_step.py --nanogpt small --devices 2 --json out.json

Batches of random tokens come from the host at every step, as in the training loop; steps are dispatched ahead and their
metrics read one step behind. The median is over windows of half a second or so. With --serve the program prints `ready` once
warm and answers lines `measure SECONDS`, so that `paired.py` can let it take turns with others.
"""

import dataclasses
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jaxlib
import numpy as np
import tyro
from drawn import drawn_params
from machine import threads
from rich.console import Console
from rich.table import Table
from serving import serve

from jaxlm.data.packing import Batch
from jaxlm.errors import ConfigError
from jaxlm.layout import Layout, MeshConfig, make_mesh
from jaxlm.model import transformer
from jaxlm.model.config import ModelConfig
from jaxlm.model.flops import peak_flops, train_flops_per_token
from jaxlm.model.presets import PRESETS
from jaxlm.objective import language_model
from jaxlm.param import check_layout, count
from jaxlm.run.memory import keep_freed_memory
from jaxlm.train.optimizer import OptimizerConfig, make_optimizer, schedule
from jaxlm.train.step import GuardConfig, init_state, make_train_step

# layers, width, heads, length, batch: the shapes that nanogpt_torch.py is compared at, vocabulary 65.
NANOGPT = {"small": (4, 128, 4, 64, 12), "large": (6, 384, 6, 256, 8)}
# The shape that llama_torch.py is compared at: it has the same numbers.
LLAMA = ModelConfig(
    vocab_size=8192, num_layers=6, hidden_size=256, num_heads=4, num_kv_heads=2, intermediate_size=704, max_length=256,
    norm_epsilon=1e-6,
)  # fmt: skip
LLAMA_ROWS = 8
WARM_STEPS = 5
HOST_BATCHES = 16  # drawn once and sent in turn, so that drawing costs nothing
SCHEDULE_STEPS = 5000


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to run and how to measure it."""

    preset: Literal[tuple(PRESETS)] = "nano"  # The model's shape
    nanogpt: Literal["small", "large"] | None = None  # Instead of a preset: nanoGPT's model, at a shape of NANOGPT
    llama: bool = False  # Instead of a preset: LLAMA, with the weights that llama_torch.py draws
    layers: int | None = None  # Override the shape's number of layers
    width: int | None = None  # Override its width; the feed-forward layer keeps its proportion to it
    heads: int | None = None  # Override its query heads; key-value heads are then as many
    vocab: int | None = None  # Override its vocabulary
    length: int | None = None  # Tokens of a row; by default the model's longest, up to 1024
    batch: int | None = None  # Rows of a batch, over all devices; by default 8 a device
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # Of activations and matrix products
    kernel: Literal["auto", "plain", "blocked", "cudnn", "splash"] = "auto"  # Of attention
    remat: Literal["none", "dots", "full"] = "none"  # What the backward pass computes anew
    segments: bool = True  # Rows of packed documents, kept apart in attention; without, a row is one document
    model_axis: int = 1  # Devices of tensor parallelism; the others are data-parallel
    layout: Layout = dataclasses.field(default_factory=Layout)  # `--layout.embed None` keeps parameters whole (no FSDP)
    devices: int = 1  # Virtual devices made of a CPU; on a GPU or TPU all devices are used
    seconds: float = 10.0  # Length of the measurement
    keep_memory: bool = True  # Let the allocator keep freed memory, on Linux with glibc
    json: Path | None = None  # Write everything measured here
    serve: bool = False  # Measure on request from standard input


def model_and_batch(arguments: Arguments, num_devices: int) -> tuple[ModelConfig, int, int]:
    """Return the model, the length of a row and the rows of a batch."""
    length, batch = arguments.length, arguments.batch
    if arguments.nanogpt:
        layers, width, heads, full, rows = NANOGPT[arguments.nanogpt]
        length, batch = length or full, batch or rows
        model = ModelConfig(
            vocab_size=65, num_layers=layers, hidden_size=width, num_heads=heads, intermediate_size=4 * width,
            max_length=length, activation="gelu", norm="layer", positions="learned",
        )  # fmt: skip
    elif arguments.llama:
        model, length, batch = LLAMA, length or LLAMA.max_length, batch or LLAMA_ROWS
    else:
        model = PRESETS[arguments.preset]()
        length, batch = length or min(model.max_length, 1024), batch or 8 * num_devices
    changes: dict[str, Any] = {
        "compute_dtype": arguments.dtype, "attention_kernel": arguments.kernel, "max_length": max(length, model.max_length),
    }  # fmt: skip
    given = {"num_layers": arguments.layers, "vocab_size": arguments.vocab}
    changes |= {field: value for field, value in given.items() if value}
    if arguments.heads:
        changes.update(num_heads=arguments.heads, num_kv_heads=arguments.heads, head_dim=0)
    if arguments.width:
        ffn = model.intermediate_size * arguments.width // model.hidden_size
        changes.update(hidden_size=arguments.width, intermediate_size=ffn, head_dim=0)
    return dataclasses.replace(model, **changes).for_platform(jax.default_backend()), length, batch


class Trainer:
    """A compiled train step with its state, advanced one step at a time."""

    def __init__(self, arguments: Arguments):
        self.devices = jax.devices()
        self.model, self.length, self.batch = model_and_batch(arguments, len(self.devices))
        shape = MeshConfig(model=arguments.model_axis).shape(len(self.devices))
        spec, optimization = transformer.spec(self.model), OptimizerConfig(warmup_steps=100, learning_rate=1e-3)
        check_layout(spec, arguments.layout, shape)
        if self.batch % shape["data"]:
            raise ConfigError(f"batch = {self.batch} does not divide into {shape['data']} data-parallel devices")
        self.parameters, self.steps, self.metrics = count(spec), 0, {}
        optimizer = make_optimizer(optimization, SCHEDULE_STEPS, spec)

        def loss_of(params: Any, batch: Any, key: Any) -> Any:
            if not arguments.segments:
                batch = batch._replace(segments=None)
            return language_model.loss(params, batch, self.model, arguments.layout, remat=arguments.remat)

        rate = schedule(optimization, SCHEDULE_STEPS)
        step = make_train_step(loss_of, spec, optimizer, rate, GuardConfig())
        mesh = make_mesh(shape, self.devices)
        self.sharding = jax.NamedSharding(mesh, arguments.layout.spec("batch", None))
        self.host_batches = [self._draw(seed) for seed in range(HOST_BATCHES)]
        with jax.set_mesh(mesh):
            self.state = jax.jit(lambda: init_state(spec, optimizer, arguments.layout, 0))()
            if arguments.llama:
                placed = jax.tree.map(
                    lambda x, like: jax.device_put(x, like.sharding), drawn_params(self.model), self.state.params
                )
                self.state = self.state.replace(params=placed)
            lowered = jax.jit(step, donate_argnums=0).lower(self.state, self._next_batch())
            start = time.perf_counter()
            self.compiled = lowered.compile()
        self.compile_seconds = time.perf_counter() - start
        self.step()
        self.first_loss = float(self.metrics["loss"])
        for _ in range(WARM_STEPS):
            self.step()
        self.wait()

    def _draw(self, seed: int) -> Batch:
        """Return one batch of random tokens, each row one document."""
        shape = (self.batch, self.length)
        drawn = np.random.default_rng(seed).integers(0, self.model.vocab_size, (self.batch, self.length + 1), np.int32)
        return Batch(
            tokens=drawn[:, :-1].copy(), targets=drawn[:, 1:].copy(), weights=np.ones(shape, np.float32),
            segments=np.ones(shape, np.int32), positions=np.broadcast_to(np.arange(self.length, dtype=np.int32), shape).copy(),
        )  # fmt: skip

    def _next_batch(self) -> Batch:
        return jax.device_put(self.host_batches[self.steps % HOST_BATCHES], self.sharding)

    def step(self) -> None:
        """Dispatch one step, then wait for the one before."""
        before = self.metrics
        self.state, self.metrics = self.compiled(self.state, self._next_batch())
        self.steps += 1
        if before:
            float(before["loss"])

    def wait(self) -> None:
        """Return when every dispatched step is done."""
        jax.block_until_ready((self.state, self.metrics))

    def measure(self, seconds: float) -> dict[str, Any]:
        """Train for about `seconds` and describe the speed; the median is over windows of whole steps."""
        tokens, window_seconds, speeds, first_step = self.batch * self.length, min(0.5, seconds / 5), [], self.steps
        start = window_start = time.perf_counter()
        window_first = first_step
        while True:
            self.step()
            now = time.perf_counter()
            if now - window_start >= window_seconds:
                speeds.append((self.steps - window_first) * tokens / (now - window_start))
                window_start, window_first = now, self.steps
                if now - start >= seconds:
                    break
        self.wait()
        return self.describe(speeds, self.steps - first_step, time.perf_counter() - start)

    def describe(self, speeds: list[float], steps: int, seconds: float) -> dict[str, Any]:
        """Return everything worth knowing about a measurement, for JSON."""
        median, tokens, device = statistics.median(speeds), self.batch * self.length, self.devices[0]
        flops = median * train_flops_per_token(self.model, self.length)
        peak, memory = peak_flops(device.device_kind), self.compiled.memory_analysis()
        return {
            "tokens_per_second": median, "tokens_per_second_min": min(speeds), "tokens_per_second_max": max(speeds),
            "tokens_per_second_mean": steps * tokens / seconds, "step_ms": 1e3 * tokens / median,
            "model_flops_per_second": flops, "step_flops": tokens * train_flops_per_token(self.model, self.length),
            "mfu": flops / (peak * len(self.devices)) if peak else None,
            "temporary_bytes": memory.temp_size_in_bytes if memory else None,
            "argument_bytes": memory.argument_size_in_bytes if memory else None,
            "device_peak_bytes": (device.memory_stats() or {}).get("peak_bytes_in_use"),
            "compile_seconds": self.compile_seconds, "windows": len(speeds), "steps": steps, "seconds": seconds,
            "loss": float(self.metrics["loss"]), "first_loss": self.first_loss,
            "parameters": self.parameters, "batch": self.batch, "length": self.length,
            "device": f"{len(self.devices)} x {device.device_kind}", "model": dataclasses.asdict(self.model),
            "program": "jaxlm train step", "threads": threads(),
            "versions": {"python": platform.python_version(), "jax": jax.__version__, "jaxlib": jaxlib.__version__},
        }  # fmt: skip


def show(found: dict[str, Any]) -> None:
    """Print the measurement as a table."""

    def mebibytes(size: int | None) -> str:
        return "unknown" if size is None else f"{size / 2**20:,.1f} MiB"

    table = Table("", "", show_header=False)
    speed, low, high = (found[f"tokens_per_second{part}"] for part in ("", "_min", "_max"))
    table.add_row("devices", found["device"])
    table.add_row("parameters", f"{found['parameters']:,}")
    table.add_row("batch", f"{found['batch']} x {found['length']} tokens")
    table.add_row("tokens/s", f"{speed:,.0f}  ({low:,.0f} to {high:,.0f} over {found['windows']} windows)")
    table.add_row("step", f"{found['step_ms']:,.2f} ms")
    table.add_row("model FLOP/s", f"{found['model_flops_per_second'] / 1e12:,.3f} T")
    table.add_row("MFU", "unknown peak" if found["mfu"] is None else f"{found['mfu']:.1%}")
    table.add_row("temporary memory a device", mebibytes(found["temporary_bytes"]))
    table.add_row("arguments a device", mebibytes(found["argument_bytes"]))
    table.add_row("peak, as the device tells", mebibytes(found["device_peak_bytes"]))
    table.add_row("compile", f"{found['compile_seconds']:.1f} s")
    Console().print(table)


def main() -> None:
    """Warm up, then measure once or on request."""
    arguments = tyro.cli(Arguments, description=__doc__)
    if arguments.keep_memory:
        keep_freed_memory()
    jax.config.update("jax_num_cpu_devices", arguments.devices)
    try:
        trainer = Trainer(arguments)
    except ConfigError as error:
        sys.exit(f"error: {error}")
    if not arguments.serve:
        found = trainer.measure(arguments.seconds)
        show(found)
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(found, indent=1) + "\n")
        return
    serve(trainer.measure)


if __name__ == "__main__":
    main()
