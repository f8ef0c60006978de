"""Time and memory of Self-Extend in two passes, against plain attention over rows of the same length.

    python benchmarks/long_attention.py --json out.json
    python benchmarks/long_attention.py --lengths 1024 2048 --rounds 1 --seconds 0.5      # does it run?
    python benchmarks/long_attention.py --only two-pass --length 8192                     # one alone

What is measured is what a layer does between its products with weights: queries and keys are rotated and tokens mixed, as
`model.transformer.mixer` has it, at SmolLM2 135M's shape: 9 query heads, 3 key-value heads of 64, batch 1, on this machine's
processor in float32, groups of 8 and a window of 1,024. At each length the forms take turns (see paired.py) and the ratio is of
neighbours in a round; shown are the median and, in brackets, the least and the greatest. The dense form, one softmax over the
merged row, joins in at the first length alone: its memory is quadratic.

Memory is what the compiled program sets aside for intermediate results, and by how much the process's peak grew when it first
ran. Exponents are slopes of log memory against log length, by least squares. The exit status is 1 where two passes take more
of plain attention's time than bars.json allows, or their memory grows faster.
"""

import dataclasses
import json
import os
import platform
import resource
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jaxlib
import numpy as np
import paired
import record
import tyro
from jax import Array
from machine import processor
from rich.console import Console
from rich.table import Table
from scaling_fit import fit
from serving import serve

from jaxlm.layout import make_mesh
from jaxlm.model import transformer
from jaxlm.model.config import ModelConfig
from jaxlm.model.rope_config import SelfExtend
from jaxlm.ops.masks import Tokens
from jaxlm.ops.positions import rotate
from jaxlm.run.memory import keep_freed_memory

HEADS, KV_HEADS, SIZE, TRAINED = 9, 3, 64, 8192
GROUP, WINDOW = 8, 1024
BARRED_LENGTHS = (4096, 16_384)
Form = Literal["plain", "two-pass", "dense"]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to compare, or with `--only` the one form to measure."""

    lengths: tuple[int, ...] = (4096, 8192, 16_384, 32_768)  # Tokens of a row, a line of the table each
    rounds: int = 3  # Undisturbed rounds of turns wanted at each length; beyond 16,384 tokens one, which takes a minute
    seconds: float = 2.0  # Length of each measurement; one run of a form at least
    disturbance: float = 0.2  # Cores that others may use before a round is repeated
    json: Path | None = None  # Write everything measured here
    only: Form | None = None  # Measure one form, in this process
    length: int = 4096  # Its length
    serve: bool = False  # Measure it on request from standard input


class Bench:
    """One form, compiled for rows of one length, and its inputs."""

    def __init__(self, form: Form, length: int):
        jax.set_mesh(make_mesh({}, jax.devices()[:1]))
        extend = SelfExtend(group_size=GROUP, window_size=WINDOW, original_length=TRAINED)
        config = ModelConfig(
            vocab_size=1, num_layers=1, hidden_size=HEADS * SIZE, num_heads=HEADS, num_kv_heads=KV_HEADS, intermediate_size=1,
            max_length=length, rope_theta=100_000.0, compute_dtype="float32",
            attention_kernel="plain" if form == "dense" else "blocked",
            self_extend=SelfExtend() if form == "plain" else extend,
        )  # fmt: skip

        def mixed(q: Array, k: Array, v: Array, at: Tokens) -> Array:
            rope, attend = transformer.mixer(at, "global", config)
            return attend(*((rotate(x, *rope) for x in (q, k)) if rope else (q, k)), v)

        rng = np.random.default_rng(0)
        arrays = [rng.standard_normal((1, length, heads, SIZE), np.float32) for heads in (HEADS, KV_HEADS, KV_HEADS)]
        at = Tokens(np.arange(length, dtype=np.int32)[None], np.ones((1, length), np.int32))
        self.form, self.length = form, length
        self.inputs = jax.device_put((*arrays, at))
        self.compiled = jax.jit(mixed).lower(*self.inputs).compile()
        before = peak_bytes()
        self.step()
        self.peak_growth = peak_bytes() - before

    def step(self) -> None:
        """Mix one row."""
        jax.block_until_ready(self.compiled(*self.inputs))

    def measure(self, seconds: float) -> dict[str, Any]:
        """Run for about `seconds` and describe the median run."""
        times, end = [], time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            start = time.perf_counter()
            self.step()
            times.append(time.perf_counter() - start)
        median = statistics.median(times)
        return {
            "tokens_per_second": self.length / median, "milliseconds": 1e3 * median, "runs": len(times),
            "temporary_bytes": self.compiled.memory_analysis().temp_size_in_bytes, "peak_growth_bytes": self.peak_growth,
            "program": f"jaxlm {self.form} attention", "length": self.length,
            "versions": {"python": platform.python_version(), "jax": jax.__version__, "jaxlib": jaxlib.__version__},
        }  # fmt: skip


def peak_bytes() -> int:
    """Return the most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def compare(length: int, forms: tuple[Form, ...], arguments: Arguments) -> paired.Comparison:
    """Let the forms take turns at one length."""
    fixed = [sys.executable, __file__, "--length", str(length), "--serve"]
    rounds = arguments.rounds if length <= max(BARRED_LENGTHS) else 1
    return paired.compare(
        [(form, shlex.join([*fixed, "--only", form])) for form in forms],
        rounds=rounds, seconds=arguments.seconds, disturbance=arguments.disturbance, label=f"{length} tokens",
    )  # fmt: skip


