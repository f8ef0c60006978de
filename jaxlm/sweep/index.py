"""All runs under a folder, read anew only where something changed: a cache beside them, and the directories are the truth.

The index is one JSON file, replaced whole: it needs no locks, which network file systems may not have, and of two writers the
later wins, whose loss is some reading next time. Whatever is wrong with it, it is made anew or done without.
"""

import dataclasses
import functools
import hashlib
import json
import os
import time
import zlib
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jaxlm
from jaxlm.config import read_json
from jaxlm.data.storage import write_atomically
from jaxlm.errors import CheckpointError, suggest
from jaxlm.run.directory import CONFIG, in_use
from jaxlm.run.standing import MARKS, Standing, standing

INDEX = ".jaxlm-index.json"
TICK = 50_000_000
"""Nanoseconds: what changed so shortly before it was read may change again without another time of change."""
_FIELDS = tuple(field.name for field in dataclasses.fields(Standing) if field.name not in ("folder", "config"))

Signature = list[list[Any]]
"""[name, time of change, size, number] of each file that a run consists of."""


class _Entry(NamedTuple):
    """What the index says of a run: its signature, when it was read, how it stood and how its fields differ from the base."""

    signature: Signature
    read: int
    values: list[Any]
    config: dict[str, Any]
    whole: bool
    """Whether `config` is all of it, for the base has fields that it lacks."""


_KINDS = (list, int, list, dict, bool)


def find_runs(folder: Path, *, rebuild: bool = False, tell: Callable[[int], None] = lambda read: None) -> list[Standing]:
    """Return how every run under a folder stands, at any depth, by path; what is no run but looks like one comes as "foreign".

    Only runs that changed since the last time are read; `rebuild` reads all. `tell` is called with the number read so far.
    Nothing is looked for inside a run, nor in folders whose name begins with a dot. Raises CheckpointError where there is no
    such folder.
    """
    if not folder.is_dir():
        near = [entry.name for entry in folder.parent.iterdir() if entry.is_dir()] if folder.parent.is_dir() else []
        raise CheckpointError(f"there is no folder {folder}.{suggest(folder.name, near)}")
    code = _code()
    base, known = ({}, {}) if rebuild else _load(folder / INDEX, code)
    found: list[Standing] = []
    entries: dict[str, _Entry] = {}
    changed = read = 0
    search = _search(folder)
    path, signature, fault = next(search)
    while True:
        if signature or fault:
            name = path.removeprefix(str(folder)).lstrip("/") or "."
            before = known.get(name)
            stand = _kept(Path(path), before, base, signature) if before else None
            if fault:
                stand = Standing(Path(path), "broken", f"cannot be read: {fault}")
            elif stand is None:
                began = time.time_ns()
                stand = standing(Path(path), _same_config(Path(path), before, base, signature))
                tell(read := read + 1)
                base = base or (dict(stand.config) if stand.digest else {})
                entries[name] = _entry(stand, base, signature, began)
                unread = stand.kind == "running" or (stand.kind == "broken" and before and before.signature == signature)
                changed += before is None or not unread
            else:
                entries[name] = before
            found.append(stand)
        try:
            path, signature, fault = search.send(not signature or found[-1].kind == "foreign")
        except StopIteration:
            break
    if changed or known.keys() != entries.keys():
        _save(folder / INDEX, code, base, entries)
    return sorted(found, key=lambda stand: str(stand.folder))


