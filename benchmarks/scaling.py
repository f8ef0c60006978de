"""Laws of our own cost: how time and memory grow, each with its exponent fitted and held against a bar.

    python -m benchmarks.scaling --json out.json
    python -m benchmarks.scaling length experts       # these alone
    python -m benchmarks.scaling --quick              # does it run? smaller sizes, no bars

Every law is measured in a process of its own, its points in turn, from the smallest on; times are medians over rounds. An
exponent is the slope of log cost against log size by least squares, with its standard error, from the size on that the bar
names. Besides, the last two points must not be steeper than twice the exponent's bar and 0.3, nor than one above it; a line
needs three points, and a law whose last size was not reached within its bound is "not shown". The exit status is 1 where a bar
is not kept, or a law is not shown or could not be measured. Nothing is compiled already: JAX's persistent cache is off. What
the laws are of stands in scaling_programs.py, scaling_compile.py and scaling_host.py.

With `--stored FILE` the laws that are not named come, dated, from a record of an earlier full run, judged by today's bars; one
that is not in it is a failure. `python -m benchmarks.scaling --json docs/benchmarks/scaling.json` makes that record: a quarter
of an hour on two quiet cores.
"""

import contextlib
import dataclasses
import datetime
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine, processor, since, sources, uncached, usable_cpus, versions
from benchmarks.scaling_fit import Bar, Measured, judge
from jaxlm.data.storage import write_atomically
from jaxlm.errors import ConfigError, suggest


@dataclasses.dataclass(frozen=True)
class Law:
    """Where a law is measured, module and function, of what, and its bar."""

    module: str
    function: str
    x_label: str
    bar: Bar


