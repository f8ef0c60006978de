"""Probe files as modules: each under a name of its own, and with the neighbours that lie beside it, wherever it is used."""

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import jaxlm
from jaxlm.errors import ConfigError, JaxlmError
from jaxlm.run.sources import imported_files

ROOT = Path(jaxlm.__file__).parent
# What every probe goes through: the rest is what it imports itself.
COMMON = (ROOT / "analysis" / "view.py", ROOT / "analysis" / "measure.py")
_NEIGHBOURS: dict[Path, dict[str, ModuleType]] = {}


@contextmanager
def beside(folder: Path) -> Iterator[None]:
    """Have imports find what lies in a folder, inside the `with` alone: two folders may have files of the same name."""
    own, known = _NEIGHBOURS.setdefault(folder, {}), {name.partition(".")[0] for name in sys.modules}
    sys.modules |= {name: module for name, module in own.items() if name.partition(".")[0] not in known}
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
        for name, module in list(sys.modules.items()):
            top = name.partition(".")[0]
            if top not in known and _lies_beside(module, folder, top):
                own[name] = sys.modules.pop(name)


def _lies_beside(module: ModuleType, folder: Path, top: str) -> bool:
    file = getattr(module, "__file__", None)
    path = Path(file) if file else Path(next(iter(getattr(module, "__path__", [])), "/"))
    return path == folder / f"{top}.py" or path.is_relative_to(folder / top)


def module_of(path: Path) -> ModuleType:
    """Run a file and return it as a module under a name of its own; every fault is a ConfigError with its place."""
    name = f"jaxlm_probe_{path.stem}_{hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:8]}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None:
        raise ConfigError(f"{path} is no probe: give a .py file that defines probe(view)")
    sys.modules[name] = module = importlib.util.module_from_spec(found)  # where dataclasses look for the names of annotations
    try:
        with beside(path.parent.absolute()):
            found.loader.exec_module(module)
    except (Exception, SystemExit) as fault:
        del sys.modules[name]
        lines = [f.lineno for f in traceback.extract_tb(fault.__traceback__) if Path(f.filename).name == path.name]
        what = str(fault) if isinstance(fault, JaxlmError) else f"{type(fault).__name__}: {fault}"
        raise ConfigError(f"{path} cannot be run: {what}{f' (line {lines[-1]})' if lines else ''}") from fault
    return module


def digests(path: Path) -> tuple[str, str]:
    """Return a digest of a probe's file and its neighbours, and one of the code of ours that it runs through, 16 digits each.

    Both follow import lines, those inside functions too.
    """
    own = imported_files(path.parent, path, package="")
    ours = {file for file in imported_files(ROOT, *COMMON, *own) if file.is_relative_to(ROOT)}
    return _digest(path.parent, own), _digest(ROOT, ours - own)


def _digest(root: Path, files: Iterable[Path]) -> str:
    total = hashlib.sha256()
    for path in sorted(files):
        content = path.read_bytes().replace(b"\r\n", b"\n")
        total.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return total.hexdigest()[:16]