def _search(root: Path) -> Iterator[tuple[str, Signature, str]]:
    """Yield every folder with what it has of a run and what is wrong with it; enter it where told to (`send`)."""
    inside, stack = os.path.realpath(root), [str(root)]
    seen: set[str] = set()  # what links lead to outside of the root
    while stack:
        path = stack.pop()
        try:
            with os.scandir(path) as listing:
                there = list(listing)
        except OSError as fault:
            yield path, [], fault.strerror or str(fault)
            continue
        marks = {entry.name: entry for entry in there if entry.name in MARKS}
        enter = yield path, [_signed(name, marks[name]) for name in MARKS if name in marks], ""
        for entry in there if enter else ():
            if entry.name in MARKS or entry.name.startswith(".") or not _is_folder(entry):
                continue
            if entry.is_symlink():
                target = os.path.realpath(entry.path)
                if target in seen or f"{inside}/".startswith(f"{target}/") or target.startswith(f"{inside}/"):
                    continue
                seen.add(target)
            stack.append(entry.path)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _signed(name: str, entry: os.DirEntry) -> list[Any]:
    try:
        found = entry.stat()
    except OSError as fault:
        return [name, 0, 0, fault.errno]
    return [name, found.st_mtime_ns, found.st_size, found.st_ino]


def _kept(path: Path, entry: _Entry, base: dict[str, Any], signature: Signature) -> Standing | None:
    """Return how a run stood when it was last read; None where it may stand otherwise now."""
    if entry.signature != signature or max(mark[1] for mark in signature) + TICK > entry.read:
        return None
    found = _standing(path, entry, base)
    # A run that goes on says so by its lock alone, and of a broken one what is mended may be a permission, which has no time.
    return None if found.kind in ("running", "broken") or (found.kind != "finished" and in_use(path)) else found


def _same_config(path: Path, entry: _Entry | None, base: dict[str, Any], signature: Signature) -> Standing | None:
    """Return how a run stood where its config.json has not changed since, so that it need not be checked again."""
    now = [mark for mark in signature if mark[0] == CONFIG]
    if entry is None or not now or now[0] not in entry.signature or now[0][1] + TICK > entry.read:
        return None
    return _standing(path, entry, base)


def _standing(path: Path, entry: _Entry, base: dict[str, Any]) -> Standing:
    values = dict(zip(_FIELDS, entry.values, strict=True))
    values["checkpoints"] = tuple(values["checkpoints"])
    return Standing(folder=path, config=entry.config if entry.whole else ChainMap(entry.config, base), **values)


def _entry(stand: Standing, base: Mapping[str, Any], signature: Signature, read: int) -> _Entry:
    config = stand.config
    whole = not base or not base.keys() <= config.keys()  # of what is read while there is no base yet, all is kept
    kept = dict(config) if whole else {name: v for name, v in config.items() if name not in base or base[name] != v}
    return _Entry(signature, read, [getattr(stand, name) for name in _FIELDS], kept, whole)


def _load(path: Path, code: str) -> tuple[dict[str, Any], dict[str, _Entry]]:
    """Return the index's base and entries; nothing where it is not there, damaged, or of another version of the code."""
    try:
        head, _, body = path.read_bytes().partition(b"\n")
        if head.decode() != f"{code} {zlib.crc32(body)}":
            return {}, {}
        values = read_json(body)
        entries = {name: _Entry(*entry) for name, entry in values["runs"].items()}
        kinds = all(isinstance(part, kind) for entry in entries.values() for part, kind in zip(entry, _KINDS, strict=True))
        return (values["base"], entries) if kinds and isinstance(values["base"], dict) else ({}, {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}, {}


def _save(path: Path, code: str, base: dict[str, Any], entries: dict[str, _Entry]) -> None:
    """Write the index, or leave it where that cannot be: the next listing takes as long as this one."""
    with suppress(OSError, ValueError, RecursionError):
        body = json.dumps({"base": base, "runs": entries}, separators=(",", ":")).encode()
        write_atomically(path, f"{code} {zlib.crc32(body)}\n".encode() + body)


@functools.cache
def _code() -> str:
    """Return a digest of the code: another version may understand a configuration otherwise, or know more of a run."""
    whole = hashlib.sha256()
    for source in sorted(Path(jaxlm.__file__).parent.rglob("*.py")):
        whole.update(source.read_bytes())
    return whole.hexdigest()[:16]
