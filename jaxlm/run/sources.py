"""Which source files another one runs through, from their import lines alone: what a digest of the code is of."""

import hashlib
import re
from collections.abc import Collection
from pathlib import Path

import jaxlm

_IMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+import\s+(\([^)]*\)|.*)|import\s+([\w., ]+))", re.MULTILINE)


# What training imports to show, to draw, to keep account and to write text at its end: no result depends on it.
TELLING = tuple(
    f"run/{name}.py" for name in ("display", "report", "router_report", "watch", "goodput", "failure", "tail", "sources")
)


def training_files(root: Path | None = None) -> dict[str, str]:
    """Return the files of the package that decide what training computes, records and saves: path in it -> digest.

    They are the files that the training loop imports, directly or not, but for those that only tell of it (`TELLING`) and what
    these alone import. The same on any machine that has the same sources.
    """
    root = root or Path(jaxlm.__file__).parent
    files = imported_files(root, root / "run" / "loop.py", without=[root / name for name in TELLING])
    contents = {path.relative_to(root).as_posix(): path.read_bytes().replace(b"\r\n", b"\n") for path in files}
    return {name: hashlib.sha256(contents[name]).hexdigest() for name in sorted(contents)}


def code_digest() -> str:
    """Return 16 hexadecimal digits of the code that decides what training computes, as it is on disk now."""
    return digest_of(training_files())


def digest_of(files: dict[str, str]) -> str:
    """Return 16 hexadecimal digits of what `training_files` returned."""
    return hashlib.sha256("".join(f"{name} {value}\n" for name, value in files.items()).encode()).hexdigest()[:16]


def imported_files(root: Path, *first: Path, package: str = "jaxlm", without: Collection[Path] = ()) -> set[Path]:
    """Return the files of the package in `root` that `first` import, directly or not, and themselves, but for `without`.

    With package "" those are the modules that lie in the folder `root` itself, as a script finds its neighbours.
    """
    found, left = set(), [*first]
    while left:
        path = left.pop()
        if path in found or path in without:
            continue
        found.add(path)
        for module, names, plain in _IMPORT.findall(path.read_text(encoding="utf-8", errors="replace")):
            for dotted in [module] if module else re.findall(r"[\w.]+", plain):
                left += _files_of(root, dotted, re.findall(r"\w+", names), package)
    return found


def _files_of(root: Path, dotted: str, names: list[str], package: str) -> list[Path]:
    first, *rest = dotted.strip(".").split(".")
    if package and first != package:
        return []
    base = root.joinpath(*(rest if package else (first, *rest)))
    candidates = [candidate.with_suffix(".py") for candidate in (base, *(base / name for name in names))]
    return [file for file in (*candidates, *([] if package else [base / "__init__.py"])) if file.is_file()]
