"""Preparation: the same bytes however it is done, never a stale cache, and clear errors with finished work kept."""

import errno
import fcntl
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from multiprocessing import popen_spawn_posix

import numpy as np
import pytest

from jaxlm.config import to_dict
from jaxlm.data import building, encoding, shards
from jaxlm.data import prepare as preparation
from jaxlm.data.byte_tokenizer import ByteTokenizer
from jaxlm.data.packing import row_type
from jaxlm.data.prepare import open_prepared, prepare
from jaxlm.data.tokenizer import TokenizerConfig, train_tokenizer
from jaxlm.errors import ConfigError, DataError

BLOCK = 2000


def contents(prepared):
    """Return every file of prepared data, by name, and its bytes."""
    files = (path for path in prepared.folder.rglob("*") if path.is_file())
    return {path.relative_to(prepared.folder).as_posix(): path.read_bytes() for path in files}


def without_cache(content):
    """Drop the one line of the manifest that says where it lies."""
    return {name: [line for line in data.splitlines() if b'"cache"' not in line] for name, data in content.items()}


def documents_of(split, prepared):
    """Return the texts of a split, put together again from its rows."""
    row = row_type(prepared.config.sequence_length, prepared.tokenizer.vocab_size)
    rows = shards.RowReader([shard for part in split.sources for shard in part.shards], row).read(np.arange(split.rows))
    stream = np.concatenate([row["tokens"][1 : row["count"]] for row in rows])
    return [prepared.tokenizer.decode(tokens) for tokens in np.split(stream, np.flatnonzero(stream == 1))]


def test_documents_counts_and_splits(books, byte_config):
    prepared = prepare(byte_config())
    found = []
    for split in (prepared.train, prepared.validation):
        texts = documents_of(split, prepared)
        assert split.documents == len(texts)
        assert split.bytes == sum(map(len, texts))
        assert split.tokens == split.bytes + 2 * split.documents
        found += texts
    assert sorted(found) == sorted(path.read_text() for path in books.iterdir())
    assert 2 <= prepared.validation.documents <= 16
    assert prepared.bad_documents == {prepared.config.sources[0]: 0}


def test_opened_at_once_when_finished(byte_config, monkeypatch):
    assert open_prepared(byte_config()) is None
    first = prepare(byte_config())
    monkeypatch.setattr(preparation, "build", None)
    assert prepare(byte_config()).key == first.key == open_prepared(byte_config()).key
    assert open_prepared(byte_config(weights=(2.0,))).key == first.key
    assert open_prepared(byte_config()).tokenizer.digest == first.tokenizer.digest


