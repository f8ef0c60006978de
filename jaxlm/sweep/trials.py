"""Where a trial's run lives: a folder named after everything that decides its result."""

import functools
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import jaxlm
from jaxlm.config import flatten
from jaxlm.data.data_config import DataConfig
from jaxlm.data.prepare import data_key
from jaxlm.experiment import FREE_FIELDS, Experiment
from jaxlm.train.checkpoint import CHECKSUMS, saved_steps

RUNS = "trials"  # the folder, beside the sweeps' own, of the runs that all sweeps share
_RECIPE, _CODE = 10, 6  # hexadecimal digits of a run's name that stand for what was asked, and for the code that did it
_IMPORT = re.compile(r"^\s*(?:from\s+(jaxlm[\w.]*)\s+import\s+(\([^)]*\)|.*)|import\s+(jaxlm[\w.]+))", re.MULTILINE)


def digest(experiment: Experiment) -> str:
    """Return the 16 hexadecimal digits that name a trial's run: ten of what is asked (`recipe`), six of the code.

    Raises ConfigError or DataError where the data cannot be found.
    """
    return recipe(experiment) + code_digest()[:_CODE]


def recipe(experiment: Experiment) -> str:
    """Return ten hexadecimal digits of what is asked: the configuration, less what results do not depend on, and its data.

    Data counts by its content, and so do runs that are begun from or compared with.
    """
    decisive = {name: value for name, value in flatten(experiment).items() if not name.startswith(FREE_FIELDS)}
    decisive["data"] = _data_key(experiment.data)
    for home in filter(None, (experiment.init_from, experiment.preference.reference_run)):
        decisive[f"run {home}"] = _contents(Path(home))
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:_RECIPE]


def versions_of(runs: Path, name: str) -> Iterator[Path]:
    """Yield the runs of what `name` (a digest) asks that other versions of the code have begun, in the order of their names."""
    yield from (path for path in sorted((runs / RUNS).glob(f"{name[:_RECIPE]}*")) if path.name != name and path.is_dir())


@functools.cache
def code_digest() -> str:
    """Return 16 hexadecimal digits of the code that training runs through: all files of this package that it imports.

    The same on any machine that has the same sources; what only reads runs, draws or reports does not count.
    """
    root = Path(jaxlm.__file__).parent
    total = hashlib.sha256()
    for path in sorted(imported_files(root, root / "run" / "loop.py"), key=lambda path: path.relative_to(root).as_posix()):
        content = path.read_bytes().replace(b"\r\n", b"\n")
        total.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return total.hexdigest()[:16]


def imported_files(root: Path, first: Path) -> set[Path]:
    """Return the files of the package in `root` that `first` imports, directly or not, and itself."""
    found, left = set(), [first]
    while left:
        path = left.pop()
        if path in found:
            continue
        found.add(path)
        for module, names, plain in _IMPORT.findall(path.read_text(encoding="utf-8")):
            base = root.joinpath(*(module or plain).split(".")[1:])
            candidates = [base, *(base / name for name in re.findall(r"\w+", names))]
            left += [file for file in (candidate.with_suffix(".py") for candidate in candidates) if file.is_file()]
    return found


@functools.cache
def _data_key(config: DataConfig) -> str:
    return data_key(config)


def _contents(run: Path) -> str:
    """Return what the newest checkpoint of a run holds, by its checksums; nothing where there is none: training says so."""
    saves = run / "checkpoints"
    for step in reversed(saved_steps(saves)):
        try:
            return hashlib.sha256((saves / str(step) / CHECKSUMS).read_bytes()).hexdigest()[:16]
        except OSError:
            continue
    return ""
