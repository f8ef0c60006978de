"""Sources made into packed rows once, in a folder named by a hash of all that decides them, and opened at once ever after."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from jaxlm.config import to_dict
from jaxlm.data.building import (
    MANIFEST,
    Job,
    Settings,
    build,
    check_rows,
    new_manifest,
    read_manifest,
    remove_strays,
    write_manifest,
)
from jaxlm.data.chat import read_template
from jaxlm.data.data_config import DataConfig
from jaxlm.data.example_packing import ROW_FORMAT
from jaxlm.data.examples import texts_of
from jaxlm.data.fingerprint import ContentHashes
from jaxlm.data.sources import parse_source
from jaxlm.data.storage import cache_folder, storage_errors
from jaxlm.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from jaxlm.errors import DataError
from jaxlm.locks import in_turn

_FORMAT = 1  # part of every key: raise it when the same input is to give other rows
_BLOCK_BYTES = 64 << 20
_TOKENIZER = "tokenizer.model"

Report = Callable[[str, float], None]
"""Told what is being done, and the fraction of it that is done."""


@dataclass(frozen=True)
class SourceSplit:
    """What one source gave to one split."""

    source: str
    shards: tuple[tuple[Path, int], ...]
    """Files, and the number of rows in each."""
    rows: int
    documents: int
    tokens: int
    """With bos and eos."""
    bytes: int
    """Of UTF-8 text."""


@dataclass(frozen=True)
class SourceFaults:
    """What was wrong with documents of a source that were skipped, and what was cut to fit its row."""

    source: str
    kinds: dict[str, int]
    """How many, by what was wrong."""
    first: tuple[str, ...]
    """The first of them, with file and line."""
    cut_prompts: int
    cut_responses: int


@dataclass(frozen=True)
class Split:
    """The training or validation split: its sources, and their counts summed."""

    sources: tuple[SourceSplit, ...]
    rows: int
    documents: int
    tokens: int
    bytes: int


@dataclass(frozen=True)
class Prepared:
    """Prepared data on disk."""

    config: DataConfig
    folder: Path
    key: str
    """Names the folder: a hash of the sources' content, the tokenizer and the settings that decide the rows."""
    train: Split
    validation: Split
    bad_documents: dict[str, int]
    """How many documents of each source were skipped."""
    faults: tuple[SourceFaults, ...]
    """What was wrong with them, and what was cut."""

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.folder / _TOKENIZER)

    def split(self, name: str) -> Split:
        """Return the split called "train" or "validation"."""
        return {"train": self.train, "validation": self.validation}[name]


@dataclass(frozen=True)
class _Plan:
    jobs: list[Job]
    folder: Path
    key: str
    hashes: ContentHashes
    bytes_needed: int


def _plan(config: DataConfig, block_bytes: int) -> _Plan:
    """Find every source, and name the folder that their rows belong in; ConfigError or DataError where one is missing."""
    fraction = 0.0 if config.validation_sources else config.validation_fraction
    rows = config.form != "text"
    jobs = [Job(parse_source(spelling, rows=rows), fraction) for spelling in config.sources]
    jobs += [Job(parse_source(spelling, rows=rows), 1.0) for spelling in config.validation_sources]
    tokenizer = to_dict(config.tokenizer)
    if config.tokenizer.path:
        tokenizer = train_tokenizer(config.tokenizer, ()).digest
    cache = cache_folder(config.cache)
    hashes = ContentHashes(cache)
    decisive = {
        "format": _FORMAT,
        "sources": [[job.source.fingerprint(hashes), job.validation_fraction] for job in jobs],
        "tokenizer": tokenizer,
        "sequence_length": config.sequence_length,
        "on_bad_document": config.on_bad_document,
        "block_bytes": block_bytes,
    }
    if rows:
        decisive |= {
            "form": [config.form, ROW_FORMAT],
            "examples": to_dict(config.examples),
            "template": read_template(config.examples.template),
        }
    key = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]
    bytes_per_byte = 1.1 if config.tokenizer.kind == "byte" else 0.6  # of prepared data, measured on the standard library
    needed = int(bytes_per_byte * sum(job.source.estimated_bytes for job in jobs))
    return _Plan(jobs, cache / key, key, hashes, needed)


def data_key(config: DataConfig) -> str:
    """Return what names the rows that `config` asks for: a hash of the content of its sources and of how rows are made of them.

    Sources are found and read (their hashes are remembered), nothing is prepared. Raises ConfigError or DataError.
    """
    plan = _plan(config, _BLOCK_BYTES)
    plan.hashes.save()
    return plan.key


def open_prepared(config: DataConfig) -> Prepared | None:
    """Return the prepared data that `config` asks for, or None where it is not (wholly) there."""
    plan = _plan(config, _BLOCK_BYTES)
    plan.hashes.save()
    return _open(config, plan)


