"""Which files of Python a file would import, read from its source: nothing is run."""

import ast
import functools
import hashlib
import importlib.machinery
import re
import warnings
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

_LINE = re.compile(r"^\s*(?:from\s+(\.*)([\w.]*)\s+import\s+(\([^)]*\)|.*)|import\s+([\w., ]+))", re.MULTILINE)


class _Import(NamedTuple):
    level: int
    """Dots before the name."""
    parts: tuple[str, ...]
    names: tuple[str, ...]


def imported_files(root: Path, *first: Path, package: str = "jaxlm", without: Collection[Path] = ()) -> set[Path]:
    """Return the files of the package in `root` that `first` import, directly or not, and themselves, but for `without`.

    With package "" those are the modules that lie in the folder `root` itself, as a script finds its neighbours, and their
    packages' __init__.py (our own hold nothing). Imports inside functions count, too; nothing is run.
    """
    found, left = set(), [*first]
    while left:
        path = left.pop()
        if path in found or path in without:
            continue
        found.add(path)
        if path.suffix == ".py":
            for one in _imports(path.read_bytes()):
                left += _files_of(root, path, one, package)
    return found


def digest(root: Path, files: Iterable[Path]) -> str:
    """Return the sha-256, 64 hexadecimal digits, of the names, from `root`, and the contents of files."""
    total = hashlib.sha256()
    for path in sorted(files):
        content = path.read_bytes().replace(b"\r\n", b"\n")
        total.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return total.hexdigest()


@functools.lru_cache(maxsize=1024)
def _imports(source: bytes) -> tuple[_Import, ...]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about its strings: whoever runs it is told
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return tuple(_lines(source.decode("utf-8", "replace")))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [_Import(0, tuple(alias.name.split(".")), ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = tuple((node.module or "").split(".")) if node.module else ()
            found.append(_Import(node.level, parts, tuple(alias.name for alias in node.names)))
    return tuple(found)


def _lines(text: str) -> list[_Import]:
    """Return the imports of a text that is not Python, or not yet, line by line."""
    found = []
    for dots, module, names, plain in _LINE.findall(text):
        for dotted in re.findall(r"[\w.]+", plain) if plain else [module]:
            parts = tuple(filter(None, dotted.split(".")))
            found.append(_Import(len(dots), parts, tuple(re.findall(r"\w+|\*", names))))
    return found


def _files_of(root: Path, importer: Path, one: _Import, package: str) -> list[Path]:
    parts, base = one.parts, root
    if one.level:
        base = importer.parents[min(one.level, len(importer.parents)) - 1]
        if not base.is_relative_to(root):
            return []
    elif package:
        if parts[:1] != (package,):
            return []
        parts = parts[1:]
    folder = base.joinpath(*parts)
    wanted = [folder, *(folder / name for name in one.names if name != "*")]
    if package:
        return [file for place in wanted if (file := place.with_name(f"{place.name}.py")).is_file()]
    packages = [base.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1)] + ([base] if base != root else [])
    files = [file for place in wanted if place != root for file in _modules(place.parent, place.name)]
    files += [file for place in {*packages, *wanted} - {root} for file in _modules(place, "__init__")]
    if "*" in one.names and folder != root and folder.is_dir():  # __all__ may name any of them
        files += sorted(folder.glob("*.py"))
    return files


def _modules(folder: Path, name: str) -> list[Path]:
    """Return what Python could load as the module `name` of a folder: compiled ones would come before its source."""
    files = (folder / f"{name}{suffix}" for suffix in importlib.machinery.all_suffixes())
    return [file for file in files if file.is_file()]
