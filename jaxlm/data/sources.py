"""Where text comes from: one spelling for each kind of source, checked before anything is read.

stdlib                                      the running Python's standard library, tests left out
text:PATH_OR_GLOB                           each file a document
text:PATH_OR_GLOB#BYTES                     each file cut after line ends into documents of about BYTES
jsonl:PATH_OR_GLOB#field                    a document a line (plain, .gz, .zst); field is `text` unless named
arrayrecord:PATH_OR_GLOB                    a document a record
parquet:PATH_OR_GLOB#column                 a document a row; column is `text` unless named
tfds:name[/config][:version]:split#feature  a prepared TensorFlow dataset, read without TensorFlow
"""

import glob
import hashlib
import importlib.util
import itertools
import os
import re
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from jaxlm.data import example_rows, readers
from jaxlm.data.fingerprint import ContentHashes
from jaxlm.data.readers import Document, Documents
from jaxlm.errors import ConfigError, DataError, suggest

_KINDS = ("stdlib", "text", "jsonl", "arrayrecord", "parquet", "tfds")
_ROW_READERS = {
    "jsonl": example_rows.read_jsonl_rows,
    "parquet": example_rows.read_parquet_rows,
    "arrayrecord": example_rows.read_array_record_rows,
}
_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
_GROWTH = {".gz": 4, ".zst": 4, ".parquet": 3}  # bytes of text in a byte of file, for progress and estimates alone
_TFDS_PARTS = 64
_LONGEST = 4096 + 256  # characters of a spelling: no path is longer
_TFDS_SPELLING = re.compile(r"(?P<name>\w+(/[\w.-]+)?(:\d+\.\d+\.\d+)?):(?P<split>[^#]+)(#(?P<feature>\w+))?")


def stop_at(fault: DataError) -> None:
    """Raise the fault: what to do with a bad document unless told otherwise."""
    raise fault


@dataclass(frozen=True)
class Source:
    """Documents in an order that depends on the content of the files alone."""

    spelling: str
    files: tuple[Path, ...]
    """All that decides the documents, along with `settings`."""
    names: tuple[str, ...]
    """The files relative to the folder they share: what document ids begin with."""
    settings: str
    parts: tuple[Callable[[], Documents], ...]
    """Each reads one file or range, in order."""

    @cached_property
    def estimated_bytes(self) -> int:
        """Bytes of text, roughly, from the sizes of the files."""
        return sum(path.stat().st_size * _GROWTH.get(path.suffix, 1) for path in self.files)

    def documents(self, on_bad: Callable[[DataError], None] = stop_at) -> Iterator[Document]:
        """Yield every document in order and hand bad ones to `on_bad`; DataError for none at all, or an unreadable file."""
        empty, first_bad = True, ""

        def note(fault: DataError) -> None:
            nonlocal first_bad
            first_bad = first_bad or f" The first that was skipped: {fault}"
            on_bad(fault)

        for document in _all_of(self.parts, note):
            empty = False
            yield document
        if empty:
            raise DataError(f"source {self.spelling!r} holds no documents: give one that holds text.{first_bad}")

    def sample(self, budget: int, keep: Callable[[str], bool], on_bad: Callable[[DataError], None] = stop_at) -> Iterator[str]:
        """Yield about `budget` bytes of the documents whose id `keep` accepts, as many from the start of each file."""
        taken = 0
        for number, part in enumerate(self.parts, start=1):
            share = budget * number // len(self.parts)
            documents = _all_of((part,), on_bad)
            while taken < share and (document := next(documents, None)):
                if keep(document.id):
                    taken += len(document.text.encode())
                    yield document.text

    def fingerprint(self, hashes: ContentHashes) -> str:
        """Return a hash of all that decides the documents: the files' contents and relative names, and how they are read."""
        total = hashlib.sha256(self.settings.encode())
        for name, path in zip(self.names, self.files, strict=True):
            total.update(f"\n{hashes.of(path)} {name}".encode(errors="surrogateescape"))
        return total.hexdigest()


