"""Functions in files that a user names, spelled FILE.py:NAME@DIGEST in a configuration: found, trusted by content, loaded."""

import functools
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from jaxlm import trust
from jaxlm.errors import ConfigError, suggest
from jaxlm.imported import digest, imported_files
from jaxlm.module_file import beside, run_file

_SPELLED = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)(?:@(?P<digest>[0-9a-f]{8}))?", re.DOTALL)
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
