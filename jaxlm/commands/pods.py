"""Commands for more than this machine: plans, launched runs."""

from __future__ import annotations  # `Experiment` and `Target` are resolved when a command that has one is parsed

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from jaxlm.commands.arguments import Fields, File, RunFolder
from jaxlm.errors import JaxlmError

if TYPE_CHECKING:
    from typing import Any as Target  # of the place that `--on` names

    from jaxlm.experiment import Experiment


def plan(
    file: File,
    experiment: Annotated[Experiment, Fields],
    topology: Annotated[
        str, arg(help="Devices: v5e:4x4, v5p:4x4x4 (chips along each side of a slice), a product (v5p-128), h100:8.")
    ],
    slices: Annotated[int, arg(help="How many such slices; `mesh.replica` takes a multiple of it.")] = 1,
    stage: Annotated[
        Literal["code", "schedule"] | None,
        arg(
            help="How far to compile: to machine code, which estimates cycles, or in seconds to the schedule, which does not; "
            "None: code. A search chooses by itself."
        ),
    ] = None,
    json: Annotated[Path | None, arg(metavar="FILE", help="Write the plan there as JSON.")] = None,
    search: Annotated[bool, arg(help="Try meshes, remat and accumulation, and rank what fits by modelled step time.")] = False,
    budget: Annotated[float | None, arg(help="Of a search: seconds after which nothing new is compiled; None: 1200.")] = None,
    candidates: Annotated[int | None, arg(help="Of a search: how many candidates to compile; None: 12.")] = None,
    capacity_factors: Annotated[tuple[float, ...], arg(help="Of a search: capacity factors to try.")] = (),
    output: Annotated[
        Path | None, arg(metavar="FILE", help="Of a search: write the winner's fields there, for `--overrides FILE`.")
    ] = None,
) -> None:
    """Compile an experiment's step for TPUs or GPUs that are not there: memory, traffic, modelled step time, what to change."""
    from jaxlm.plan import command

    if output and not search:
        raise JaxlmError("--output is where a search writes its winner: add --search, or write the plan with --json FILE")
    asked = {"budget": budget, "candidates": candidates, "capacity_factors": capacity_factors or None}
    asked = {name: value for name, value in asked.items() if value is not None}
    if asked and not search:
        raise JaxlmError(f"--{next(iter(asked)).replace('_', '-')} is of a search: add --search, or leave it out")
    if search and stage:
        raise JaxlmError("--stage is of a plan alone, a search compiles as far as it needs: leave out --stage or --search")
    if search:
        limits = command.Limits(**asked)
        command.search(experiment, topology, slices, limits, json, output)
    else:
        command.plan(experiment, topology, slices, stage or "code", json)


def launch(
    file: File,
    experiment: Annotated[Experiment, Fields],
    target: Annotated[Target, Fields],
    on: Annotated[
        Literal["local", "slurm", "tpu-vm", "gke", "xpk"], arg(help="Where; `--on slurm --help` lists that target's options.")
    ] = "local",
    run_dir: Annotated[
        Path | None, arg(help="Where the run lives, runs/NAME by default; a run that is there is continued.")
    ] = None,
    dry_run: Annotated[bool, arg(help="Show the files and commands, and touch nothing.")] = False,
    allow_config_change: Annotated[bool, arg(help="Continue a run although its configuration has changed.")] = False,
) -> None:
    """Train, or continue, an experiment with many processes: here, on Slurm, Cloud TPU VMs or Kubernetes."""
    from jaxlm.launch.start import launch as start

    place = run_dir or Path("runs") / experiment.name
    start(experiment, target, place, dry_run=dry_run, allow_config_change=allow_config_change)


def jobs(
    folder: Positional[Annotated[Path, arg(metavar="FOLDER", help="The folder that holds the runs.")]] = Path("runs"),
) -> None:
    """List launched runs, with the state that the scheduler gives of each now."""
    from jaxlm.launch.jobs import list_jobs

    list_jobs(folder)


def jobs_tail(run: RunFolder) -> None:
    """Follow the output of a launched run."""
    from jaxlm.launch.jobs import tail_job

    tail_job(run)


def jobs_cancel(run: RunFolder) -> None:
    """Stop a launched run; what it has saved stays."""
    from jaxlm.launch.jobs import cancel_job

    cancel_job(run)
