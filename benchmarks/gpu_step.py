"""The train step of `jaxlm train` at the shapes of benchmarks/gpu_shapes.py, measured on one device."""

import collections
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np

from benchmarks.gpu_shapes import Shape
from jaxlm.data.packing import Batch
from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.experiment import Experiment
from jaxlm.layout import make_mesh
from jaxlm.model import transformer
from jaxlm.model.config import ModelConfig
from jaxlm.model.flops import peak_flops, train_flops_per_token
from jaxlm.model.moe_config import MoeConfig
from jaxlm.param import count
from jaxlm.run.programs import make_step
from jaxlm.train.optimizer import OptimizerConfig, make_optimizer
from jaxlm.train.step import init_state

HOST_BATCHES = 4
WARM_STEPS = 5
DOCUMENT = 512  # tokens of a document, where rows are packed
PROFILED_STEPS = 3


def experiment_of(shape: Shape, length: int, rows: int, remat: str = "none") -> Experiment:
    """Return the experiment whose step is measured: AdamW, clipping, the guard and all metrics on."""
    model = ModelConfig(
        vocab_size=shape.vocab, num_layers=shape.layers, hidden_size=shape.width, num_heads=shape.heads,
        num_kv_heads=shape.kv_heads, head_dim=shape.head_size, intermediate_size=shape.ffn, max_length=length,
        rope_theta=shape.theta, moe=MoeConfig(num_experts=shape.experts, every=2) if shape.experts else MoeConfig(),
    )  # fmt: skip
    data = DataConfig(sequence_length=length, tokenizer=TokenizerConfig(kind="byte", vocab_size=min(259, shape.vocab)))
    optimizer = OptimizerConfig(learning_rate=3e-4, warmup_steps=100)
    return Experiment(
        name="gpu",
        steps=5000,
        batch_size=rows,
        model=model,
        data=data,
        optimizer=optimizer,
        remat=remat,  # type: ignore[arg-type]
    )


class Bench:
    """A compiled step with its state, taken again and again; to be made and used under the mesh of one device."""

    def __init__(self, shape: Shape, length: int, *, rows: int = 0, packed: bool = False, remat: str = "none"):
        self.length, self.rows, self.packed = length, rows or shape.rows(length), packed
        experiment = experiment_of(shape, length, self.rows, remat)
        self.device, self.metrics, self.steps = jax.devices()[0], {}, 0
        self.model = experiment.model.for_platform(self.device.platform)
        spec = transformer.spec(self.model)
        optimizer = make_optimizer(experiment.optimizer, experiment.steps, spec)
        self.parameters = count(spec)
        self.sharding = jax.NamedSharding(jax.sharding.get_mesh(), experiment.layout.spec("batch", None))
        self.batches = [self._draw(seed) for seed in range(HOST_BATCHES)]
        self.state = jax.jit(lambda: init_state(spec, optimizer, experiment.layout, 0))()
        step = make_step(experiment, self.model, spec, optimizer)
        start = time.perf_counter()
        self.compiled = jax.jit(step, donate_argnums=0).lower(self.state, self._inputs()).compile()
        self.compile_seconds = time.perf_counter() - start
        for _ in range(WARM_STEPS):
            self.step()
        self.wait()

    def _draw(self, seed: int) -> Batch:
        """Return rows of random tokens: one document each, or packed of equal ones that attention keeps apart."""
        tokens = np.random.default_rng(seed).integers(0, self.model.vocab_size, (self.rows, self.length + 1), np.int32)
        place = np.broadcast_to(np.arange(self.length, dtype=np.int32), (self.rows, self.length))
        each = min(DOCUMENT, max(1, self.length // 2))
        segments, positions = (place // each + 1, place % each) if self.packed else (None, place.copy())
        return Batch(tokens[:, :-1].copy(), tokens[:, 1:].copy(), np.ones(place.shape, np.float32), segments, positions)

    def _inputs(self) -> tuple[Batch, None, None]:
        return jax.device_put(self.batches[self.steps % HOST_BATCHES], self.sharding), None, None

    def step(self) -> None:
        """Dispatch one step, then wait for the one before, as the training loop does."""
        before = self.metrics
        self.state, self.metrics = self.compiled(self.state, self._inputs())
        self.steps += 1
        if before:
            float(before["loss"])

    def wait(self) -> None:
        """Return when every dispatched step is done."""
        jax.block_until_ready((self.state, self.metrics))

    def measure(self, seconds: float) -> dict[str, Any]:
        """Train for about `seconds` and describe the median step."""
        times, end = [], time.perf_counter() + seconds
        last = time.perf_counter()
        while len(times) < 3 or last < end:
            self.step()
            now = time.perf_counter()
            times.append(now - last)
            last = now
        self.wait()
        step, tokens = statistics.median(times), self.rows * self.length
        flops, peak = train_flops_per_token(self.model, self.length), peak_flops(self.device.device_kind)
        memory = self.compiled.memory_analysis()
        return {
            "program": "jaxlm", "tokens_per_second": tokens / step, "step_ms": 1e3 * step, "steps": len(times),
            "parameters": self.parameters, "flops_per_token": flops, "mfu": flops * tokens / step / peak if peak else None,
            "peak_bytes": (self.device.memory_stats() or {}).get("peak_bytes_in_use"),
            "temporary_bytes": memory.temp_size_in_bytes if memory else None, "compile_seconds": self.compile_seconds,
            "loss": float(self.metrics["loss"]), "rows": self.rows, "length": self.length, "packed": self.packed,
            "kernel": self.model.attention_kernel, "dtype": self.model.compute_dtype, "device": self.device.device_kind,
            "versions": {"python": platform.python_version(), "jax": jax.__version__, "jaxlib": jaxlib.__version__},
        }  # fmt: skip

    def profile(self, folder: Path) -> list[dict[str, Any]]:
        """Write a trace of a few steps, for TensorBoard or Perfetto, and return what kernels took most time in them."""
        with jax.profiler.trace(str(folder)):
            for _ in range(PROFILED_STEPS):
                self.step()
            self.wait()
        newest = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
        return kernels(jax.profiler.ProfileData.from_file(str(newest)), PROFILED_STEPS)


def kernels(trace: Any, steps: int) -> list[dict[str, Any]]:
    """Return, from the longest on, milliseconds a step, calls a step and share of each kernel in a trace.

    Kernels are what the streams of a GPU ran; on a processor, what XLA's threads did.
    """
    gpus = [plane for plane in trace.planes if plane.name.startswith("/device:GPU")]
    if gpus:
        lines = [line for plane in gpus for line in plane.lines if line.name.startswith("Stream")]
    else:
        lines = [line for plane in trace.planes for line in plane.lines if "XLA" in line.name]
    seconds: collections.Counter[str] = collections.Counter()
    calls: collections.Counter[str] = collections.Counter()
    for line in lines:
        for event in line.events:
            seconds[event.name] += event.duration_ns / 1e9
            calls[event.name] += 1
    total = sum(seconds.values())
    return [
        {"kernel": name, "ms": 1e3 * spent / steps, "calls": calls[name] / steps, "share": spent / total}
        for name, spent in seconds.most_common()
        if spent
    ]


def run(
    shape: Shape, length: int, seconds: float, *, rows: int = 0, packed: bool = False, remat: str = "none",
    profile: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure one shape on the first device, and profile it where asked."""
    with jax.set_mesh(make_mesh({}, jax.devices()[:1])):
        bench = Bench(shape, length, rows=rows, packed=packed, remat=remat)
        found = bench.measure(seconds)
        if profile:
            found["kernels"] = bench.profile(profile)[:20]
    return found
