"""The train step on a GPU beside PyTorch's: tokens/s, model FLOPs utilisation, peak memory.

    python -m benchmarks.gpu --torch /path/to/torch/python --json out.json
    python -m benchmarks.gpu --shapes 1b --lengths 2048 --profile trace
    python -m benchmarks.gpu --tiny                   # tiny shapes on the processor: does it run?

Llama-shaped models of 125M, 350M and 1B parameters and a Switch model of 350M's active size (gpu_shapes.py), bfloat16, rows of
2k and 8k tokens, one device. Ours is the whole step of `jaxlm train`, guard and metrics and all (gpu_step.py); beside it, where
`--torch` names a Python that has it, a step with torch.compile and scaled_dot_product_attention (gpu_torch.py), of as many
parameters and FLOPs and with a residual stream of the same type, which is checked. What is compared takes turns, Switch and the
dense 350M too, each in a process of its own with the whole device, and ratios are of neighbours in a round. Rows are one
document each, as PyTorch's are; 1B is measured packed as well, as our training has it, with four documents and more apart in a
row.

`--profile` writes a trace of a few steps and prints the kernels that took most of them. Targets on one H100: 1B at 55 % of the
peak or more and 1.05 times PyTorch's tokens/s or more; Switch at 0.75 of 350M's tokens/s or more. The exit status is 1 where
one of the shapes asked for is missed or was not measured, or something failed; else 3 where targets beside PyTorch were not
measured for want of `--torch`; and 2 where there is no GPU: then nothing was begun.

Results: none yet. No number of this script has been measured on a GPU.
"""

import dataclasses
import datetime
import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.gpu_results import DENSE, Case, missed, results_of, targets
from benchmarks.gpu_shapes import LENGTHS, SHAPES, TINY_LENGTHS
from benchmarks.machine import machine, since, sources, uncached, usable_cpus, versions
from jaxlm.data.storage import write_atomically

ROOT = Path(__file__).parents[1]
KERNELS_SHOWN = 12


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to measure."""

    shapes: tuple[Literal["125m", "350m", "1b", "switch"], ...] = ("125m", "350m", "1b", "switch")
    """Models."""
    lengths: tuple[int, ...] = LENGTHS
    """Tokens of a row."""
    torch: Path | None = None
    """A Python with torch: compare with it."""
    rounds: int = 3
    """Turns of each program."""
    seconds: float = 15.0
    """Length of each measurement."""
    rows: int = 0
    """Rows of a step; 0: as many as make up the shape's tokens."""
    remat: Literal["none", "dots", "full"] = "none"
    """What our backward pass computes anew."""
    profile: Path | None = None
    """Write traces of our step below this folder, and print its longest kernels."""
    tiny: bool = False
    """Tiny shapes on the processor, no targets: whether the script runs."""
    json: Path | None = None
    """Write everything measured here."""
    within: str = ""
    """Measure one case (a JSON object) in this process; what the program asks of itself."""


