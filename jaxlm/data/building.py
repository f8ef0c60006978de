"""One source read, encoded, packed and written, block by block, so that an interruption costs one block at most."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.config import read_json
from jaxlm.data.chat import read_template
from jaxlm.data.encoding import Group, encode_in_order
from jaxlm.data.example_config import ExampleConfig
from jaxlm.data.example_fields import Fault, printable
from jaxlm.data.examples import Example
from jaxlm.data.forms import Form, rows_of
from jaxlm.data.readers import Document
from jaxlm.data.shards import write_shard
from jaxlm.data.sources import Source, stop_at
from jaxlm.data.storage import sync_folder, write_atomically
from jaxlm.data.tokenizer import load_tokenizer
from jaxlm.errors import DataError

SPLITS = ("train", "validation")
MANIFEST = "manifest.json"
_GROUP_BYTES = 1 << 20
_FIRST = 10  # bad rows whose places are told
_MOST_BLOCKS = 256  # a block is a file, and large sources get larger blocks instead of thousands of files
_WORTH_PROCESSES = 16 << 20  # below this much text, starting processes takes longer than encoding it
_SLOWER = 8  # chat templates and rows with fields take so many times as long


@dataclass(frozen=True)
class Job:
    """A source, and the share of its documents that goes to the validation split: chosen by the hash of their ids."""

    source: Source
    validation_fraction: float

    def split(self, identifier: str) -> str:
        """Return the split of the document with this id, which no other document has a say in."""
        place = int.from_bytes(hashlib.blake2b(identifier.encode(errors="surrogateescape"), digest_size=8).digest())
        return "validation" if place < self.validation_fraction * 2**64 else "train"


@dataclass(frozen=True)
class Settings:
    """What `build` does the same for every source."""

    folder: Path
    tokenizer_file: Path
    form: Form
    examples: ExampleConfig
    sequence_length: int
    block_bytes: int
    workers: int
    skip_bad: bool


@dataclass
class _Block:
    documents: list[Any]
    bytes: int


@dataclass
class _Faults:
    """What was wrong with rows, by kind, with the first places; and how many were cut."""

    kinds: dict[str, int] = field(default_factory=dict)
    first: list[tuple[int, str]] = field(default_factory=list)
    """Each with the number of readable documents until there."""
    cut_prompts: int = 0
    cut_responses: int = 0

    def add(self, kind: str, message: str, place: int) -> None:
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        self.first = [*self.first, (place, printable(message))][:_FIRST]

    def note(self, item: Any) -> None:
        if isinstance(item, Example):
            self.cut_prompts += item.cut_prompt
            self.cut_responses += item.cut_response


def new_manifest(jobs: list[Job]) -> dict:
    """Return the record of a preparation in which nothing is done yet."""

    def entry(job: Job) -> dict:
        splits = {split: {"shards": [], "documents": 0, "tokens": 0, "bytes": 0} for split in SPLITS}
        return {"source": job.source.spelling, "done": False, "read": 0, "splits": splits}

    return {"complete": False, "sources": [entry(job) for job in jobs]}


def read_manifest(folder: Path) -> dict | None:
    """Return the record in `folder`, or None where there is none."""
    try:
        found = read_json((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write_manifest(folder: Path, manifest: dict) -> None:
    """Replace the record in `folder`, atomically."""
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1).encode())


def build(job: Job, number: int, manifest: dict, settings: Settings, progress: Callable[[int], None]) -> None:
    """Do what is not done yet of source `number`, keeping `manifest` true after every block.

    `progress` is told the bytes of text as they are encoded. The files come out the same whatever the number of workers and
    however often the work was interrupted. Unless `skip_bad`, DataError is raised for the first bad document of text, and
    for bad rows of another form when all were looked at; OSError where nothing can be written.
    """
    entry = manifest["sources"][number]
    tokenizer = load_tokenizer(settings.tokenizer_file)
    template = read_template(settings.examples.template)
    rows = rows_of(settings.form, settings.sequence_length, tokenizer.vocab_size, settings.examples, template)
    unreadable, faults, token_bytes = _Faults(), _Faults(**entry.get("faults", {})), tokenizer.token_bytes()
    documents = _documents(job.source, unreadable if settings.skip_bad or settings.form != "text" else None)
    finished = entry.get("read", 0) or sum(entry["splits"][split]["documents"] for split in SPLITS)
    for document in itertools.islice(documents, finished):
        progress(len(document.text.encode()))
    read = finished
    block_bytes = max(settings.block_bytes, job.source.estimated_bytes // _MOST_BLOCKS)
    enough = _WORTH_PROCESSES // (1 if settings.form == "text" else _SLOWER)
    workers = settings.workers if job.source.estimated_bytes >= enough else 1
    block = {split: _Block([], 0) for split in SPLITS}
    groups = _groups(documents, job, block_bytes)
    for group, encoded in encode_in_order(settings.tokenizer_file, groups, workers, rows.encode):
        said = zip(group.splits, group.texts, group.wheres, encoded, strict=True)
        for place, (split, text, where, item) in enumerate(said, start=read + 1):
            faults.note(item)
            if isinstance(item, Fault):
                faults.add(item.kind, f"{where}: {item.message}", place)
                continue
            block[split].documents.append(item)
            block[split].bytes += _text_bytes(item, token_bytes) if isinstance(item, Example) else len(text.encode())
        read += len(group.texts)
        progress(sum(len(text.encode()) for text in group.texts))
        if group.ends_block:
            for split in SPLITS:
                packed = rows.pack(block[split].documents, tokenizer)
                _commit(entry["splits"][split], block[split], packed, rows.size, settings.folder, f"{number}/{split}")
            entry |= {"read": read, "faults": asdict(faults)}
            write_manifest(settings.folder, manifest)
            block = {split: _Block([], 0) for split in SPLITS}
    kinds = unreadable.kinds | faults.kinds
    in_order = sorted([*faults.first, *unreadable.first], key=lambda each: each[0])
    first = [message for _, message in in_order[:_FIRST]]
    if kinds and not settings.skip_bad:
        raise _of_faults(job.source.spelling, kinds, first, read + sum(unreadable.kinds.values()))
    entry |= {"done": True, "faults": asdict(faults) | {"kinds": kinds, "first": first}}
    entry |= {"bad_documents": sum(kinds.values()), "first_bad_documents": first}
    write_manifest(settings.folder, manifest)


def _documents(source: Source, unreadable: _Faults | None) -> Iterator[Document]:
    """Yield the documents of a source, and note what cannot be read; DataError for the first of these without such notes."""
    count = 0

    def note(fault: DataError) -> None:
        unreadable.add("unreadable", str(fault), count)

    for document in source.documents(stop_at if unreadable is None else note):
        count += 1
        yield document


def _text_bytes(example: Example, token_bytes: np.ndarray) -> int:
    return sum(int(token_bytes[ids].sum()) for response in example.responses for ids in (example.prompt, response))


def _of_faults(source: str, kinds: dict[str, int], first: list[str], read: int) -> DataError:
    """Return the error that tells of all bad rows of a source."""
    counts = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    more = sum(kinds.values()) - len(first)
    lines = "\n".join(f"  {line}" for line in [*first, *([f"... and {more} more"] if more else [])])
    return DataError(
        f"{sum(kinds.values())} of {read} rows of {source!r} cannot be used ({counts}):\n{lines}\n"
        "Mend or remove them, or leave them out, counted, with data.on_bad_document='skip'"
    )


def _groups(documents: Iterator[Document], job: Job, block_bytes: int) -> Iterator[Group]:
    group, group_size, block_size = Group([], [], [], False), 0, 0
    for document in documents:
        group.splits.append(job.split(document.id))
        group.texts.append(document.text)
        group.wheres.append(document.where)
        group_size += len(document.text.encode())
        if block_size + group_size >= block_bytes or group_size >= _GROUP_BYTES:
            block_size += group_size
            ends_block = block_size >= block_bytes
            yield group._replace(ends_block=ends_block)
            group, group_size, block_size = Group([], [], [], False), 0, 0 if ends_block else block_size
    if group.texts or block_size:
        yield group._replace(ends_block=True)


def _commit(split: dict, block: _Block, rows: np.ndarray, size: Callable[[Any], int], folder: Path, subfolder: str) -> None:
    if len(rows):
        name = f"{subfolder}/{len(split['shards']):05d}.arrayrecord"
        (folder / subfolder).mkdir(parents=True, exist_ok=True)
        write_shard(folder / name, rows)
        sync_folder(folder / subfolder)
        split["shards"].append({"file": name, "rows": len(rows)})
    split["documents"] += len(block.documents)
    split["tokens"] += sum(size(document) for document in block.documents)
    split["bytes"] += block.bytes


def remove_strays(folder: Path, manifest: dict) -> None:
    """Delete what an interrupted preparation left beside the finished blocks."""
    finished = [entry["splits"][split] for entry in manifest["sources"] for split in SPLITS]
    known = {shard["file"] for split in finished for shard in split["shards"]}
    for path in [*folder.glob("*/*/*.arrayrecord*"), *folder.glob("*.tmp")]:
        if path.relative_to(folder).as_posix() not in known:
            path.unlink()


def check_rows(manifest: dict, expect_validation: bool) -> None:
    """Raise DataError where a split that is asked for came out empty."""
    for split in SPLITS if expect_validation else SPLITS[:1]:
        if not any(entry["splits"][split]["shards"] for entry in manifest["sources"]):
            count = sum(entry["splits"][part]["documents"] for entry in manifest["sources"] for part in SPLITS)
            bad = [line for entry in manifest["sources"] for line in entry["first_bad_documents"]]
            if not count and bad:
                raise DataError(f"there is nothing to read: all is bad that the sources hold. First: {bad[0]}")
            raise DataError(
                f"no text for the {split} split: all of the {count} document(s) fell to the other. Name "
                "data.validation_sources, change data.validation_fraction, or cut long files into more documents with "
                "text:PATH#BYTES (for example #16384)"
            )
