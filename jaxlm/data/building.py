"""One source read, encoded, packed and written, block by block, so that an interruption costs one block at most."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxlm.data.encoding import Group, encode_in_order
from jaxlm.data.packing import pack, row_type
from jaxlm.data.readers import Document
from jaxlm.data.shards import write_shard
from jaxlm.data.sources import Source, stop_at
from jaxlm.data.storage import sync_folder, write_atomically
from jaxlm.data.tokenizer import load_tokenizer
from jaxlm.errors import DataError

SPLITS = ("train", "validation")
MANIFEST = "manifest.json"
_GROUP_BYTES = 1 << 20
_MOST_BLOCKS = 256  # a block is a file, and large sources get larger blocks instead of thousands of files
_WORTH_PROCESSES = 16 << 20  # below this much text, starting processes takes longer than encoding


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
    sequence_length: int
    block_bytes: int
    workers: int
    skip_bad: bool


@dataclass
class _Block:
    documents: list[np.ndarray]
    bytes: int


def new_manifest(jobs: list[Job]) -> dict:
    """Return the record of a preparation in which nothing is done yet."""

    def entry(job: Job) -> dict:
        splits = {split: {"shards": [], "documents": 0, "tokens": 0, "bytes": 0} for split in SPLITS}
        return {"source": job.source.spelling, "done": False, "splits": splits}

    return {"complete": False, "sources": [entry(job) for job in jobs]}


def read_manifest(folder: Path) -> dict | None:
    """Return the record in `folder`, or None where there is none."""
    try:
        return json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None


def write_manifest(folder: Path, manifest: dict) -> None:
    """Replace the record in `folder`, atomically."""
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1).encode())


def build(job: Job, number: int, manifest: dict, settings: Settings, progress: Callable[[int], None]) -> None:
    """Do what is not done yet of source `number`, keeping `manifest` true after every block.

    `progress` is told the bytes of text as they are encoded. The files come out the same whatever the number of workers and
    however often the work was interrupted. Raises DataError for a bad document (unless `skip_bad`), and OSError where nothing
    can be written.
    """
    entry = manifest["sources"][number]
    tokenizer = load_tokenizer(settings.tokenizer_file)
    row = row_type(settings.sequence_length, tokenizer.vocab_size)
    bad = {"bad_documents": 0, "first_bad_documents": []}

    def count_bad(fault: DataError) -> None:
        bad["bad_documents"] += 1
        bad["first_bad_documents"] = [*bad["first_bad_documents"], str(fault)][:10]

    documents = job.source.documents(count_bad if settings.skip_bad else stop_at)
    finished = sum(entry["splits"][split]["documents"] for split in SPLITS)
    for document in itertools.islice(documents, finished):
        progress(len(document.text.encode()))
    block_bytes = max(settings.block_bytes, job.source.estimated_bytes // _MOST_BLOCKS)
    workers = settings.workers if job.source.estimated_bytes >= _WORTH_PROCESSES else 1
    block = {split: _Block([], 0) for split in SPLITS}
    for group, encoded in encode_in_order(settings.tokenizer_file, _groups(documents, job, block_bytes), workers):
        for split, text, tokens in zip(group.splits, group.texts, encoded, strict=True):
            block[split].documents.append(tokens)
            block[split].bytes += len(text.encode())
        progress(sum(len(text.encode()) for text in group.texts))
        if group.ends_block:
            for split in SPLITS:
                rows = pack(block[split].documents, row, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
                _commit(entry["splits"][split], block[split], rows, settings.folder, f"{number}/{split}")
            write_manifest(settings.folder, manifest)
            block = {split: _Block([], 0) for split in SPLITS}
    entry |= {"done": True} | bad
    write_manifest(settings.folder, manifest)


def _groups(documents: Iterator[Document], job: Job, block_bytes: int) -> Iterator[Group]:
    group, group_size, block_size = Group([], [], False), 0, 0
    for document in documents:
        group.splits.append(job.split(document.id))
        group.texts.append(document.text)
        group_size += len(document.text.encode())
        if block_size + group_size >= block_bytes or group_size >= _GROUP_BYTES:
            block_size += group_size
            ends_block = block_size >= block_bytes
            yield group._replace(ends_block=ends_block)
            group, group_size, block_size = Group([], [], False), 0, 0 if ends_block else block_size
    if group.texts or block_size:
        yield group._replace(ends_block=True)


def _commit(split: dict, block: _Block, rows: np.ndarray, folder: Path, subfolder: str) -> None:
    if len(rows):
        name = f"{subfolder}/{len(split['shards']):05d}.arrayrecord"
        (folder / subfolder).mkdir(parents=True, exist_ok=True)
        write_shard(folder / name, rows)
        sync_folder(folder / subfolder)
        split["shards"].append({"file": name, "rows": len(rows)})
    split["documents"] += len(block.documents)
    split["tokens"] += sum(len(tokens) + 2 for tokens in block.documents)
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
            raise DataError(
                f"no text for the {split} split: all of the {count} document(s) fell to the other. Name "
                "data.validation_sources, change data.validation_fraction, or cut long files into more documents with "
                "text:PATH#BYTES (for example #16384)"
            )
