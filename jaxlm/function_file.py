"""Files of Python that a user names: run as modules, and functions of them spelled FILE.py:NAME@DIGEST in a configuration."""

import functools
import hashlib
import importlib.util
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple

from jaxlm import trust
from jaxlm.errors import ConfigError, JaxlmError, suggest
from jaxlm.imported import digest, imported_files

_SPELLED = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)(?:@(?P<digest>[0-9a-f]{8}))?", re.DOTALL)
# Of modules that lie beside a file, by their folder and, for a function's, the digest: module, and the digest of its file.
_NEIGHBOURS: dict[tuple[Path, str], dict[str, tuple[ModuleType, str]]] = {}
_MODULES: dict[tuple[Path, str], ModuleType] = {}
# By name and digest: what came with values of others, what the user named, and where either was said to lie.
_READ: set[tuple[str, str]] = set()
_OWN: set[tuple[str, str]] = set()
_PLACES: dict[tuple[str, str], dict[Path, None]] = {}
_FROM_OTHERS = ContextVar("from others", default=False)


class UntrustedError(ConfigError):
    """A function that the user has not named."""


class Named(NamedTuple):
    """What FILE.py:NAME@DIGEST says."""

    file: Path
    """Relative to the working directory, as paths of data are; absolute where it lies outside of it."""
    name: str
    digest: str
    """8 digits of the file's content and of what it imports from beside it; empty where none were given."""


def names_function(value: str) -> bool:
    """Return whether a value is a function of a file, not one of our own names."""
    return ".py:" in value


def parse(value: str) -> Named:
    """Return the parts of FILE.py:NAME@DIGEST; ConfigError where it is not spelled so."""
    found = _SPELLED.fullmatch(value)
    if found is None:
        raise ConfigError(
            f"{value!r} is not FILE.py:NAME, a function of a file of yours (with @ and 8 hexadecimal digits of its content, or "
            "without, and then they are found)"
        )
    return Named(Path(found["file"]), found["name"], found["digest"] or "")


@contextmanager
def values_of_others() -> Iterator[None]:
    """Have functions that are named inside the `with` be somebody else's: they are not trusted for being named."""
    before = _FROM_OTHERS.set(True)
    try:
        yield
    finally:
        _FROM_OTHERS.reset(before)


def settled(value: str) -> str:
    """Return FILE.py:NAME with the digest of the file as it is now; one that has a digest is kept as it is.

    A path below the working directory becomes relative to it. Nothing is run, but what the user names here is trusted from now
    on. ConfigError where there is no such file, and for a value of others (`values_of_others`) without a digest, before
    anything is read.
    """
    named = parse(value)
    file = named.file.relative_to(Path.cwd()) if named.file.is_relative_to(Path.cwd()) else named.file
    if _FROM_OTHERS.get():
        if not named.digest:
            raise ConfigError(
                f"{value!r} has no digest, and only you may leave it out, in an experiment file or on the command line: a "
                "configuration that is read from a file names the content, FILE.py:NAME@0123abcd"
            )
        _READ.add((named.name, named.digest))
    elif not named.digest or (named.name, named.digest) not in _READ | _OWN:
        named = _named_by_user(named, value)
    _PLACES.setdefault((named.name, named.digest), {})[file.absolute()] = None
    return f"{file.as_posix()}:{named.name}@{named.digest}"


def _named_by_user(named: Named, value: str) -> Named:
    """Return what the user named with its digest, trusted from now on; one that does not fit its file is left alone."""
    if named.digest and not named.file.is_file():
        return named
    full = full_digest(value)
    if named.digest in ("", full[:8]):
        named = named._replace(digest=full[:8])
        trust.allow(full, f"{named.file.absolute()}:{named.name}")
        _OWN.add((named.name, named.digest))
    return named