def _all_of(parts: tuple[Callable[[], Documents], ...], on_bad: Callable[[DataError], None]) -> Iterator[Document]:
    for part in parts:
        try:
            for document in part():
                if isinstance(document, DataError):
                    on_bad(document)
                else:
                    yield document
        except OSError as error:
            raise DataError(f"cannot read {error.filename}: {error.strerror}") from error


def parse_source(spelling: str, *, rows: bool = False) -> Source:
    """Return the source that `spelling` names; ConfigError for one that does not exist or cannot be read here.

    Its documents are texts or, for `rows`, JSON objects: rows with a prompt and a response, say.
    """
    kind, rest = check_spelling(spelling, rows=rows)
    if kind == "stdlib":
        return _standard_library()
    if kind == "tfds":
        return _tfds(spelling, rest, rows)
    pattern, option = _split_option(kind, rest)
    files = _find_files(spelling, pattern)
    if kind == "parquet":
        _require("pyarrow", spelling)
    if kind == "jsonl" and any(path.suffix == ".zst" for path in files):
        _require("zstandard", spelling)
    readings = {
        "text": lambda: partial(readers.read_text, section_bytes=int(option or 0)),
        "jsonl": lambda: partial(readers.read_jsonl, field=option or "text"),
        "arrayrecord": lambda: readers.read_array_record,
        "parquet": lambda: partial(readers.read_parquet, column=option or "text"),
    }
    root = Path(os.path.commonpath([path.parent for path in files]))
    if rows:
        if option:
            raise ConfigError(
                f"source {spelling!r} names a field of text; data.examples names those of rows: leave out #{option}"
            )
        return _from_files(spelling, files, root, f"{kind} rows", _ROW_READERS[kind])
    return _from_files(spelling, files, root, f"{kind}#{option}", readings[kind]())


def check_spelling(spelling: str, *, rows: bool = False) -> tuple[str, str]:
    """Return a source's kind and what follows it; ConfigError for one that exists nowhere, whatever files there are."""
    if len(spelling) > _LONGEST:
        raise ConfigError(f"source {spelling[:80]!r}... has {len(spelling)} characters, more than any path: mend it")
    kind, _, rest = spelling.partition(":")
    if kind not in _KINDS:
        near = f" Did you mean 'text:{spelling}'?" if os.path.exists(spelling) else suggest(kind, _KINDS)
        raise ConfigError(f"unknown kind of source {spelling!r}.{near} Kinds: {', '.join(_KINDS)}, as in 'text:books/*.txt'")
    if rows and kind in ("stdlib", "text"):
        raise ConfigError(
            f"source {spelling!r} holds text, and data.form asks for rows: give jsonl:, parquet:, arrayrecord: or tfds:"
        )
    if kind == "stdlib":
        if rest:
            raise ConfigError(f"source {spelling!r} takes nothing after 'stdlib'")
        return kind, rest
    if not rest:
        raise ConfigError(f"source {spelling!r} needs a {'name' if kind == 'tfds' else 'path'} after '{kind}:'")
    return kind, rest


def _split_option(kind: str, rest: str) -> tuple[str, str]:
    """Return the path and what follows its last "#", which only some kinds take: elsewhere it belongs to the path."""
    taken = {"jsonl": r"[^#/]+", "parquet": r"[^#/]+", "text": r"[1-9]\d*"}
    path, _, option = rest.rpartition("#")
    return (path, option) if path and kind in taken and re.fullmatch(taken[kind], option) else (rest, "")


def _from_files(spelling: str, files: list[Path], root: Path, settings: str, read: Callable[[Path, str], Documents]) -> Source:
    names = tuple(path.relative_to(root).as_posix() for path in files)
    parts = tuple(partial(read, path, name) for path, name in zip(files, names, strict=True))
    return Source(spelling, tuple(files), names, settings, parts)


