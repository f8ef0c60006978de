"""Files of Python run as modules, which find what lies beside them, and nothing of another file's neighbours."""

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from jaxlm.errors import ConfigError, JaxlmError

# Of modules that lie beside a file, by their folder and, for a function's, the digest: module, and the digest of its file.
_NEIGHBOURS: dict[tuple[Path, str], dict[str, tuple[ModuleType, str]]] = {}


class _FromSource(SourceFileLoader):
    """Compiles a file as it is: what lies in __pycache__ beside it has no part in its digest."""

    def get_code(self, fullname: str) -> CodeType:
        """Return the code of the module."""
        return self.source_to_code(self.get_data(self.path), self.path)


class _Neighbours:
    """Finds modules among some files of a folder, and no others there: those that a digest is of."""

    def __init__(self, folder: Path, files: Collection[Path]):
        """Take absolute paths."""
        self._folder, self._files = folder, files

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return where a module is to be loaded from, None where others are to say."""
        places = [str(self._folder)] if path is None else [p for p in path if Path(p).is_relative_to(self._folder)]
        spec = PathFinder.find_spec(name, places) if places else None
        if spec is None:
            return None
        folders = spec.submodule_search_locations
        if spec.has_location and Path(spec.origin) in self._files:
            if not isinstance(spec.loader, SourceFileLoader):
                return spec
            loader = _FromSource(name, spec.origin)
            return importlib.util.spec_from_file_location(name, spec.origin, loader=loader, submodule_search_locations=folders)
        if not spec.has_location and any(file.is_relative_to(place) for file in self._files for place in folders or ()):
            return spec
        if path is None:
            return None
        raise ImportError(f"{name} is imported in a way that its file's source does not show: import it by a plain line")


def run_file(path: Path, files: Collection[Path] | None = None, content: str = "") -> ModuleType:
    """Run a file and return it as a module under a name of its own; every fault is a JaxlmError with its place.

    `files` and `content` are as `beside` takes them.
    """
    if path.suffix != ".py":
        raise ConfigError(f"{path} is no file of Python: its name must end in .py")
    name = f"jaxlm_file_{path.stem}_{hashlib.sha256(f'{path.absolute()} {content}'.encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path, loader=_FromSource(name, str(path)))
    sys.modules[name] = module = importlib.util.module_from_spec(spec)  # where dataclasses look for the names of annotations
    try:
        with beside(path.parent.absolute(), files, content):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as fault:
        del sys.modules[name]
        raise placed(fault, path) from fault
    return module


def placed(fault: BaseException, path: Path, what: str = "cannot be run") -> JaxlmError:
    """Return a fault as one that a user can mend, with the last line of the file that it came through."""
    lines = [f.lineno for f in traceback.extract_tb(fault.__traceback__) if Path(f.filename).name == path.name]
    where = f" ({path}, line {lines[-1]})" if lines else ""
    if isinstance(fault, JaxlmError):
        return type(fault)(f"{fault}{where}")
    return ConfigError(f"{path} {what}: {type(fault).__name__}: {fault}{where}")


@contextmanager
def beside(folder: Path, files: Collection[Path] | None = None, content: str = "") -> Iterator[None]:
    """Have imports find what lies in a folder, inside the `with` alone: two folders may have files of the same name.

    With `files`, which `content` is the digest of, those alone are found there. What was imported before is taken again, but
    where a file has changed since.
    """
    own, known = _NEIGHBOURS.setdefault((folder, content), {}), {name.partition(".")[0] for name in sys.modules}
    if any(_content_of(module) != then for module, then in own.values()):
        own.clear()  # the others may hold what is of the changed one
    sys.modules |= {name: module for name, (module, _) in own.items() if name.partition(".")[0] not in known}
    finder = None if files is None else _Neighbours(folder, files)
    if finder:
        sys.meta_path.insert(0, finder)
    else:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if finder:
            sys.meta_path.remove(finder)
        elif str(folder) in sys.path:
            sys.path.remove(str(folder))
        for name, module in list(sys.modules.items()):
            top = name.partition(".")[0]
            if top not in known and _lies_beside(module, folder, top):
                own[name] = sys.modules.pop(name), _content_of(module)


def _content_of(module: ModuleType) -> str:
    try:
        return hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()
    except (AttributeError, TypeError, OSError):
        return ""


def _lies_beside(module: ModuleType, folder: Path, top: str) -> bool:
    file = getattr(module, "__file__", None)
    path = Path(file) if file else Path(next(iter(getattr(module, "__path__", [])), "/"))
    return path == folder / f"{top}.py" or path.is_relative_to(folder / top)
