"""Commands about experiments: training them, showing them, and their data."""

from __future__ import annotations  # `Experiment` is resolved when a command that has one is parsed

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from jaxlm.commands.arguments import Fields, File, RunFolder, check_least
from jaxlm.commands.start import start_jax

if TYPE_CHECKING:
    from jaxlm.experiment import Experiment


def train(
    file: File,
    experiment: Annotated[Experiment, Fields],
    run_dir: Annotated[
        Path | None, arg(help="Where the run lives, runs/NAME by default; a run that is there is continued.")
    ] = None,
    allow_config_change: Annotated[bool, arg(help="Continue a run although its configuration has changed.")] = False,
) -> None:
    """Train, or continue, an experiment; every field of it can be changed here."""
    start_jax(experiment.mesh.cpu_devices, join=True)
    from jaxlm.run.goodput import Clock, process_age
    from jaxlm.run.loop import train as run

    folder = run_dir or Path("runs") / experiment.name
    run(experiment, folder, allow_config_change=allow_config_change, clock=Clock(process_age()))


def show(
    file: File,
    experiment: Annotated[Experiment, Fields],
    devices: Annotated[int, arg(help="Devices to lay the model over; 0: those present.")] = 0,
) -> None:
    """Show an experiment: fields, parameters by part, costs, and where each weight lives and why; or how a run stands."""
    check_least(0, devices=devices)
    start_jax(experiment.mesh.cpu_devices)
    from jaxlm.run.show import show_experiment

    show_experiment(experiment, devices)


def show_run(run: RunFolder) -> None:
    """Show how a run stands: its newest results and checkpoints, its starts, and where their time went."""
    from jaxlm.run.status import show_run as show

    show(run)


def diff(
    left: Positional[Annotated[Path, arg(metavar="A", help="An experiment file or a run.")]],
    right: Positional[Annotated[Path, arg(metavar="B", help="Another.")]],
) -> None:
    """Show the fields in which two experiments or runs differ."""
    from jaxlm.run.show import show_difference

    show_difference(left, right)


def data_prepare(
    file: File,
    experiment: Annotated[Experiment, Fields],
    workers: Annotated[int, arg(help="Processes that encode; 0: one a core.")] = 0,
) -> None:
    """Tokenise and pack an experiment's data, once; `jaxlm train` does the same where it is missing."""
    check_least(0, workers=workers)
    from jaxlm.run.data import prepare_data

    prepare_data(experiment, workers or None)


def data_show(
    file: File,
    experiment: Annotated[Experiment, Fields],
    rows: Annotated[int, arg(help="How many rows.")] = 2,
    first: Annotated[int, arg(help="The first row.")] = 0,
    split: Literal["train", "validation"] = "train",
) -> None:
    """Print rows as the model reads them, decoded; of conversations and pairs, token by token with what the loss counts."""
    from jaxlm.run.data import show_data

    show_data(experiment, split, first, rows)


def data_tokenizer(
    file: File,
    output: Positional[Annotated[Path, arg(metavar="OUT.model", help="The file to write.")]],
    experiment: Annotated[Experiment, Fields],
) -> None:
    """Train an experiment's tokenizer on its sources, and write it to a file of its own."""
    from jaxlm.run.data import save_tokenizer

    save_tokenizer(experiment, output)