def gpus() -> list[str]:
    """Return the names of NVIDIA's devices here, as the driver tells them; nothing is allocated on any."""
    tool = shutil.which("nvidia-smi")
    if not tool:
        return []
    asked = subprocess.run([tool, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=False)
    return asked.stdout.split("\n")[:-1] if asked.returncode == 0 else []


def why_not() -> str:
    """Return in a line why nothing can be measured here, or an empty text."""
    if not gpus():
        return "there is no NVIDIA GPU here (nvidia-smi names none)"
    if not any(importlib.util.find_spec(f"jax_plugins.xla_cuda{version}") for version in (12, 13)):
        return "there is a GPU, but JAX has no plugin for it: pip install 'jaxlm[cuda]'"
    return ""


def groups(arguments: Arguments) -> list[list[Case]]:
    """Return what is measured, in groups that take turns: Switch beside its dense shape, 1B packed beside itself."""
    shapes, lengths = (("tiny-switch",), TINY_LENGTHS) if arguments.tiny else (arguments.shapes, arguments.lengths)
    found = []
    for shape in shapes:
        if shape in (DENSE.get(other) for other in shapes):
            continue  # measured beside its Switch model
        for length in lengths:
            case = Case(shape, length)
            before = [Case(DENSE[shape], length)] if shape in DENSE else []
            found.append([*before, case, *([dataclasses.replace(case, packed=True)] if shape == "1b" else [])])
    return found


def ours(case: Case, arguments: Arguments, profile: Path | None) -> dict[str, Any]:
    """Measure our step in a process of its own."""
    asked = dataclasses.asdict(case) | {"profile": str(profile) if profile else ""}
    passed = ["--seconds", str(arguments.seconds), "--rows", str(arguments.rows), "--remat", arguments.remat]
    environment = {"JAX_PLATFORMS": "cpu"} if arguments.tiny else {}
    command = [sys.executable, "-m", "benchmarks.gpu", "--within", json.dumps(asked), *passed]
    return answer(command, environment)


def theirs(case: Case, arguments: Arguments, dtype: str) -> dict[str, Any]:
    """Measure PyTorch's step, its stream in a type, in a process of its own."""
    command = [str(arguments.torch), str(ROOT / "benchmarks" / "gpu_torch.py"), "--shape", case.shape]
    command += ["--length", str(case.length), "--rows", str(arguments.rows), "--seconds", str(arguments.seconds)]
    command += ["--dtype", dtype]
    return answer([*command, *(["--device", "cpu", "--eager"] if arguments.tiny else [])], {})


def answer(command: Sequence[str], environment: dict[str, str]) -> dict[str, Any]:
    """Run a program and return the JSON object on the last line of its output; RuntimeError where it fails."""
    environment = uncached() | environment
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} ... ended with status {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def check_equal(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Raise RuntimeError where the two programs do not compute as much: a ratio of their speeds would mean nothing."""
    for what in ("parameters", "flops_per_token", "rows", "length"):
        if abs(a[what] - b[what]) > 1e-9 * abs(a[what]):
            raise RuntimeError(f"ours and PyTorch's differ in {what}: {a[what]:,} and {b[what]:,}")
    if a["dtype"] != b["dtype"]:
        raise RuntimeError(f"ours and PyTorch's differ in the type of the residual stream: {a['dtype']} and {b['dtype']}")


def measure(group: Sequence[Case], arguments: Arguments) -> dict[Case, list[dict[str, dict[str, Any]]]]:
    """Let the programs of all cases of a group take turns; return each case's answers, a dict a round."""
    rounds: dict[Case, list[dict[str, dict[str, Any]]]] = {case: [] for case in group}
    for number in range(arguments.rounds):
        for case in group:
            folder = arguments.profile / case.name.replace(", ", "-").replace(" ", "-") if arguments.profile else None
            turn = {"jaxlm": ours(case, arguments, folder if number == 0 else None)}
            if arguments.torch and not SHAPES[case.shape].experts and not case.packed:
                turn["torch"] = theirs(case, arguments, turn["jaxlm"]["dtype"])
                check_equal(turn["jaxlm"], turn["torch"])
            rounds[case].append(turn)
            speeds = "  ".join(f"{name} {found['tokens_per_second']:,.0f}" for name, found in turn.items())
            print(f"{case.name}: round {number + 1}: {speeds} tokens/s", file=sys.stderr, flush=True)
    return rounds


def show(measured: dict[Case, list[dict[str, dict[str, Any]]]], results: Sequence[dict[str, Any]], out: Console) -> None:
    """Print a line for every program of every case, the ratios, and the longest kernels."""
    table = Table("case", "program", "tokens/s", "step, ms", "MFU", "peak, GiB", "intermediate, GiB", "compile, s")
    for case, rounds in measured.items():
        for name in rounds[0]:
            last, peak = rounds[-1][name], rounds[-1]["jaxlm"]["mfu"]
            speed = statistics.median(turn[name]["tokens_per_second"] for turn in rounds)
            # Both compute as much a token, so that utilisation goes with speed.
            share = peak * speed / rounds[-1]["jaxlm"]["tokens_per_second"] if peak else None
            step = f"{1e3 * last['rows'] * last['length'] / speed:,.1f}"
            memory = ["" if not last.get(key) else f"{last[key] / 2**30:.2f}" for key in ("peak_bytes", "temporary_bytes")]
            compiled = f"{last['compile_seconds']:.0f}" if "compile_seconds" in last else ""
            used = "" if share is None else f"{share:.1%}"
            table.add_row(case.name, last["program"], f"{speed:,.0f}", step, used, *memory, compiled)
    out.print(table)
    for each in results:
        if each["ratio"] is not None:
            out.print(f"{each['name']}: {each['ratio']:.3f} ({each['low']:.3f} to {each['high']:.3f})")
    for case, rounds in measured.items():
        for each in rounds[0]["jaxlm"].get("kernels", [])[:KERNELS_SHOWN]:
            times = f"{each['share']:6.1%} {each['ms']:9.3f} ms a step, {each['calls']:6.1f} calls"
            out.print(f"{case.name}: {times}: {each['kernel'][:80]}", soft_wrap=True, markup=False)


def measure_within(arguments: Arguments) -> int:
    """Measure one case in this process and print its JSON."""
    from benchmarks.gpu_step import run

    asked = json.loads(arguments.within)
    found = run(
        SHAPES[asked["shape"]], asked["length"], arguments.seconds, rows=arguments.rows, packed=asked["packed"],
        remat=arguments.remat, profile=Path(asked["profile"]) if asked["profile"] else None,
    )  # fmt: skip
    print(json.dumps(found), flush=True)
    return 0


def main(arguments: Arguments) -> int:
    """Measure, print, and return 1 where a target is missed, 2 where there is no GPU, 3 where some were not measured."""
    if arguments.within:
        return measure_within(arguments)
    reason = "" if arguments.tiny else why_not()
    if reason:
        print(f"nothing was measured: {reason}. With --tiny the script runs on the processor.", file=sys.stderr)
        return 2
    if arguments.tiny:
        arguments = dataclasses.replace(arguments, rounds=1, seconds=min(arguments.seconds, 0.5))
    source = sources()
    asked, lacks = groups(arguments), () if arguments.torch else ("torch",)
    measured: dict[Case, list[dict[str, dict[str, Any]]]] = {}
    failures = []
    for group in asked:
        try:
            measured |= measure(group, arguments)
        except RuntimeError as fault:
            failures.append(str(fault))
    results, every = results_of(measured), [case for group in asked for case in group]
    show(measured, results, Console(width=140, highlight=False))
    faults = [*missed(results, every, lacks), *failures]
    not_run = [name for name, (_, needs) in targets(every).items() if needs in lacks]
    if arguments.json:
        record = {
            "part": "gpu", "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "machine": machine(),
            "gpus": gpus(), "versions": versions(), "threads": len(usable_cpus()), **since(source), "tiny": arguments.tiny,
            "results": results, "turns": {case.name: rounds for case, rounds in measured.items()}, "missed": faults,
            "not_run": not_run,
        }  # fmt: skip
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(arguments.json, json.dumps(record, indent=1) + "\n")
    for each in faults:
        print(f"FAILED: {each}", file=sys.stderr)
    for each in not_run:
        print(f"{each}: not measured, no --torch was given", file=sys.stderr)
    return 1 if faults else 3 if not_run else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, description=__doc__)))