def _open(config: DataConfig, plan: _Plan) -> Prepared | None:
    manifest = read_manifest(plan.folder)
    if not manifest or not manifest["complete"]:
        return None

    train, validation = (_split(manifest, name, plan.folder) for name in ("train", "validation"))
    bad = {entry["source"]: entry["bad_documents"] for entry in manifest["sources"]}
    return Prepared(config, plan.folder, plan.key, train, validation, bad, tuple(_faults(manifest)))


def _faults(manifest: dict) -> Iterator[SourceFaults]:
    for entry in manifest["sources"]:
        found = entry.get("faults") or {"kinds": {}, "first": [], "cut_prompts": 0, "cut_responses": 0}
        if any(found.values()):
            yield SourceFaults(
                entry["source"], found["kinds"], tuple(found["first"]), found["cut_prompts"], found["cut_responses"]
            )


def _split(manifest: dict, name: str, folder: Path) -> Split:
    parts = []
    for entry in manifest["sources"]:
        split = entry["splits"][name]
        shards = tuple((folder / shard["file"], shard["rows"]) for shard in split["shards"])
        rows = sum(count for _, count in shards)
        parts.append(SourceSplit(entry["source"], shards, rows, split["documents"], split["tokens"], split["bytes"]))
    totals = {count: sum(getattr(part, count) for part in parts) for count in ("rows", "documents", "tokens", "bytes")}
    return Split(tuple(parts), **totals)


def prepare(
    config: DataConfig, *, workers: int | None = None, report: Report | None = None, block_bytes: int = _BLOCK_BYTES
) -> Prepared:
    """Return the prepared data that `config` asks for, making what is missing of it.

    Work that was interrupted goes on after its last finished block of `block_bytes` of text. `workers` processes encode (all
    cores unless told otherwise). Two processes that prepare the same thing wait for each other. Raises ConfigError for sources
    that do not exist, before any is read, and DataError for text that cannot be used and for a folder that cannot be written.
    """
    report = report or (lambda stage, fraction: None)
    plan = _plan(config, block_bytes)
    plan.hashes.save()
    if prepared := _open(config, plan):
        return prepared
    with storage_errors(plan.folder, plan.bytes_needed):
        plan.folder.mkdir(parents=True, exist_ok=True)
        with in_turn(plan.folder / "lock", lambda: report("waiting for another process that prepares the same data", 0.0)):
            if not (prepared := _open(config, plan)):
                _build_all(config, plan, _num_cores() if workers is None else workers, report, block_bytes)
                prepared = _open(config, plan)
    return prepared


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _build_all(config: DataConfig, plan: _Plan, workers: int, report: Report, block_bytes: int) -> None:
    manifest = read_manifest(plan.folder) or new_manifest(plan.jobs)
    remove_strays(plan.folder, manifest)
    tokenizer_file = plan.folder / _TOKENIZER
    if not tokenizer_file.exists():
        report(f"{'reading' if config.tokenizer.path or config.tokenizer.kind == 'byte' else 'training'} the tokenizer", 0.0)
        train_tokenizer(config.tokenizer, _sample(config, plan.jobs)).save(tokenizer_file)
    skip_bad = config.on_bad_document == "skip"
    settings = Settings(
        plan.folder, tokenizer_file, config.form, config.examples, config.sequence_length, block_bytes, workers, skip_bad
    )
    total, done = max(1, sum(job.source.estimated_bytes for job in plan.jobs)), 0

    def progress(stage: str, size: int) -> None:
        nonlocal done
        done += size
        report(stage, min(done / total, 1.0))

    for number, job in enumerate(plan.jobs):
        stage = f"encoding {job.source.spelling}"
        if manifest["sources"][number]["done"]:
            progress(stage, job.source.estimated_bytes)
        else:
            build(job, number, manifest, settings, lambda size, stage=stage: progress(stage, size))
    check_rows(manifest, expect_validation=bool(config.validation_sources) or config.validation_fraction > 0)
    if _plan(config, block_bytes).key != plan.key:
        (plan.folder / MANIFEST).unlink()
        raise DataError(f"a source changed while it was read ({', '.join(config.sources)}): run the same command again")
    write_manifest(plan.folder, manifest | {"complete": True, "config": to_dict(config), "tokenizer": _TOKENIZER})


def _sample(config: DataConfig, jobs: list[Job]) -> Iterator[str]:
    """Yield training text for the tokenizer: from each source in proportion to its size, and nothing held out."""
    total = max(1, sum(job.source.estimated_bytes for job in jobs if job.validation_fraction < 1))

    def ignore(fault: DataError) -> None:
        if config.on_bad_document == "error" and config.form == "text":  # bad rows are told of all together, later
            raise fault

    for job in (job for job in jobs if job.validation_fraction < 1):
        budget = -(-config.tokenizer.training_bytes * job.source.estimated_bytes // total)
        texts = job.source.sample(budget, lambda identifier, job=job: job.split(identifier) == "train", ignore)
        yield from texts if config.form == "text" else (texts_of(text, config.examples) for text in texts)
