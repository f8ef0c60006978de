"""Probes found by name or path: a file each, ours and a user's alike."""

import dataclasses
import hashlib
import importlib.util
import inspect
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxlm.errors import ConfigError, JaxlmError, suggest

FOLDER = Path(__file__).parent / "probes"


@dataclasses.dataclass(frozen=True)
class Probe:
    """A function that looks at one checkpoint, and its settings."""

    name: str
    """Of its file, and of the folder that its results are kept in."""
    title: str
    """The first line of its docstring."""
    function: Callable[..., Any]
    settings: Any
    """An `@config` instance; None for a probe without."""
    code: str
    """A digest of its file."""

    def __call__(self, view: Any) -> Any:
        """Return what it finds in a checkpoint: names -> measures or plain numbers."""
        return self.function(view) if self.settings is None else self.function(view, self.settings)


def known_probes() -> list[str]:
    """Return the names of our own probes."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


def load_probes(names: Sequence[str], settings: Sequence[str] = ()) -> list[Probe]:
    """Return the probes of these names or files (none: all of ours), with settings given as PROBE.FIELD=VALUE.

    Raises ConfigError for a name or file that is no probe, two of one name, and settings that do not exist or fit.
    """
    probes = [_load(name) for name in dict.fromkeys(names or known_probes())]
    seen: set[str] = set()
    for probe in probes:
        if probe.name in seen:
            raise ConfigError(f"two probes are called {probe.name!r}, and so are their results: rename one of the files")
        seen.add(probe.name)
    return _with_settings(probes, settings)


def _load(name: str) -> Probe:
    path = Path(name)
    if path.suffix != ".py" and not path.is_file():
        path = FOLDER / f"{name}.py"
        if name not in known_probes():
            raise ConfigError(
                f"there is no probe {name!r}.{suggest(name, known_probes())} Ours: {', '.join(known_probes())}; one of your "
                "own is named by its file, probes/mine.py"
            )
    elif not path.is_file():
        near = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise ConfigError(f"there is no probe file {path}.{suggest(path.name, near)}")
    elif path.stem in known_probes() and path.resolve().parent != FOLDER.resolve():
        raise ConfigError(f"{path} has the name of one of our probes, and its results would be taken for theirs: rename it")
    return _described(_module(path), path)


def _module(path: Path) -> ModuleType:
    """Run a probe's file; every fault is a ConfigError with its place."""
    if path.resolve().parent == FOLDER.resolve():
        return importlib.import_module(f"jaxlm.analysis.probes.{path.stem}")
    found = importlib.util.spec_from_file_location(path.stem, path)
    if found is None:
        raise ConfigError(f"{path} is no probe: give a .py file that defines probe(view)")
    module = importlib.util.module_from_spec(found)
    sys.path.insert(0, str(path.parent.absolute()))  # probes build on their neighbours
    try:
        found.loader.exec_module(module)
    except Exception as fault:
        lines = [f.lineno for f in traceback.extract_tb(fault.__traceback__) if Path(f.filename).name == path.name]
        what = str(fault) if isinstance(fault, JaxlmError) else f"{type(fault).__name__}: {fault}"
        raise ConfigError(f"{path} cannot be run: {what}{f' (line {lines[-1]})' if lines else ''}") from fault
    finally:
        sys.path.pop(0)
    return module


def _described(module: ModuleType, path: Path) -> Probe:
    function, settings = getattr(module, "probe", None), getattr(module, "SETTINGS", None)
    if not callable(function):
        near = suggest("probe", [name for name, value in vars(module).items() if callable(value)])
        raise ConfigError(f"{path} defines no function probe(view).{near}")
    if settings is not None and (not dataclasses.is_dataclass(settings) or isinstance(settings, type)):
        raise ConfigError(f"SETTINGS in {path} must be an instance of a configuration (@config), not {settings!r}")
    wanted = len(inspect.signature(function).parameters)
    if wanted != (1 if settings is None else 2):
        right = "probe(view)" if settings is None else "probe(view, settings)"
        raise ConfigError(f"probe() in {path} takes {wanted} arguments: it must be {right}")
    if not (module.__doc__ or "").strip():
        raise ConfigError(f"{path} has no docstring: its first line is the title of what the probe finds")
    title = module.__doc__.strip().splitlines()[0].rstrip(".")
    return Probe(path.stem, title, function, settings, hashlib.sha256(path.read_bytes()).hexdigest()[:16])


def _with_settings(probes: list[Probe], settings: Sequence[str]) -> list[Probe]:
    """Return the probes with fields of their settings changed."""
    by_name = {probe.name: probe for probe in probes}
    for given in settings:
        dotted, equals, value = given.partition("=")
        name, dot, field = dotted.partition(".")
        if not (equals and dot and field):
            raise ConfigError(f"--settings {given} is not PROBE.FIELD=VALUE: --settings connectivity.points=11 say")
        if name not in by_name:
            raise ConfigError(f"--settings {given}: no probe {name!r} is run here.{suggest(name, by_name)}")
        probe = by_name[name]
        if probe.settings is None:
            raise ConfigError(f"--settings {given}: the probe {name} has no settings")
        fields = [f.name for f in dataclasses.fields(probe.settings)]
        if field not in fields:
            raise ConfigError(
                f"--settings {given}: {name} has no field {field!r}.{suggest(field, fields)} Its fields: {', '.join(fields)}"
            )
        by_name[name] = dataclasses.replace(probe, settings=_changed(probe.settings, field, value, given))
    return list(by_name.values())


def _changed(settings: Any, field: str, value: str, given: str) -> Any:
    """Return settings with one field read from text: as JSON where it is some, else as the text itself."""
    try:
        read = json.loads(value)
    except ValueError:
        read = value
    if isinstance(getattr(settings, field), str) and not isinstance(read, str):
        read = value
    try:
        return dataclasses.replace(settings, **{field: read})
    except ConfigError as fault:
        raise ConfigError(f"--settings {given}: {fault}") from fault
