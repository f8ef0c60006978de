"""Every spelling reads its documents in order, and every bad input is named with its place and its fix."""

import gzip
import json
import os
import re
import sys

import numpy as np
import pytest
import zstandard
from array_record.python.array_record_module import ArrayRecordWriter

from jaxlm.data import readers
from jaxlm.data.example_rows import read_jsonl_rows
from jaxlm.data.fingerprint import ContentHashes
from jaxlm.data.sources import parse_source
from jaxlm.errors import ConfigError, DataError

TEXTS = ["first\r\n\u2581", "second \U0001f600", "third"]


def texts(spelling):
    return [document.text for document in parse_source(spelling).documents()]


def skipping(spelling):
    bad = []
    return [document.text for document in parse_source(spelling).documents(bad.append)], [str(fault) for fault in bad]


def json_lines(values):
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def write_array_record(path, records):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def write_parquet(path, columns):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def test_standard_library():
    source = parse_source("stdlib")
    documents = {document.id: document.text for document in source.documents()}
    assert "json/decoder.py" in documents and "pydoc_data/topics.py" in documents
    assert not any({"test", "tests", "site-packages", "__pycache__"} & set(name.split("/")) for name in documents)
    assert list(documents) == sorted(documents, key=lambda name: name.split("/"))
    assert "" not in documents.values()
    assert 0.9 < sum(len(text.encode()) for text in documents.values()) / source.estimated_bytes <= 1