def test_changed_input_or_setting_never_reuses_a_cache(books, byte_config):
    keys = [prepare(byte_config()).key]
    status = (books / "07.txt").stat()
    content = (books / "07.txt").read_text()
    (books / "07.txt").write_text(content.swapcase())
    os.utime(books / "07.txt", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert open_prepared(byte_config()) is None  # same size, same time, another content
    keys.append(prepare(byte_config()).key)
    (books / "07.txt").rename(books / "99.txt")
    for changes in (
        {},
        {"sequence_length": 32},
        {"validation_fraction": 0.3},
        {"on_bad_document": "skip"},
        {"sources": (f"text:{books}/*.txt#500",)},
        {"tokenizer": TokenizerConfig(vocab_size=300)},
        {"validation_sources": (f"text:{books}/99.txt",)},
    ):
        assert open_prepared(byte_config(**changes)) is None
        keys.append(prepare(byte_config(**changes)).key)
    assert len(set(keys)) == len(keys)
    (books / "99.txt").rename(books / "07.txt")
    (books / "07.txt").write_text(content)
    assert open_prepared(byte_config()).key == keys[0]


def test_source_that_changes_while_read(books, byte_config, monkeypatch):
    real_build = building.build

    def build_then_change(*arguments):
        real_build(*arguments)
        (books / "07.txt").write_text("changed")

    monkeypatch.setattr(preparation, "build", build_then_change)
    with pytest.raises(DataError, match="changed while it was read"):
        prepare(byte_config())


def test_workers_do_not_change_a_byte(byte_config, tmp_path, monkeypatch):
    alone = prepare(byte_config(), workers=1, block_bytes=BLOCK)
    monkeypatch.setattr(building, "_WORTH_PROCESSES", 0)
    monkeypatch.setattr(building, "_GROUP_BYTES", 500)
    monkeypatch.setattr(encoding, "_IN_FLIGHT_PER_WORKER", 2)
    together = prepare(byte_config(cache=str(tmp_path / "other")), workers=2, block_bytes=BLOCK)
    assert len(alone.train.sources[0].shards) > 3
    assert without_cache(contents(alone)) == without_cache(contents(together))


def test_interrupted_anywhere_it_goes_on_to_the_same_bytes(byte_config, tmp_path, monkeypatch):
    whole = prepare(byte_config(), block_bytes=BLOCK)
    config, writes, real_write = byte_config(cache=str(tmp_path / "other")), itertools.count(), shards.write_shard

    def interrupted_write(path, rows):
        if next(writes) % 3 == 2:
            raise KeyboardInterrupt
        real_write(path, rows)

    monkeypatch.setattr(building, "write_shard", interrupted_write)
    resumed, interruptions = None, 0
    while not resumed:
        try:
            resumed = prepare(config, block_bytes=BLOCK)
        except KeyboardInterrupt:
            interruptions += 1
            manifest = building.read_manifest(tmp_path / "other" / whole.key)
            assert manifest is None or not manifest["complete"]
    assert interruptions >= 3
    assert without_cache(contents(whole)) == without_cache(contents(resumed))


def test_killed_outright_it_goes_on_to_the_same_bytes(byte_config, tmp_path):
    whole = prepare(byte_config(), block_bytes=BLOCK)
    config = byte_config(cache=str(tmp_path / "other"))
    program = (
        "import os, signal; from jaxlm.data import building; from jaxlm.data.prepare import DataConfig, prepare\n"
        "real, count = building.write_shard, iter(range(9))\n"
        "def write(path, rows):\n"
        "    real(path, rows)\n"
        "    if next(count) == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "building.write_shard = write\n"
        f"prepare(DataConfig(**{to_dict(config)!r}), block_bytes={BLOCK})"
    )
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    stray = tmp_path / "other" / whole.key / "0" / "train" / "00099.arrayrecord.tmp"
    stray.write_bytes(b"half a shard")
    assert without_cache(contents(prepare(config, block_bytes=BLOCK))) == without_cache(contents(whole))


def dies(tokenizer, text):
    os.kill(os.getpid(), signal.SIGKILL if "a" in text else signal.SIGTERM)


def test_a_worker_that_dies_is_an_error(byte_config, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "_WORTH_PROCESSES", 0)
    monkeypatch.setattr(encoding, "_serve", print)  # it ends before it does anything
    with pytest.raises(DataError, match="a process that encodes text died"):
        prepare(byte_config(), workers=2)
    monkeypatch.undo()
    (tmp_path / "tokenizer.model").write_bytes(ByteTokenizer.content)
    for text in ("a", "b"):
        groups = [encoding.Group(["train"], [text], [text], True)] * 20
        with pytest.raises(DataError, match="a process that encodes text died"):
            list(encoding.encode_in_order(tmp_path / "tokenizer.model", groups, 2, dies))
    assert not multiprocessing.active_children()


def test_a_worker_that_dies_while_it_is_started_is_the_same_error(byte_config, monkeypatch):
    def killed(*_):  # its parent is still writing what it is to begin with
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(building, "_WORTH_PROCESSES", 0)
    monkeypatch.setattr(popen_spawn_posix.Popen, "_launch", killed)
    with pytest.raises(DataError, match="a process that encodes text died"):
        prepare(byte_config(), workers=2)


def fails(tokenizer, text):
    raise DataError(f"no tokens for {text}")


def test_a_fault_of_the_encoding_comes_back_and_none_of_its_processes_stays(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(ByteTokenizer.content)
    groups = [encoding.Group(["train"], ["b"], ["b"], True)] * 20
    with pytest.raises(DataError, match="no tokens for b") as fault:
        list(encoding.encode_in_order(tmp_path / "tokenizer.model", groups, 2, fails))
    assert "in fails" in fault.value.__notes__[0]
    encoded = encoding.encode_in_order(tmp_path / "tokenizer.model", groups, 2)
    assert next(encoded)[1][0].tolist() == [ord("b") + 3]
    encoded.close()
    assert not multiprocessing.active_children()


def test_second_process_waits_then_opens(byte_config, tmp_path, monkeypatch):
    config, said, waiting = byte_config(), [], threading.Event()
    key = prepare(byte_config(cache=str(tmp_path / "other"))).key
    folder = tmp_path / "cache" / key
    folder.mkdir(parents=True)

    def report(stage, fraction):
        said.append(stage)
        waiting.set()

    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=prepare, args=(config,), kwargs={"report": report})
        thread.start()
        assert waiting.wait(10)
        (tmp_path / "other" / key).rename(tmp_path / "finished")
        for path in (tmp_path / "finished").iterdir():
            if path.name != "lock":
                path.rename(folder / path.name)
    thread.join(10)
    assert said == ["waiting for another process that prepares the same data"]


def test_trained_tokenizer_sees_no_validation_text(books, byte_config):
    config = byte_config(tokenizer=TokenizerConfig(vocab_size=300))
    prepared = prepare(config)
    job = building.Job(preparation.parse_source(config.sources[0]), config.validation_fraction)
    training = [document.text for document in job.source.documents() if job.split(document.id) == "train"]
    assert prepared.tokenizer.digest == train_tokenizer(config.tokenizer, training).digest
    assert prepared.train.tokens < prepared.train.bytes * 0.7


def test_given_tokenizer(books, byte_config, tmp_path):
    train_tokenizer(TokenizerConfig(vocab_size=300), [path.read_text() for path in books.iterdir()]).save(tmp_path / "t.model")
    given = TokenizerConfig(path=str(tmp_path / "t.model"), vocab_size=300)
    prepared = prepare(byte_config(tokenizer=given))
    (tmp_path / "t.model").unlink()
    assert prepared.tokenizer.vocab_size == 300
    with pytest.raises(DataError, match="cannot read the tokenizer"):
        prepare(byte_config(tokenizer=given))


def test_validation_sources_are_kept_whole(books, byte_config):
    (books / "held.out").write_text("held out " * 30)
    prepared = prepare(byte_config(validation_sources=(f"text:{books}/held.out",)))
    assert (prepared.train.documents, prepared.validation.documents, prepared.validation.bytes) == (40, 1, 270)


def test_empty_splits(books, byte_config):
    with pytest.raises(DataError, match=r"no text for the \w+ split: all of the 1 document.*text:PATH#BYTES"):
        prepare(byte_config(sources=(f"text:{books}/00.txt",)))
    assert prepare(byte_config(validation_fraction=0.0)).validation.rows == 0


def test_bad_documents(books, byte_config):
    (books / "bad.txt").write_bytes(b"\xff")
    (books / "worse.txt").write_bytes(b"")
    with pytest.raises(DataError, match=r"bad.txt: byte 0 is not UTF-8"):
        prepare(byte_config())
    skipped = prepare(byte_config(on_bad_document="skip"))
    assert list(skipped.bad_documents.values()) == [2]
    manifest = building.read_manifest(skipped.folder)
    assert "bad.txt" in manifest["sources"][0]["first_bad_documents"][0]


def test_sources_are_checked_before_any_is_read(books, byte_config, tmp_path):
    with pytest.raises(ConfigError, match="there is no such file"):
        prepare(byte_config(sources=(f"text:{books}/*.txt", "text:missing.txt")))
    assert not (tmp_path / "cache").exists()


def test_progress_rises_to_the_end(byte_config):
    told = []
    prepare(byte_config(), report=lambda stage, fraction: told.append((stage, fraction)), block_bytes=BLOCK)
    assert told[0] == ("reading the tokenizer", 0.0)
    fractions = [fraction for _, fraction in told]
    assert fractions == sorted(fractions) and fractions[-1] == pytest.approx(1)


def test_disk_full_keeps_finished_blocks(byte_config, tmp_path, monkeypatch):
    whole = prepare(byte_config(), block_bytes=BLOCK)
    config, writers = byte_config(cache=str(tmp_path / "other")), itertools.count()

    class FullDisk:
        """Fails as ArrayRecord does: silently in write, with a RuntimeError in close."""

        def __init__(self, path, options):
            self.real = real_writer(path, options)
            self.fails = next(writers) >= 4

        def write(self, record):
            self.real.write(record)

        def close(self):
            self.real.close()
            if self.fails:
                raise RuntimeError("write() failed: No space left on device; writing x; Failed to close chunk_writer")

    real_writer = shards.ArrayRecordWriter
    monkeypatch.setattr(shards, "ArrayRecordWriter", FullDisk)
    with pytest.raises(DataError, match=r"cannot write to .*other.*the disk is full.*takes about .* MB.*data\.cache"):
        prepare(config, block_bytes=BLOCK)
    left = {path.name for path in (tmp_path / "other").rglob("*") if path.is_file()}
    assert not any(name.endswith(".tmp") for name in left) and "00001.arrayrecord" in left
    monkeypatch.undo()
    assert without_cache(contents(prepare(config, block_bytes=BLOCK))) == without_cache(contents(whole))
