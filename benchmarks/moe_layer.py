"""Measure mixture-of-experts layers against the dense layer of the same active FLOPs, ours and those of PyTorch.

    python benchmarks/moe_layer.py --torch /path/to/torch/python --json out.json
    python benchmarks/moe_layer.py --only top1-capacity --experts 64 --seconds 5

Forward and backward of the whole layer (the input's gradient, the router's and all weights') on 8 x 512 tokens of width 256,
float32, ReLU experts of width 1024, no dropout, in a randomly initialised layer as training finds it. The first form prints
one table: a row for each number of experts, a column for each kind of layer, and in it the layer's throughput over that of
the dense layer of its kind in its own framework: 1 means that routing is free. For each number of experts all layers take
turns (see paired.py), a dense one of every kind among them, and ratios are of neighbours in a round; shown are the median
and, in brackets, the least and the greatest. Tokens dropped over capacity make a layer cheaper, not the dense one.

Columns: top1 (dropless), top1-capacity (1.25 x tokens of a row / experts places), top2 (dropless, against a dense layer of
twice the width); with --torch, a Python that has torch and transformers: those of moe_torch.py, which says what they are.
With --serve one layer is measured on request.
"""

import dataclasses
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import jaxlib
import paired
import record
import tyro
from jax import Array
from machine import processor, threads, usable_cpus
from rich.console import Console
from rich.table import Table
from serving import serve

from jaxlm.layout import Layout, make_mesh
from jaxlm.model import layers, moe
from jaxlm.model.config import ModelConfig
from jaxlm.model.moe_config import MoeConfig
from jaxlm.param import initialize
from jaxlm.run.memory import keep_freed_memory

ROWS, LENGTH, WIDTH, FFN = 8, 512, 256, 1024
WARM_STEPS = 3
# Each kind of layer, and the dense one that does as much a token; the dense ones are columns of their own in no table.
OURS = {"top1": "dense", "top1-capacity": "dense", "top2": "dense-double"}
TORCH = {"switch": "dense", "switch-capacity": "dense", "mixtral": "dense-gated", "mixtral-grouped": "dense-gated"}
# Ours beside the layer of Hugging Face that drops and computes the same.
AGAINST = {
    "jaxlm top1": "torch switch", "jaxlm top1-capacity": "torch switch-capacity", "jaxlm top2": "torch mixtral-grouped"
}  # fmt: skip
BARRED_SIZES = (8, 64)
Kind = Literal["dense", "dense-double", "top1", "top1-capacity", "top2"]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to compare, or with `--only` the one layer to measure."""

    sizes: tuple[int, ...] = (4, 8, 16, 32, 64)  # Numbers of experts, a row of the table each
    torch: Path | None = None  # A Python with torch and transformers: compare with their layers as well
    rounds: int = 7  # Undisturbed rounds of turns wanted for each number of experts
    seconds: float = 1.5  # Length of each measurement
    disturbance: float = 0.2  # Cores that others may use before a round is repeated
    json: Path | None = None  # Write everything measured here
    only: Kind | None = None  # Measure one layer, in this process
    experts: int = 8  # Its number of experts
    serve: bool = False  # Measure it on request from standard input


def layer_of(kind: Kind, experts: int) -> tuple[Any, Callable[[Any, Array], Array]]:
    """Return the parameters' spec and the function of parameters and input [B, L, D] of the product's own layer."""
    k = 2 if kind in ("top2", "dense-double") else 1
    routed = not kind.startswith("dense")
    config = ModelConfig(
        vocab_size=1, num_layers=1, hidden_size=WIDTH, num_heads=1, intermediate_size=FFN if routed else k * FFN,
        activation="relu", compute_dtype="float32",
        moe=MoeConfig(
            num_experts=experts if routed else 0, experts_per_token=k, capacity_factor=1.25 if kind == "top1-capacity" else None
        ),
    ).for_platform(jax.default_backend())  # fmt: skip
    if not routed:
        return layers.mlp_spec(config), lambda p, x: layers.mlp(p, x, config, Layout())
    real, key = jnp.ones((ROWS, LENGTH), bool), jax.random.key(2)

    def routed_layer(p: Any, x: Array) -> Array:
        return moe.moe(p, x, real, 0, config, Layout(), key=key)[0]

    return moe.spec(config), routed_layer


class Bench:
    """A compiled layer with its weights and input, run forward and backward one step at a time."""

    def __init__(self, kind: Kind, experts: int):
        self.kind, self.experts = kind, experts
        spec, layer = layer_of(kind, experts)
        x_key, towards_key = jax.random.split(jax.random.key(1))
        shape = (ROWS, LENGTH, WIDTH)
        self.inputs = initialize(spec, jax.random.key(0), Layout()), jax.random.normal(x_key, shape)
        towards = jax.random.normal(towards_key, shape)

        def step(inputs: Any, before: Any) -> Any:
            return jax.grad(lambda p, x: jnp.sum(layer(p, x) * towards), (0, 1))(*inputs)

        # Gradients go where those of the step before were, as in a train step: fresh memory costs more than computing does.
        self.compiled = jax.jit(step, donate_argnums=1, keep_unused=True).lower(self.inputs, self.inputs).compile()
        self.gradients = jax.tree.map(jnp.zeros_like, self.inputs)
        for _ in range(WARM_STEPS):
            self.step()

    def step(self) -> None:
        """Compute all gradients once."""
        self.gradients = jax.block_until_ready(self.compiled(self.inputs, self.gradients))

    def measure(self, seconds: float) -> dict[str, Any]:
        """Step for about `seconds` and describe the speed, from the median step."""
        times, end = [], time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            start = time.perf_counter()
            self.step()
            times.append(time.perf_counter() - start)
        median, memory = statistics.median(times), self.compiled.memory_analysis()
        return {
            "tokens_per_second": ROWS * LENGTH / median, "step_ms": 1e3 * median, "steps": len(times),
            "temporary_bytes": memory.temp_size_in_bytes if memory else None,
            "program": f"jaxlm {self.kind}", "experts": self.experts, "threads": threads(),
            "versions": {"python": platform.python_version(), "jax": jax.__version__, "jaxlib": jaxlib.__version__},
        }  # fmt: skip


def columns(with_torch: bool) -> dict[str, str]:
    """Return the table's columns, each with the name of its dense reference."""
    found = {f"jaxlm {kind}": f"jaxlm {dense}" for kind, dense in OURS.items()}
    return found | ({f"torch {kind}": f"torch {dense}" for kind, dense in TORCH.items()} if with_torch else {})


