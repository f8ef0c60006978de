"""The tables of docs/plans.md: pod experiments on TPU slices that are not there, compiled, never run.

python benchmarks/plans.py                              # every row; rows that are in the cache are not compiled again
python benchmarks/plans.py --only llama_1b --stage schedule
"""

import dataclasses
import math
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from jaxlm.data.storage import write_atomically
from jaxlm.errors import JaxlmError
from jaxlm.experiment import Experiment
from jaxlm.experiment_file import load_experiment
from jaxlm.layout import MESH_AXES, MeshConfig
from jaxlm.plan.compiled import compile_for
from jaxlm.plan.estimate import estimate
from jaxlm.plan.topology import Topology, parse_topology

ROOT = Path(__file__).parents[1]
FILES = ("llama_1b", "llama_8b", "llama_70b", "switch_base", "mixtral_8x7b")
TOPOLOGIES = (("v5e:4x4", 1), ("v5p:4x4x4", 1), ("v6e:16x16", 1), ("v5p:8x8x8", 1), ("v5p:16x16x16", 1), ("v5e:16x16", 4))
BEGIN, END = "<!-- plans: begin -->", "<!-- plans: end -->"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to plan and where to write it."""

    only: tuple[Literal[FILES], ...] = ()
    """Experiments; all by default."""
    topology: tuple[Literal[tuple(name for name, _ in TOPOLOGIES)], ...] = ()
    """Topologies; all by default."""
    stage: Literal["own", "code", "schedule"] = "own"
    """How far to compile; own: to machine code where the file's own mesh fits the slice, to the schedule elsewhere."""
    output: Path = ROOT / "docs" / "plans.md"
    """The document with the table."""


def rows(arguments: Arguments) -> Iterator[tuple[str, Experiment, Topology, str]]:
    """Yield every experiment on every topology, on a mesh that is chosen for it, and how far to compile it."""
    for name in arguments.only or FILES:
        experiment = load_experiment(ROOT / "experiments" / f"{name}.py")
        for topology_name, slices in TOPOLOGIES:
            if not arguments.topology or topology_name in arguments.topology:
                topology, _ = parse_topology(topology_name, slices)
                # The file's own mesh on the pod it names, elsewhere what `--mesh.auto` takes.
                own = math.prod(getattr(experiment.mesh, axis) for axis in MESH_AXES) == topology.num_devices
                changed = experiment if own else dataclasses.replace(experiment, mesh=MeshConfig(auto=True))
                stage = ("code" if own else "schedule") if arguments.stage == "own" else arguments.stage
                yield name, changed, topology, stage


def place_of(name: str, topology: Topology) -> str:
    """Return the first two cells of a row: the experiment and the slices."""
    return f"{name} | {f'{topology.slices} x ' if topology.slices > 1 else ''}{topology.name}"


def row(name: str, experiment: Experiment, topology: Topology, stage: str, out: Console) -> str:
    """Return one row of the table."""
    name_and_place = place_of(name, topology)
    try:
        compiled = compile_for(experiment, topology, stage=stage, label=f"{name} on {topology}", out=out)
    except JaxlmError as fault:
        why = textwrap.shorten(str(fault), 120, placeholder=" ...")
        return f"| {name_and_place} | {topology.num_devices} | refused: {why} | | | | | | |"
    facts = compiled.facts
    mesh = " x ".join(f"{axis} {size}" for axis, size in facts["mesh"].items() if size > 1)
    size = (facts.get("required") or facts["laid_out"]) / 2**30
    memory = f"{size:.2f} of {topology.chip.memory_bytes / 2**30:.2f}"
    head = f"| {name_and_place} | {topology.num_devices} | {mesh} | {memory} |"
    if not compiled.costs:
        return f"{head} does not fit | | | | {facts['compile_seconds']:.0f} |"
    found = estimate(experiment, compiled, topology)
    sent = sum(wire.traffic.wire_bytes for wire in found.wires) / 1e9
    steps = f"{found.overlapped:.3f} – {found.exposed:.3f}"
    shares = f"{100 * found.utilisation(found.exposed):.0f} – {100 * found.utilisation(found.overlapped):.0f} %"
    return f"{head} {sent:.2f} | {steps} | {shares} | {compiled.stage} | {facts['compile_seconds']:.0f} |"


def table_of(document: Path) -> tuple[str, str, str]:
    """Return a document before, between and after the marks; SystemExit where it has none."""
    before, begin, rest = document.read_text().partition(BEGIN)
    there, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{document} lacks the marks {BEGIN} and {END}")
    return before, there, after


def main(arguments: Arguments) -> int:
    """Plan what is asked for, and replace its rows of the table between the document's marks."""
    out = Console(stderr=True, highlight=False)
    lines = [
        "| experiment | slice | devices | mesh | GiB a device | GB sent a device and step | modelled step, s | modelled MFU "
        "| known to | compile, s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    table_of(arguments.output)
    made = {}
    for name, experiment, topology, stage in rows(arguments):
        line = made[place_of(name, topology)] = row(name, experiment, topology, stage, out)
        out.print(line, soft_wrap=True)
    before, there, after = table_of(arguments.output)
    kept = {" | ".join(line.strip("| ").split(" | ")[:2]): line for line in there.splitlines()[3:]}
    places = [place_of(name, parse_topology(*asked)[0]) for name in FILES for asked in TOPOLOGIES]
    lines += [(kept | made)[place] for place in places if place in kept | made]
    write_atomically(arguments.output, "\n".join([before + BEGIN, *lines, END + after]))
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments)))
