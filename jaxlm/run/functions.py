"""A run's functions of the user's own: kept for people to read, and found again where the run is read."""

from pathlib import Path

from jaxlm.data.storage import write_atomically
from jaxlm.errors import CheckpointError, ConfigError
from jaxlm.experiment import Experiment
from jaxlm.function_file import UntrustedError, contents, load, names_function, parse

FOLDER = "functions"


def named(experiment: Experiment) -> dict[str, str]:
    """Return the fields that name a function of a file, and what they name."""
    model = experiment.model
    values = {"model.positions": model.positions, "model.moe.router": model.moe.router, "objective": experiment.objective}
    return {field: value for field, value in values.items() if names_function(value)}


def keep_functions(folder: Path, experiment: Experiment) -> None:
    """Write the files of the functions to RUN/functions/DIGEST/, for people: nothing is ever run from there."""
    for value in named(experiment).values():
        for name, content in contents(parse(value).file).items():
            path = folder / FOLDER / parse(value).digest / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)


def find_functions(folder: Path, experiment: Experiment, *, objective: bool = False) -> None:
    """Load what the model of a run is made with and, where it is needed, its objective.

    CheckpointError where a file is not there, or not as it was, with where it is kept, and where the user has not named it.
    """
    for field, value in named(experiment).items():
        if field == "objective" and not objective:
            continue
        try:
            load(value)
        except UntrustedError as fault:
            raise CheckpointError(f"{field} of {folder}: {fault}") from fault
        except ConfigError as fault:
            file, _, digest = parse(value)
            kept = folder / FOLDER / digest / file.name
            there = (
                f". {kept} is how it was; nothing is run from a run's directory: read it, and copy it to {file} if you trust it"
            )
            raise CheckpointError(f"{field} of {folder}: {fault}{there if kept.is_file() else ''}") from fault