def command_of(name: str, experts: int, torch: Path | None) -> str:
    """Return the command that serves the layer of a column or reference."""
    framework, kind = name.split()
    program, python, more = Path(__file__), sys.executable, []
    if framework == "torch":
        program, python, more = program.with_name("moe_torch.py"), str(torch), ["--threads", str(threads())]
    option = "--only" if framework == "jaxlm" else "--layer"
    return shlex.join([python, str(program), option, kind, "--experts", str(experts), *more, "--serve"])


def compare(experts: int, arguments: Arguments) -> paired.Comparison:
    """Let all layers with this many experts, and their references, take turns."""
    wanted = columns(arguments.torch is not None)
    # A reference goes right before the layers that are measured against it.
    names = dict.fromkeys(name for column, dense in wanted.items() for name in (dense, column))
    return paired.compare(
        [(name, command_of(name, experts, arguments.torch)) for name in names],
        rounds=arguments.rounds, seconds=arguments.seconds, disturbance=arguments.disturbance, label=f"{experts} experts",
    )  # fmt: skip


def results_of(experts: int, found: paired.Comparison, wanted: dict[str, str]) -> list[dict[str, Any]]:
    """Return each layer's throughput over its dense layer's in the same round, and ours over Hugging Face's."""
    pairs = [*wanted.items(), *(pair for pair in AGAINST.items() if pair[1] in wanted)]
    return [
        record.compared(
            f"{experts} experts: {name} / {other}", found.values(name), found.values(other), "tokens/s", "higher",
            disturbed=not found.enough,
        )
        for name, other in pairs
    ]  # fmt: skip


def show(found: dict[int, list[dict[str, Any]]], wanted: dict[str, str]) -> None:
    """Print a row for each number of experts and a column for each kind of layer."""
    table = Table("experts", *(f"{name}\n/ {dense.split()[1]}" for name, dense in wanted.items()))
    for experts, results in found.items():
        cells = [f"{each['ratio']:.2f}\n({each['low']:.2f}-{each['high']:.2f})" for each in results[: len(wanted)]]
        table.add_row(str(experts), *cells)
    print(f"{processor()}, {os.cpu_count()} cores, {len(usable_cpus())} used")
    print(
        f"{ROWS} x {LENGTH} tokens, width {WIDTH}, experts of {FFN}; throughput over the dense layer's: median (least-greatest)"
    )
    # Wide enough that no cell wraps, in a file as well.
    Console(width=150).print(table)
    for results in found.values():
        for each in results[len(wanted) :]:
            print(f"{each['name']}: {each['ratio']:.2f} ({each['low']:.2f}-{each['high']:.2f})")


def report(arguments: Arguments) -> int:
    """Compare all sizes, print the table, and return 1 if a layer failed or a bar is missed."""
    wanted, found, rounds, failure = columns(arguments.torch is not None), {}, {}, None
    others: dict[str, str] = {}
    for experts in arguments.sizes:
        comparison = compare(experts, arguments)
        failure = comparison.failure or paired.unlike_threads(comparison)
        if failure:
            break
        rounds[experts], found[experts] = comparison.rounds, results_of(experts, comparison, wanted)
        for answer in comparison.rounds[-1].answers.values():
            others |= {name: version for name, version in answer["versions"].items() if name in ("torch", "transformers")}
    show(found, wanted)
    return record.finish(
        "moe", [each for results in found.values() for each in results], arguments.json, failure=failure,
        judged=set(arguments.sizes) >= set(BARRED_SIZES), lacks=() if arguments.torch else ("torch",), more_versions=others,
        seconds=arguments.seconds, turns={size: [dataclasses.asdict(turn) for turn in turns] for size, turns in rounds.items()},
    )  # fmt: skip


def main() -> int:
    """Compare, or measure one layer once or on request."""
    arguments = tyro.cli(Arguments, description=__doc__)
    if arguments.only is None:
        return report(arguments)
    keep_freed_memory()
    with jax.set_mesh(make_mesh({"data": 1, "model": 1}, jax.devices()[:1])):
        bench = Bench(arguments.only, arguments.experts)
        if arguments.serve:
            serve(bench.measure)
        else:
            print(json.dumps(bench.measure(arguments.seconds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
