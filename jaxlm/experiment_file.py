"""An experiment read from its file: Python that returns one, or a resolved configuration; every fault with its place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxlm.config import from_dict, read_json, to_dict
from jaxlm.errors import ConfigError, suggest
from jaxlm.experiment import Experiment
from jaxlm.module_file import beside, placed, run_file


def apply_overrides(experiment: Experiment, path: Path) -> Experiment:
    """Return the experiment with the fields that a JSON file names changed, nested as in a run's config.json.

    Raises ConfigError, with the file, for one that cannot be read, for fields that do not exist and values that do not suit.
    """
    try:
        changes = read_json(path.read_bytes())
        return from_dict(Experiment, _merge(to_dict(experiment), changes))
    except OSError as fault:
        raise ConfigError(f"--overrides {path} cannot be read: {fault.strerror}") from fault
    except ValueError as fault:
        raise ConfigError(f"--overrides {path} {fault}") from fault
    except ConfigError as fault:
        raise ConfigError(f"--overrides {path}: {fault}") from fault


def _merge(fields: Any, changes: Any) -> Any:
    if not (isinstance(fields, dict) and isinstance(changes, dict)):
        return changes
    return fields | {name: _merge(fields.get(name), change) for name, change in changes.items()}


def load_experiment(path: Path) -> Experiment:
    """Run an experiment file and return what its `experiment()` returns; every fault is a ConfigError with its place.

    `FILE.py:NAME` calls another function of the file, for example a variant of the same experiment for a pod. A `.json` file
    is a resolved configuration, as a run directory holds it; nothing is run.
    """
    if path.suffix == ".json" and path.is_file():
        return _load_resolved(path)
    found, path, name = call_function(path, "experiment", "an Experiment")
    if not isinstance(found, Experiment):
        raise ConfigError(f"{name}() in {path} returned a {type(found).__name__}, not an Experiment")
    return found


def call_function(
    path: Path, name: str, returns: str, take: Callable[[Any], Any] = lambda found: found
) -> tuple[Any, Path, str]:
    """Run a file of Python and return what its function `name` returns, the file's path and the function's name.

    `FILE.py:NAME` calls another function of the file. `returns` says what is expected of it, in words; `take` is applied to
    what it returned while faults still get their place in the file: of a generator they come only then.
    """
    if not path.is_file() and ".py:" in path.name:
        file, name = path.name.rsplit(":", 1)
        path = path.with_name(file)
    if (path / "config.json").is_file() and (path / "run.json").is_file():
        raise ConfigError(f"{path} is a run, not an experiment file: {path / 'config.json'} --run-dir {path} continues it")
    if not path.is_file():
        near = [p for p in path.parent.iterdir() if p.suffix in (".py", ".json")] if path.parent.is_dir() else []
        raise ConfigError(f"no experiment file {path}.{suggest(path.name, [p.name for p in near])}")
    module = run_file(path)
    if not callable(getattr(module, name, None)):
        near = suggest(name, [n for n, value in vars(module).items() if callable(value)])
        raise ConfigError(f"{path} defines no function {name}() that returns {returns}.{near}")
    try:
        with beside(path.parent.absolute()):  # experiments build on their neighbours
            return take(getattr(module, name)()), path, name
    except Exception as fault:
        raise placed(fault, path) from fault


def _load_resolved(path: Path) -> Experiment:
    try:
        values = read_json(path.read_bytes())
    except OSError as fault:
        raise ConfigError(f"{path} cannot be read: {fault.strerror}") from fault
    except ValueError as fault:
        raise ConfigError(f"{path} {fault}") from fault
    try:
        return from_dict(Experiment, values)
    except ConfigError as fault:
        raise ConfigError(f"{path} is not a configuration of this version of jaxlm: {fault}") from fault