def test_text(tmp_path):
    for name, text in zip(["b.txt", "a/x.txt", "a.txt"], TEXTS, strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    source = parse_source(f"text:{tmp_path}/**/*.txt")
    assert {document.id: document.text for document in source.documents()} == {
        "a.txt": TEXTS[2],
        "a/x.txt": TEXTS[1],
        "b.txt": TEXTS[0],
    }
    assert texts(f"text:{tmp_path}/b.txt") == TEXTS[:1]


def test_text_cut_into_sections(tmp_path, monkeypatch):
    text = "".join(f"line {number}\n" for number in range(100))
    (tmp_path / "long.txt").write_text(text)
    monkeypatch.chdir(tmp_path)
    documents = list(parse_source("text:long.txt#200").documents())
    assert "".join(document.text for document in documents) == text
    assert all(document.text.endswith("\n") and 190 < len(document.text) < 220 for document in documents[:-1])
    assert len({document.id for document in documents}) == len(documents) == 4


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_json_lines(tmp_path, ending):
    content = json_lines([{"text": text, "body": text.upper()} for text in [*TEXTS, ""]]) + b"\n"
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[ending]
    half = len(content) // 2
    path = tmp_path / f"x.jsonl{ending}"
    path.write_bytes(pack(content[:half]) + pack(content[half:]))  # two gzip members or zstandard frames
    assert texts(f"jsonl:{path}") == TEXTS
    assert texts(f"jsonl:{path}#body") == [text.upper() for text in TEXTS]


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_a_long_line_stands_for_itself_alone(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(readers, "_LONGEST_LINE", 1000)
    monkeypatch.setattr(readers, "_CHUNK", 300)
    content = json_lines([{"text": text} for text in ("a", "b" * 2000, "c")])
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[ending]
    path = tmp_path / f"x.jsonl{ending}"
    path.write_bytes(pack(content))
    found = list(readers.read_jsonl(path, "x"))
    assert [found[0].text, found[2].text] == ["a", "c"] and len(found) == 3
    if ending:  # as a bomb has it: what is on disk is small
        assert re.search(r"line 2 has 2,012 bytes, and of a compressed file none may have more than .*skip", str(found[1]))
    else:
        assert len(found[1].text) == 2000
    rows = list(read_jsonl_rows(path, "x"))
    assert isinstance(rows[1], DataError) == bool(ending) and rows[2].id == "x:3"


def test_array_record(tmp_path):
    write_array_record(tmp_path / "x.array_record", [text.encode() for text in TEXTS * 50])
    assert texts(f"arrayrecord:{tmp_path}/x.array_record") == TEXTS * 50


def test_parquet(tmp_path):
    write_parquet(tmp_path / "x.parquet", {"text": [*TEXTS, ""], "number": [1, 2, 3, 4]})
    assert texts(f"parquet:{tmp_path}/x.parquet") == TEXTS
    with pytest.raises(DataError, match=r"no column 'txt'. Did you mean 'text'\? Its columns: text, number"):
        texts(f"parquet:{tmp_path}/x.parquet#txt")
    with pytest.raises(DataError, match="row 0: column 'number' holds int, not text"):
        texts(f"parquet:{tmp_path}/x.parquet#number")
    (tmp_path / "y.parquet").write_bytes((tmp_path / "x.parquet").read_bytes()[:-20])
    with pytest.raises(DataError, match=r"y.parquet is no Parquet file, or damaged"):
        texts(f"parquet:{tmp_path}/y.parquet")


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    """Write a data set of one text feature in ArrayRecord format, by TFDS itself and without TensorFlow."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"text": tfds.features.Text(), "label": tfds.features.Scalar(dtype=np.int64)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, download_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for number in range(100):
                yield number, {"text": f"text {number} \u00e9", "label": number}

    folder = tmp_path_factory.mktemp("tfds")
    Tiny(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_tfds(tfds_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_folder))
    assert sorted(texts("tfds:tiny:train")) == sorted(f"text {number} \u00e9" for number in range(100))
    assert texts("tfds:tiny:1.0.0:train[:10%]#text") == texts("tfds:tiny:train")[:10]
    assert "tensorflow" not in sys.modules
    hashes = ContentHashes(tmp_path)
    whole, part = (parse_source(f"tfds:tiny:{split}").fingerprint(hashes) for split in ("train", "train[:10%]"))
    assert whole != part
    for spelling, message in {
        "tfds:tiny:train#txt": r"no feature 'txt'. Did you mean 'text'\? Its features: label, text|Its features: text, label",
        "tfds:tiny:test": "no split 'test'; its splits: train",
        "tfds:tinny:train": r"'tfds:tinny:train' is not prepared in .*download_and_prepare\(\)",
        "tfds:tiny": "is not spelt as",
    }.items():
        with pytest.raises(ConfigError, match=message):
            parse_source(spelling)
    with pytest.raises(DataError, match="example 0: feature 'label' holds int, not text"):
        texts("tfds:tiny:train#label")


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("stdlibb", "unknown kind of source 'stdlibb'. Did you mean 'stdlib'"),
        ("json:x", "Did you mean 'jsonl'"),
        ("there.txt", "Did you mean 'text:there.txt'"),
        ("stdlib:x", "takes nothing after"),
        ("text:", "needs a path after 'text:'"),
        ("text:missing.txt", r"there is no such file \(.*/missing.txt\)"),
        ("text:*.none", "no file matches this pattern"),
        ("text:folder", r"is a folder: name the files in it, for example 'text:folder/\*\*/\*.txt'"),
    ],
)
def test_misspelt_sources(tmp_path, monkeypatch, spelling, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.txt").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=message):
        parse_source(spelling)


def test_missing_packages(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, kind in {"x.parquet": "parquet", "x.jsonl.zst": "jsonl"}.items():
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ConfigError, match=r"pip install 'jaxlm\[data\]'"):
            parse_source(f"{kind}:{tmp_path}/{name}")


GOOD = json_lines([{"text": "good"}])
BAD_FILES = {
    "empty.txt": (b"", "empty.txt is empty", []),
    "latin.txt": ("caf\u00e9".encode("latin-1"), "latin.txt: byte 3 is not UTF-8. Convert it", []),
    "binary.txt": (b"ab\0c", "binary.txt: character 2 is NUL", []),
    "empty.jsonl": (b"", "empty.jsonl is empty", []),
    "cut.jsonl": (GOOD + GOOD[:8], r"cut.jsonl, line 2 is not JSON, or cut short", ["good"]),
    "field.jsonl": (json_lines([{"tex": "a", "id": 1}]) + GOOD, r"line 1 has no field 'text'. Did you mean 'tex'", ["good"]),
    "list.jsonl": (b"[1]\n" + GOOD, "line 1 has no field 'text'.* Its fields: none", ["good"]),
    "number.jsonl": (json_lines([{"text": 1}]) + GOOD, "line 1: field 'text' holds int, not text", ["good"]),
    "latin.jsonl": (b'{"text": "caf\xe9"}\n' + GOOD, "latin.jsonl, line 1: byte 13 is not UTF-8", ["good"]),
    "surrogate.jsonl": (b'{"text": "\\ud800"}\n' + GOOD, "line 1: character 0 is half a surrogate pair", ["good"]),
    "cut.jsonl.gz": (gzip.compress(GOOD * 9)[:-9], "cut.jsonl.gz is cut short or damaged", []),
    "not.jsonl.gz": (GOOD, "not.jsonl.gz is cut short or damaged after line 0", []),
    "cut.jsonl.zst": (zstandard.compress(GOOD * 9)[:-3], "cut.jsonl.zst is cut short or damaged", []),
    "not.jsonl.zst": (GOOD, "not.jsonl.zst is cut short or damaged after line 0", []),
    "not.arrayrecord": (b"x" * 1000, "not.arrayrecord is no ArrayRecord file, empty or cut short", []),
    "empty.arrayrecord": (b"", "empty.arrayrecord is no ArrayRecord file, empty or cut short", []),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named_and_can_be_skipped(tmp_path, name):
    content, message, rest = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    kind = {"txt": "text"}.get(name.split(".")[1], name.split(".")[1])
    spelling = f"{kind}:{tmp_path}/{name}"
    with pytest.raises(DataError, match=message) as caught:
        texts(spelling)
    assert "data.on_bad_document='skip'" in str(caught.value)
    pack = {"gz": gzip.compress, "zst": zstandard.compress}.get(name.split(".")[-1], bytes)
    (tmp_path / f"zz.{name}").write_bytes(pack(GOOD))
    if kind == "jsonl":  # the good file after the bad one is read
        good, bad = skipping(f"jsonl:{tmp_path}/*")
        assert good == [*rest, "good"] and len(bad) == 1
    else:
        with pytest.raises(DataError, match="holds no documents"):
            skipping(spelling)


def test_truncated_array_record(tmp_path):
    path = tmp_path / "x.arrayrecord"
    write_array_record(path, [os.urandom(1000).hex().encode() for _ in range(100)])
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(DataError, match=r"x.arrayrecord is no ArrayRecord file, empty or cut short"):
        texts(f"arrayrecord:{path}")


def test_unreadable_file_is_an_error_even_when_skipping(tmp_path):
    (tmp_path / "x.txt").write_text("x")
    source = parse_source(f"text:{tmp_path}/x.txt")
    (tmp_path / "x.txt").unlink()
    with pytest.raises(DataError, match=r"cannot read .*x.txt"):
        list(source.documents(lambda fault: None))


def test_fingerprint_follows_content_names_and_settings(tmp_path):
    (tmp_path / "x.txt").write_text("one")
    hashes = ContentHashes(tmp_path)

    def fingerprint(spelling=f"text:{tmp_path}/x.txt"):
        return parse_source(spelling).fingerprint(hashes)

    first = fingerprint()
    os.utime(tmp_path / "x.txt", (1, 1))
    assert fingerprint() == first
    assert fingerprint(f"text:{tmp_path}/x.txt#100") != first
    (tmp_path / "x.txt").write_text("two")
    assert fingerprint() != first
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "x.txt").write_text("one")
    assert fingerprint(f"text:{tmp_path}/moved/x.txt") == first
    (tmp_path / "moved" / "x.txt").rename(tmp_path / "moved" / "y.txt")
    assert fingerprint(f"text:{tmp_path}/moved/y.txt") != first


def test_large_files_are_hashed_once(tmp_path, monkeypatch):
    path = tmp_path / "x.txt"
    path.write_bytes(b"x" * (1 << 20))
    os.utime(path, (1, 1))
    hashes = ContentHashes(tmp_path)
    first = hashes.of(path)
    hashes.save()
    monkeypatch.setattr("hashlib.file_digest", None)
    assert ContentHashes(tmp_path).of(path) == first
    monkeypatch.undo()
    path.write_bytes(b"y" * (1 << 20))
    assert ContentHashes(tmp_path).of(path) != first


def test_sample_is_spread_over_the_files(tmp_path):
    for number in range(10):
        content = json_lines([{"text": f"{number}" * 10} for _ in range(100)])
        (tmp_path / f"{number}.jsonl").write_bytes(content)
    source = parse_source(f"jsonl:{tmp_path}/*.jsonl")
    taken = list(source.sample(500, lambda identifier: not identifier.startswith("3")))
    assert {text[0] for text in taken} == set("012456789")
    assert 500 <= sum(map(len, taken)) <= 600
