"""Where a trial's run lives: a folder named after everything that decides its result."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxlm.config import flatten
from jaxlm.data.data_config import DataConfig
from jaxlm.data.prepare import data_key
from jaxlm.experiment import FREE_FIELDS, Experiment
from jaxlm.function_file import identity
from jaxlm.run.sources import code_digest
from jaxlm.train.checksums import CHECKSUMS
from jaxlm.train.saved import saved_steps

RUNS = "trials"  # the folder, beside the sweeps' own, of the runs that all sweeps share
_RECIPE, CODE = 10, 6  # hexadecimal digits of a run's name that stand for what was asked, and for the code that did it


def digest(experiment: Experiment, code: str | None = None, keys: dict[DataConfig, str] | None = None) -> str:
    """Return the 16 hexadecimal digits that name a trial's run: ten of what is asked (`recipe`), six of the code.

    `code` is `code_digest()` where it is known, `keys` as in `recipe`. Raises ConfigError or DataError where the data cannot be
    found.
    """
    return recipe(experiment, keys) + (code or code_digest())[:CODE]


def recipe(experiment: Experiment, keys: dict[DataConfig, str] | None = None) -> str:
    """Return ten hexadecimal digits of what is asked: the configuration, less what results do not depend on, and its data.

    Data counts by its configuration, paths included, and by its content, so that a copy elsewhere is another recipe; of runs
    that are begun from or compared with the path counts, too, and what their newest checkpoint holds. `keys` remembers the
    content of data from one call to the next.
    """
    decided = deciding(experiment)
    keys = {} if keys is None else keys
    if experiment.data not in keys:
        keys[experiment.data] = data_key(experiment.data)
    decided["data"] = keys[experiment.data]
    for home in filter(None, (experiment.init_from, experiment.preference.reference_run)):
        decided[f"run {home}"] = _contents(Path(home))
    return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()[:_RECIPE]


def deciding(experiment: Experiment) -> dict[str, Any]:
    """Return the dotted fields that results depend on, and their plain values."""
    return {name: identity(value) for name, value in flatten(experiment).items() if not name.startswith(FREE_FIELDS)}


def versions_of(runs: Path, name: str) -> Iterator[Path]:
    """Yield the runs of what `name` (a digest) asks that other versions of the code have begun, in the order of their names."""
    yield from (path for path in sorted((runs / RUNS).glob(f"{name[:_RECIPE]}*")) if path.name != name and path.is_dir())


def _contents(run: Path) -> str:
    """Return what the newest checkpoint of a run holds, by its checksums; nothing where there is none: training says so."""
    saves = run / "checkpoints"
    for step in reversed(saved_steps(saves)):
        try:
            return hashlib.sha256((saves / str(step) / CHECKSUMS).read_bytes()).hexdigest()[:16]
        except OSError:
            continue
    return ""