LAWS = {
    "length": Law("scaling_programs", "length", "tokens of a row", Bar(
        "attention compares every token with those before it, so time may be quadratic; its logits are never kept whole, so "
        "memory must be linear", seconds=2.1, bytes=1.1, start=4096)),
    "experts": Law("scaling_programs", "experts", "experts", Bar(
        "a token visits one expert however many there are, so products do not grow; weights read and gradients written do, "
        "linearly, and are what is left to grow. Every expert over every token would be 1", seconds=0.5, bytes=0.5)),
    "vocabulary": Law("scaling_programs", "vocabulary", "entries", Bar(
        "one product with the head each way; of the logits a chunk is alive at a time, a quarter of the batch's at most",
        seconds=1.1, bytes=1.1)),
    "layers": Law("scaling_compile", "layers", "layers", Bar(
        "layers are scanned: the program is of one, however many there are. What is kept for the backward pass is of all",
        seconds=0.15, bytes=1.1)),
    "layers, pattern of two": Law("scaling_compile", "pattern", "layers", Bar(
        "the scan is over the pattern's period", seconds=0.15, bytes=1.1, start=4)),
    "layers, first one unlike": Law("scaling_compile", "unlike", "layers", Bar(
        "what does not repeat is written out, layer after layer: no worse than linear", seconds=1.1)),
    "layers, decoding": Law("scaling_compile", "decoding", "layers", Bar(
        "written out, as a scan would copy every layer's part of the cache at each token: no worse than linear", seconds=1.1)),
    "devices": Law("scaling_compile", "devices", "devices", Bar(
        "one program for all devices: its text and the time that JAX takes to make it do not depend on how many there are",
        seconds=0.15, bytes=0.15)),
    "devices, TPU compiler": Law("scaling_compile", "pods", "chips", Bar(
        "the same, of what the TPU's compiler takes until it has its schedule", seconds=0.15, bytes=0.15)),
    "index": Law("scaling_host", "index", "runs", Bar(
        "every run is read once", seconds=1.1, bytes=1.1, start=100)),
    "index, unchanged": Law("scaling_host", "index_unchanged", "runs", Bar(
        "every run is looked at once", seconds=1.1, bytes=1.1, start=100)),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to measure and where to write it."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Laws; all by default."""
    quick: bool = False
    """Smaller sizes, one round, and bars that are shown but not held: whether everything runs."""
    json: Path | None = None
    """Write everything measured here."""
    stored: Path | None = None
    """The record of an earlier full run, to take the laws that are not named from."""
    within: str = ""
    """Measure one law in this process and write it to `--json`; what the program asks of itself."""


def chosen(names: tuple[str, ...]) -> list[str]:
    """Return the laws of these names, all by default, or raise ConfigError with the nearest ones."""
    for name in names:
        if name not in LAWS:
            raise ConfigError(f"there is no law {name!r}.{suggest(name, LAWS)} Known: {'; '.join(LAWS)}")
    return list(dict.fromkeys(names)) or list(LAWS)


def measure_within(name: str, quick: bool, output: Path) -> None:
    """Measure one law in this process, on one device."""
    import jax

    from jaxlm.layout import make_mesh
    from jaxlm.run.memory import keep_freed_memory

    keep_freed_memory()
    law = LAWS[name]
    measure = getattr(importlib.import_module(f"benchmarks.{law.module}"), law.function)
    # Devices that are not there have meshes of their own, which cannot be entered within another.
    own = law.function in ("devices", "pods")
    with contextlib.nullcontext() if own else jax.set_mesh(make_mesh({}, jax.devices()[:1])):
        found: Measured | str = measure(quick)
    write_atomically(output, json.dumps({"not": found} if isinstance(found, str) else dataclasses.asdict(found)))


def measure_apart(name: str, quick: bool) -> Measured | str:
    """Measure one law in a process of its own; return why not, in words, where its measurement needs what is not installed."""
    with tempfile.TemporaryDirectory(prefix="scaling-") as folder:
        output = Path(folder) / "law.json"
        command = [sys.executable, "-m", "benchmarks.scaling", "--within", name, "--json", str(output)]
        environment = uncached() | {"TF_CPP_MIN_LOG_LEVEL": "2"}
        status = subprocess.run(
            [*command, *(["--quick"] if quick else [])], cwd=Path(__file__).parents[1], env=environment, check=False
        ).returncode
        if status:
            raise RuntimeError(f"the law of {name} could not be measured: its process ended with status {status}")
        found = json.loads(output.read_text())
    return found["not"] if "not" in found else Measured(**found)


def number(value: float) -> str:
    """Return a size in three digits: 4096 is 4.1k."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def show(laws: list[dict[str, Any]], out: Console) -> None:
    """Print a line for every law, then its points."""
    table = Table("law", "from", "to", "time grows", "at most", "memory grows", "at most", "")
    for law in laws:
        cells = []
        for what in ("seconds", "bytes"):
            exponent, error, most = law[f"exponent_{what}"], law[f"exponent_{what}_error"], law["bar"][what]
            cells.append("?" if exponent is None else f"{exponent:.2f}" + ("" if error is None else f" ± {error:.2f}"))
            cells.append("" if most is None else f"{most:g}")
        table.add_row(law["name"], *(number(law["x"][end]) for end in (0, -1)), *cells, verdict(law))
    out.print(table)
    for law in laws:
        points = zip(law["x"], law["seconds"], law["bytes"], strict=True)
        said = "  ".join(f"{number(x)}: {s:.3g} s" + ("" if b is None else f", {b / 2**20:.3g} MiB") for x, s, b in points)
        out.print(f"{law['name']} ({law['x_label']}; bytes of {law['bytes_of']}): {said}", soft_wrap=True)
        if law["note"]:
            out.print(f"    {law['note']}", soft_wrap=True)


def verdict(law: Mapping[str, Any]) -> str:
    """Return what a law is worth: kept, missed, or not shown up to where it was asked for."""
    said = "kept" if law["passed"] else "MISSED" if any(law["faults"].values()) else "not shown"
    return said + (f" ({law['measured']['when'][:10]})" if "measured" in law else "")


def read_stored(file: Path, names: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return laws from the record of an earlier full run, judged by today's bars, and a sentence for each that it lacks."""
    try:
        before = json.loads(file.read_text())
        there = {} if before["quick"] else {law["name"]: law for law in before["laws"]}
    except (OSError, ValueError, KeyError, TypeError):
        before, there = {}, {}
    laws, lacking = [], []
    for name in names:
        try:
            fields = {field.name: there[name][field.name] for field in dataclasses.fields(Measured)}
        except KeyError:
            lacking.append(f"{name}: not measured, and not in {file.name}; `python -m benchmarks.scaling` makes that record")
            continue
        law = judge(name, LAWS[name].x_label, Measured(**fields), LAWS[name].bar)
        laws.append(law | {"measured": {"when": before["when"], "commit": before["commit"]}})
    return laws, lacking


def record(
    laws: list[dict[str, Any]],
    absent: Mapping[str, str],
    failures: list[str],
    quick: bool,
    seconds: float,
    source: dict[str, str],
) -> dict[str, Any]:
    """Return everything measured, as it is written."""
    return {
        "part": "scaling", "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "quick": quick,
        "seconds": round(seconds, 1), "machine": machine(), "versions": versions(), "threads": len(usable_cpus()),
        **since(source), "laws": laws, "not_measured": dict(absent), "failures": list(failures),
        "results": [],
    }  # fmt: skip


def main(arguments: Arguments) -> int:
    """Measure, print, and return 1 where a bar is not kept."""
    if arguments.within:
        measure_within(arguments.within, arguments.quick, arguments.json)
        return 0
    try:
        names = chosen(arguments.names)
    except ConfigError as fault:
        sys.exit(f"error: {fault}")
    out, began, laws, source = Console(width=140, highlight=False), time.perf_counter(), [], sources()
    absent: dict[str, str] = {}
    failures: list[str] = []
    for name in names:
        started, law = time.perf_counter(), LAWS[name]
        try:
            measured = measure_apart(name, arguments.quick)
        except RuntimeError as fault:
            failures.append(str(fault))
            continue
        if isinstance(measured, str):
            absent[name] = measured
        else:
            laws.append(judge(name, law.x_label, measured, law.bar))
            said = ", ".join(f"{what} {laws[-1][f'exponent_{what}']}" for what in ("seconds", "bytes"))
            print(f"{name}: exponents of {said}", file=sys.stderr, flush=True)
        print(f"{name}: took {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    if arguments.stored and not arguments.quick:
        earlier, lacking = read_stored(arguments.stored, [name for name in LAWS if name not in names])
        laws, failures = laws + earlier, failures + lacking
    out.print(f"{processor()}, {os.cpu_count()} cores, {len(usable_cpus())} used")
    show(laws, out)
    for name, why in absent.items():
        out.print(f"{name}: not measured, {why}", soft_wrap=True)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        found = record(laws, absent, failures, arguments.quick, time.perf_counter() - began, source)
        write_atomically(arguments.json, json.dumps(found, indent=1, allow_nan=False) + "\n")
    if not arguments.quick:
        failures += [each for law in laws for each in law["missed"]]
    for each in failures:
        print(f"FAILED: {each}", file=sys.stderr)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, description=__doc__)))