def trusted(value: str) -> list[str]:
    """Trust all that FILE.py:NAME runs, and return in lines what that is; ConfigError where there is no such file.

    A digest that is given must be that of the file.
    """
    named, full = parse(value), full_digest(value)
    if named.digest not in ("", full[:8]):
        raise ConfigError(f"{value}: the digest of {named.file} is {full[:8]}: what you were told to trust is something else")
    trust.allow(full, f"{named.file.absolute()}:{named.name}")
    files = ", ".join(f"{name} ({len(content):,} bytes)" for name, content in contents(named.file).items())
    return [
        f"trusted, as they are now: {files}, in {named.file.absolute().parent}",
        f"sha-256 {full}, kept in {trust.user_cache() / trust.FOLDER}; to take it back, remove the file of that name there",
    ]


def identity(value: Any) -> Any:
    """Return a plain value to compare, of a function NAME@DIGEST: a file that was moved computes the same."""
    found = _SPELLED.fullmatch(value) if isinstance(value, str) else None
    return f"{found['name']}@{found['digest']}" if found and found["digest"] else value


@functools.cache
def load(value: str) -> Callable[..., Any]:
    """Run the file of FILE.py:NAME@DIGEST and return its function, the same one each time.

    A file that is not there, or not as it was, is looked for where else this process was told that the same function lies.
    ConfigError where it is missing, has changed since the digest was taken, cannot be run or has no such function, and
    `UntrustedError` where the user has not named it: opening a run executes nothing that came with it.
    """
    named = parse(value)
    elsewhere = [path for path in _PLACES.get((named.name, named.digest), ()) if path.is_file()] if named.digest else []
    places = [named.file, *elsewhere]
    file = next((path for path in places if path.is_file() and named.digest in ("", _digest_of(path)[:8])), named.file)
    now = full_digest(value) if file == named.file else _digest_of(file)
    if named.digest not in ("", now[:8]):
        raise ConfigError(
            f"{value}: {named.file}, or what it imports from beside it, has changed: its digest is {now[:8]} now. Put it back "
            f"as it was, or, to take it as it is, name it without a digest: {named.file}:{named.name}"
        )
    if not trust.allowed(now):
        spelled = f"{file}:{named.name}"
        beside_it = sorted(set(contents(file)) - {file.name})
        raise UntrustedError(
            f"this computes with {spelled}, which you have not named yourself: read it{' and ' * bool(beside_it)}"
            f"{', '.join(beside_it)}, then `jaxlm trust {shlex.quote(spelled)}`"
        )
    function = getattr(_module_of(file, now), named.name, None)
    if not callable(function):
        names = [name for name, found in vars(_module_of(file, now)).items() if callable(found)]
        raise ConfigError(f"{value}: {named.file} defines no function {named.name}.{suggest(named.name, names)}")
    return _beside_its_file(function, _placed_file(file), now)


def _beside_its_file(function: Callable[..., Any], file: Path, content: str) -> Callable[..., Any]:
    """Return the function so that what it imports when it is called is found beside its file."""
    files = imported_files(file.parent, file, package="")

    @functools.wraps(function)
    def called(*arguments: Any, **named: Any) -> Any:
        with beside(file.parent, files, content):
            return function(*arguments, **named)

    return called


def _module_of(file: Path, content: str) -> ModuleType:
    """Return the module of a function's file: two functions of one file share what it holds."""
    key = file.resolve(), content
    if key not in _MODULES:
        path = _placed_file(file)
        _MODULES[key] = run_file(path, imported_files(path.parent, path, package=""), content)
    return _MODULES[key]


def _placed_file(file: Path) -> Path:
    return file.parent.resolve() / file.name


def contents(file: Path) -> dict[str, bytes]:
    """Return a file and those beside it that it imports, directly or not: path from its folder -> content."""
    files = imported_files(file.parent, file, package="")
    return {path.relative_to(file.parent).as_posix(): path.read_bytes() for path in sorted(files)}


def full_digest(value: str) -> str:
    """Return 64 digits of all that FILE.py:NAME runs, as it is now; ConfigError where there is no such file."""
    file = parse(value).file
    if not file.is_file():
        near = suggest(file.name, [p.name for p in file.parent.glob("*.py")] if file.parent.is_dir() else [])
        raise ConfigError(f"{value}: there is no file {file}, seen from {Path.cwd()}.{near}")
    return _digest_of(file)


def _digest_of(file: Path) -> str:
    return digest(file.parent, imported_files(file.parent, file, package=""))


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