def summarise(rounds: list[paired.Round]) -> dict[str, dict[str, Any]]:
    """Return what each form took at one length: milliseconds, their ratio to plain attention's, and memory."""
    found = {}
    for form, answer in rounds[-1].answers.items():
        times = [turn.answers[form]["milliseconds"] for turn in rounds]
        plain = [turn.answers["plain"]["milliseconds"] for turn in rounds]
        found[form] = {
            "milliseconds": paired.spread(times),
            "ratio_to_plain": paired.spread([a / b for a, b in zip(times, plain, strict=True)]),
            "temporary_bytes": answer["temporary_bytes"],
            "peak_growth_bytes": answer["peak_growth_bytes"],
        }
    return found


def exponent(found: dict[int, dict[str, dict[str, Any]]], form: Form, what: str) -> float | None:
    """Return the slope of log memory against log length, None of fewer than two lengths."""
    points = [(length, forms[form][what]) for length, forms in found.items() if forms[form][what] > 0]
    return fit(*zip(*points, strict=True)).exponent if len(points) > 1 else None


def show(found: dict[int, dict[str, dict[str, Any]]], exponents: dict[str, dict[str, float | None]]) -> None:
    """Print a line for each length and form, and how memory grows."""
    table = Table("tokens", "form", "ms", "/ plain", "intermediate MiB", "peak grew by MiB")
    for length, forms in found.items():
        for form, each in forms.items():
            ratio, memory = each["ratio_to_plain"], (each["temporary_bytes"], each["peak_growth_bytes"])
            table.add_row(
                str(length), form, f"{each['milliseconds']['median']:.0f}",
                f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})", *(f"{size / 2**20:.1f}" for size in memory),
            )  # fmt: skip
    Console().print(table)
    for form, each in exponents.items():
        grows = ", ".join(f"{what} {value:.2f}" for what, value in each.items() if value is not None)
        if grows:
            print(f"memory of {form} grows as length to the power of: {grows}")


def results_of(comparisons: dict[int, paired.Comparison], grows: float | None) -> list[dict[str, Any]]:
    """Return what is judged: two passes over plain attention at each length, and how their memory grows."""
    results = [
        record.compared(
            f"two passes / plain attention, {length} tokens", found.values("two-pass", "milliseconds"),
            found.values("plain", "milliseconds"), "ms", "lower", disturbed=not found.enough,
        )
        for length, found in comparisons.items()
    ]  # fmt: skip
    if grows is not None:
        results.append(record.measured("two passes: memory grows as length to the power of", [grows], "", "lower"))
    return results


def report(arguments: Arguments) -> int:
    """Compare at all lengths, print what was found, and return 1 if a form failed or a bar is missed."""
    comparisons, failure = {}, None
    for place, length in enumerate(arguments.lengths):
        comparison = compare(length, ("plain", "two-pass", *(("dense",) if place == 0 else ())), arguments)
        failure = comparison.failure
        if failure:
            break
        comparisons[length] = comparison
    found = {length: summarise(comparison.used) for length, comparison in comparisons.items()}
    memory = {"intermediate": "temporary_bytes", "peak": "peak_growth_bytes"}
    exponents = {form: {name: exponent(found, form, what) for name, what in memory.items()} for form in ("plain", "two-pass")}
    print(f"{processor()}, {os.cpu_count()} cores")
    show(found, exponents)
    shape = {"heads": HEADS, "kv_heads": KV_HEADS, "head_dim": SIZE, "group_size": GROUP, "window_size": WINDOW}
    return record.finish(
        "long-context", results_of(comparisons, exponents["two-pass"]["intermediate"]), arguments.json, failure=failure,
        judged=set(arguments.lengths) >= set(BARRED_LENGTHS), shape=shape, summary=found, exponents=exponents,
        turns={length: [dataclasses.asdict(turn) for turn in each.rounds] for length, each in comparisons.items()},
    )  # fmt: skip


def main(arguments: Arguments) -> int:
    """Compare, serve, or measure once."""
    if not arguments.only:
        return report(arguments)
    jax.config.update("jax_platforms", "cpu")
    keep_freed_memory()
    bench = Bench(arguments.only, arguments.length)
    if arguments.serve:
        serve(bench.measure)
    else:
        print(json.dumps(bench.measure(arguments.seconds), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, description=__doc__)))