def _find_files(spelling: str, pattern: str) -> list[Path]:
    expanded = os.path.expanduser(pattern)
    if os.path.isdir(expanded):
        example = f"{spelling.rstrip('/')}/**/*.txt"
        raise ConfigError(f"source {spelling!r} is a folder: name the files in it, for example {example!r}")
    try:
        found = [expanded] if os.path.exists(expanded) else sorted(glob.glob(expanded, recursive=True))
    except ValueError:  # a character that no file's name can have
        found = []
    files = [Path(name).absolute() for name in found if os.path.isfile(name)]
    if not files:
        wild = glob.has_magic(expanded)
        what = "no file matches this pattern" if wild else "there is no such file"
        raise ConfigError(f"source {spelling!r}: {what} ({os.path.abspath(expanded)}). Mend the path")
    for path in files:
        if not os.access(path, os.R_OK):
            raise ConfigError(f"source {spelling!r}: no permission to read {path}. Run chmod +r on it, or leave it out")
    return files


def _require(module: str, spelling: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ConfigError(f"source {spelling!r} needs the package {module}: pip install 'jaxlm[data]'")


def _standard_library() -> Source:
    root = Path(sysconfig.get_paths()["stdlib"])
    files = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = set(subfolders) - _NOT_LIBRARY
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    if not files:
        raise ConfigError(f"source 'stdlib': this Python has no library sources in {root}. Name another source, as 'text:PATH'")
    return _from_files("stdlib", sorted(files), root, "stdlib", readers.read_python)


def _tfds(spelling: str, rest: str, rows: bool) -> Source:
    _require("tensorflow_datasets", spelling)
    match = _TFDS_SPELLING.fullmatch(rest)
    if not match:
        raise ConfigError(f"source {spelling!r} is not spelt as tfds:name[/config][:version]:split#feature")
    import tensorflow_datasets
    from absl import flags
    from tensorflow_datasets.core.read_only_builder import builder_from_files

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # TFDS reads a flag of absl, which raises in a program that never parsed any
    name, split, feature = match["name"], match["split"], match["feature"] or "text"
    prepare = f"tfds.builder({name!r}, file_format='array_record').download_and_prepare()"
    try:
        builder = builder_from_files(name, data_dir=os.environ.get("TFDS_DATA_DIR"))
    except tensorflow_datasets.core.DatasetNotFoundError as error:
        where = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
        raise ConfigError(f"source {spelling!r} is not prepared in {where}. Prepare it: {prepare}") from error
    except ValueError as error:
        raise ConfigError(f"source {spelling!r}: {name!r} is no name of a data set, as TFDS has them: c4/en:3.1.0") from error
    if builder.info.file_format.value != "array_record":
        stored = builder.info.file_format.value
        raise ConfigError(f"source {spelling!r} is stored as {stored}, which needs TensorFlow. Prepare it anew: {prepare}")
    if not rows and feature not in builder.info.features:
        names = list(builder.info.features)
        near = suggest(feature, names)
        raise ConfigError(f"source {spelling!r} has no feature {feature!r}.{near} Its features: {', '.join(names)}")
    try:
        files = [Path(path) for path in builder.info.splits[split].filepaths]
        examples = builder.as_data_source(split=split)
    except (ValueError, KeyError, AssertionError) as error:
        splits = ", ".join(builder.info.splits)
        raise ConfigError(f"source {spelling!r} has no split {split!r}; its splits: {splits}. ({error})") from error
    bounds = [len(examples) * part // _TFDS_PARTS for part in range(_TFDS_PARTS + 1)]
    ranges = [range(low, high) for low, high in itertools.pairwise(bounds) if low < high]
    place = f"{name}/{split}"
    if rows:
        parts = tuple(partial(example_rows.read_tfds_rows, examples, indices, place) for indices in ranges)
    else:
        parts = tuple(partial(readers.read_tfds, examples, indices, place, feature) for indices in ranges)
    settings = f"tfds rows#{split}" if rows else f"tfds#{split}#{feature}"
    return Source(spelling, tuple(files), tuple(path.name for path in files), settings, parts)
