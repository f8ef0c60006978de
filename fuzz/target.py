"""What is fuzzed: a parser, the valid files that its inputs are made from, and what must be true of what it gives."""

import importlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from fuzz.mutate import Files
from jaxlm.errors import JaxlmError, suggest

# The tests' writers of models and runs make seeds.
sys.path.append(str(Path(__file__).parents[1] / "tests"))


@dataclass(frozen=True)
class Target:
    """A parser that a stranger's file can reach."""

    name: str
    about: str
    """What is read, for the table of results."""
    seeds: Callable[[Path], Any]
    """Returns what `make` makes inputs from; the folder is empty, for writers of files."""
    make: Callable[[Random, Any], Files]
    """Returns one input; the same generator gives the same."""
    read: Callable[[Path], Any]
    """Reads the input in a folder: JaxlmError where it is refused, AssertionError where what it gives is not sane, True or None
    where it is accepted. False says that it was refused in another way that is right here."""


def find(name: str) -> Target:
    """Return the target of a name, or what MODULE:NAME stands for; JaxlmError where there is none."""
    module, colon, attribute = name.partition(":")
    if colon:
        return getattr(importlib.import_module(module), attribute)
    from fuzz.targets import TARGETS

    if name not in TARGETS:
        raise JaxlmError(f"there is no target {name!r}.{suggest(name, TARGETS)} Targets: {', '.join(TARGETS)}")
    return TARGETS[name]


def made_in_a_folder(write: Callable[[Path], Sequence[Files] | Files]) -> Files:
    """Return what `write` writes into an empty folder, by relative names."""
    with tempfile.TemporaryDirectory() as name:
        write(Path(name))
        return folder_files(Path(name))


def folder_files(folder: Path) -> Files:
    """Return the files below a folder, empty folders too."""
    files: Files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file():
            files[name] = path.read_bytes()
        elif not any(path.iterdir()):
            files[f"{name}/"] = b""
    return files


def write_files(folder: Path, files: Files, before: Files) -> None:
    """Write the files of an input after those of the last, `before`: each anew, for a mapping may still hold the old one."""
    if any("/" in name for name in (*before, *files)):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    for name in before:
        (folder / name).unlink(missing_ok=True)
    for name, content in files.items():
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
