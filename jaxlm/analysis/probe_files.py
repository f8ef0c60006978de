"""Probes found by name or path: a file each, ours and a user's alike."""

import ast
import dataclasses
import importlib
import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxlm.analysis.user_files import digests
from jaxlm.errors import ConfigError, suggest
from jaxlm.module_file import beside, run_file

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
    default: Any
    """Its settings where none are given."""
    file: Path
    code: str
    """A digest of its file, and of those beside it that it imports."""
    version: str
    """A digest of the code of ours that it runs through."""

    def __call__(self, view: Any) -> Any:
        """Return what it finds in a checkpoint: names -> measures or plain numbers."""
        with beside(self.file.parent.absolute()):  # for what it imports only now
            return self.function(view) if self.settings is None else self.function(view, self.settings)


def known_probes() -> list[str]:
    """Return the names of our own probes."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


def listed() -> list[str]:
    """Return our probes as a line each, name, title and settings, read from their sources: nothing of them is imported."""
    found = []
    for name in known_probes():
        tree = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
        of_class = next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.decorator_list), None)
        fields = [node.target.id for node in of_class.body if isinstance(node, ast.AnnAssign)] if of_class else []
        title = (ast.get_docstring(tree) or "").splitlines()[0].rstrip(".")
        found.append(f"{name}: {title}" + (f" (settings: {', '.join(fields)})" if fields else ""))
    return found


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
    if name in known_probes() or (path.suffix != ".py" and not path.is_file()):
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
    if path.resolve().parent == FOLDER.resolve():
        return importlib.import_module(f"jaxlm.analysis.probes.{path.stem}")
    return run_file(path)


def _described(module: ModuleType, path: Path) -> Probe:
    function, settings = getattr(module, "probe", None), getattr(module, "SETTINGS", None)
    if not callable(function):
        near = suggest("probe", [name for name, value in vars(module).items() if callable(value)])
        raise ConfigError(f"{path} defines no function probe(view).{near}")
    if settings is not None and (not dataclasses.is_dataclass(settings) or isinstance(settings, type)):
        raise ConfigError(f"SETTINGS in {path} must be an instance of a configuration (@config), not {settings!r}")
    given = (None,) if settings is None else (None, settings)
    try:
        inspect.signature(function).bind(*given)
    except TypeError as fault:
        right = "probe(view)" if settings is None else "probe(view, settings)"
        raise ConfigError(f"{path} has probe{inspect.signature(function)}: it must be {right}") from fault
    if not (module.__doc__ or "").strip():
        raise ConfigError(f"{path} has no docstring: its first line is the title of what the probe finds")
    title = module.__doc__.strip().splitlines()[0].rstrip(".")
    return Probe(path.stem, title, function, settings, settings, path, *digests(path))


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
        raise ConfigError(
            f"--settings {given}: {fault} (values are read as JSON: 0.5, true, [1, 2], a text as it is)"
        ) from fault
