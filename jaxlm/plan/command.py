"""`jaxlm plan`: compile an experiment's step for devices that are not there, and say what it would need and take."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxlm.config import difference, to_dict
from jaxlm.data.storage import write_atomically
from jaxlm.errors import PlanError
from jaxlm.experiment import Experiment
from jaxlm.experiment_mesh import settle_mesh
from jaxlm.layout import MESH_AXES, MeshConfig
from jaxlm.plan.compiled import Stage, compile_for
from jaxlm.plan.estimate import estimate
from jaxlm.plan.remedies import find_remedies
from jaxlm.plan.report import as_json, show
from jaxlm.plan.search import Limits, line, table
from jaxlm.plan.search import search as run_search
from jaxlm.plan.topology import Topology, parse_topology
from jaxlm.run.preflight import check_functions


def plan(experiment: Experiment, topology_name: str, slices: int, stage: Stage, output: Path | None) -> None:
    """Print the plan of one experiment on one topology, and write it as JSON to `output`."""
    out, err = _consoles()
    experiment, topology = _asked(experiment, topology_name, slices, (output,), err)
    compiled = compile_for(experiment, topology, stage=stage, out=err)
    estimated = estimate(experiment, compiled, topology) if compiled.costs else None
    remedies = [] if compiled.facts["fits"] else find_remedies(experiment, topology, compiled, err)
    found = as_json(experiment, topology, compiled, estimated, remedies)
    show(found, topology, out)
    if output:
        write_atomically(output, json.dumps(found, indent=2) + "\n")


def search(
    experiment: Experiment, topology_name: str, slices: int, limits: Limits, output: Path | None, winner: Path | None
) -> None:
    """Print the ranking of candidates, write the best one's plan to `output` and its fields as overrides to `winner`."""
    out, err = _consoles()
    experiment, topology = _asked(experiment, topology_name, slices, (output, winner), err)
    found, dropped = run_search(
        experiment, topology, limits, err, lambda result: err.print(f"  {line(result)}", soft_wrap=True)
    )
    out.print(table(found, dropped, experiment))
    best = found[0] if found and found[0].modelled else None
    if best is None and not found and dropped:
        raise PlanError(f"no candidate could be compiled for {topology}; most often: {dropped.most_common(1)[0][0]}")
    if best is None:
        raise PlanError(f"none of {len(found)} candidates fits on {topology}: take more devices, or raise --candidates")
    if output:
        plan = as_json(best.candidate.experiment, topology, best.compiled, best.modelled)
        write_atomically(output, json.dumps(plan, indent=2) + "\n")
    if winner:
        write_atomically(winner, json.dumps(overrides(experiment, best.candidate.experiment), indent=2) + "\n")
        err.print(f"wrote {winner}: jaxlm train EXPERIMENT.py --overrides {winner}")


def _consoles() -> tuple[Console, Console]:
    out = Console(highlight=False)
    out.width = max(out.width, 128)  # flags and lines of source in full
    return out, Console(stderr=True, highlight=False)


def _asked(
    experiment: Experiment, topology_name: str, slices: int, outputs: tuple[Path | None, ...], err: Console
) -> tuple[Experiment, Topology]:
    """Return the experiment with a mesh for the topology that is meant, and that; refuse what cannot be done with either."""
    topology, said = parse_topology(topology_name, slices)
    if said:
        err.print(said)
    for path in outputs:
        _check_output(path)
    check_functions(experiment)
    return for_topology(experiment, topology, err), topology


def for_topology(experiment: Experiment, topology: Topology, err: Console) -> Experiment:
    """Return the experiment with a mesh for these devices: its own, or one that is chosen where its own is for others.

    Says what was chosen, and why. ConfigError where no mesh works.
    """
    sizes = {axis: getattr(experiment.mesh, axis) for axis in MESH_AXES}
    own = math.prod(size for size in sizes.values() if size)
    fits = own == topology.num_devices if sizes["data"] else topology.num_devices % own == 0
    if not experiment.mesh.auto and not fits:
        shape = " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1)
        err.print(f"the mesh {shape} does not make up {topology}: one is chosen, as by --mesh.auto", soft_wrap=True)
        experiment = dataclasses.replace(experiment, mesh=MeshConfig(auto=True))
    choice = settle_mesh(experiment, topology.num_devices, topology.chip, topology.slices)
    for reason in choice.reasons:
        err.print(f"mesh: {reason}", soft_wrap=True)
    return dataclasses.replace(experiment, mesh=dataclasses.replace(experiment.mesh, auto=False, **choice.shape))


def overrides(before: Experiment, after: Experiment) -> dict[str, Any]:
    """Return the fields that differ, nested as `--overrides` reads them."""
    found: dict[str, Any] = {}
    for name, _, value in difference(before, after):
        *parents, last = name.split(".")
        place = found
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = to_dict(value)
    return found


def _check_output(path: Path | None) -> None:
    """Refuse a file that could not be written, before anything is compiled."""
    if path and not path.absolute().parent.is_dir():
        raise PlanError(f"{path} cannot be written: there is no folder {path.absolute().parent}")
