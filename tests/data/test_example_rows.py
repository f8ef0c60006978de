"""Rows with fields prepared: read from every kind of file, bad ones counted and told with their places, batches of pairs."""

import datetime
import gzip
import itertools
import json

import numpy as np
import pytest
from test_prepare import contents, without_cache
from test_sources import write_array_record, write_parquet

from jaxlm.data import building, encoding
from jaxlm.data.example_config import ExampleConfig
from jaxlm.data.mixture import Batches, combine_hashes, hash_rows
from jaxlm.data.prepare import DataConfig, open_prepared, prepare
from jaxlm.data.sources import parse_source
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.errors import ConfigError, DataError

TALK = [{"role": "user", "content": "hé"}, {"role": "assistant", "content": "ho"}]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
GOOD = [{"prompt": f"{number}+1=", "chosen": str(number + 1), "rejected": str(number)} for number in range(60)]


@pytest.fixture
def config_of(tmp_path):
    """Return a function that makes a configuration of rows in a JSON lines file, at byte level, with some fields changed."""

    def make(rows, form="preferences", **changes) -> DataConfig:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        (tmp_path / "chat.jinja").write_text(TEMPLATE)
        fields = {
            "sources": (f"jsonl:{path}",), "form": form, "validation_fraction": 0.0, "sequence_length": 32,
            "tokenizer": TokenizerConfig(kind="byte", vocab_size=259), "cache": str(tmp_path / "cache"),
            "examples": ExampleConfig(template=str(tmp_path / "chat.jinja")),
        }  # fmt: skip
        return DataConfig(**fields | changes)

    return make


def rows_in(spelling):
    return [json.loads(document.text) for document in parse_source(spelling, rows=True).documents()]


def test_readers(tmp_path):
    rows = [{"prompt": "hé\n", "messages": TALK, "label": True, "none": None}, {"prompt": "b", "label": 0}]
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
    (tmp_path / "x.jsonl").write_bytes(lines[0] + b"\n\n" + lines[1])
    with gzip.open(tmp_path / "x.jsonl.gz", "wb") as file:
        file.write(b"\n".join(lines))
    write_array_record(tmp_path / "x.array_record", lines)
    for spelling in ("jsonl:{}/x.jsonl", "jsonl:{}/x.jsonl.gz", "arrayrecord:{}/x.array_record"):
        assert rows_in(spelling.format(tmp_path)) == rows
    # Columns of other types beside those that are read do no harm.
    when, image = [datetime.datetime(2020, 1, 1)] * 2, [b"\xff\x00", b""]
    write_parquet(tmp_path / "x.parquet", {"prompt": ["a", "b"], "messages": [TALK, TALK], "when": when, "image": image})
    found = rows_in(f"parquet:{tmp_path}/x.parquet")
    assert [(row["prompt"], row["messages"], row["when"]) for row in found] == [("a", TALK, None), ("b", TALK, None)]
    where = [document.where for document in parse_source(f"jsonl:{tmp_path}/x.jsonl", rows=True).documents()]
    assert where == [f"{tmp_path}/x.jsonl, line 1", f"{tmp_path}/x.jsonl, line 3"]


def test_tfds(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")

    class Chats(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            message = {"role": tfds.features.Text(), "content": tfds.features.Text()}
            features = {"messages": tfds.features.Sequence(message), "label": tfds.features.Scalar(dtype=np.bool_)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, download_manager):
            return {"train": ((number, {"messages": TALK, "label": True}) for number in range(3))}

        def _generate_examples(self):
            raise NotImplementedError

    Chats(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert rows_in("tfds:chats:train") == [{"messages": TALK, "label": True}] * 3


def test_sources_that_hold_no_rows(config_of):
    for source, words in (
        ("stdlib", "asks for rows: give jsonl:, parquet:, arrayrecord: or"),
        ("jsonl:{}#text", "leave out #text"),
    ):
        config = config_of(GOOD)
        with pytest.raises(ConfigError, match=words):
            prepare(config_of(GOOD, sources=(source.format(config.sources[0].partition(":")[2]),)))
    with pytest.raises(ConfigError, match=r"max_prompt_length = 32 leaves no room .* sequence_length = 32: set it to 16"):
        config_of(GOOD, examples=ExampleConfig(max_prompt_length=32))
    with pytest.raises(ConfigError, match=r"missing.jinja cannot be read"):
        prepare(config_of(GOOD, examples=ExampleConfig(template="missing.jinja")))


BROKEN = [
    *GOOD[:5],
    {"prompt": "a", "chosen": "b"},
    "{not json",
    {"prompt": "a", "chosen": "b", "rejected": "b"},
    '{"prompt": "\\ud800", "chosen": "b", "rejected": "c"}',
    {"prompt": "a", "chosen": "", "rejected": "b"},
    {"prompt": "x" * 40, "chosen": "a", "rejected": "b"},
    "[1]",
    {"prompt": "a", "chosen": TALK[:1], "rejected": [TALK[1]]},
    {"prompt": "a", "chosen": "long " * 9, "rejected": "b"},
    *GOOD[5:9],
]
KINDS = {"unreadable": 3, "missing key": 1, "chosen = rejected": 1, "empty response": 1, "prompt too long": 1, "wrong role": 1}


def test_all_bad_rows_are_counted_and_told_with_their_lines(config_of, tmp_path):
    with pytest.raises(DataError) as caught:
        prepare(config_of(BROKEN))
    said = str(caught.value)
    assert said.startswith(f"8 of {len(BROKEN)} rows of 'jsonl:{tmp_path}/rows.jsonl' cannot be used (3 x unreadable, ")
    for count, kind in ((1, "missing key"), (1, "chosen = rejected"), (1, "prompt too long"), (1, "wrong role")):
        assert f"{count} x {kind}" in said
    for line in (6, 7, 8, 9, 10, 11, 12, 13):
        assert f"{tmp_path}/rows.jsonl, line {line}" in said
    assert "data.on_bad_document='skip'" in said
    with pytest.raises(DataError) as again:  # what is kept of the first attempt forgets none
        prepare(config_of(BROKEN))
    assert str(again.value) == said


def test_bad_rows_are_skipped_and_counted(config_of):
    prepared = prepare(config_of(BROKEN, on_bad_document="skip"))
    (faults,) = prepared.faults
    assert faults.kinds == KINDS and list(prepared.bad_documents.values()) == [8]
    assert len(faults.first) == 8 and (faults.cut_prompts, faults.cut_responses) == (0, 1)
    assert prepared.train.documents == prepared.train.rows == 10
    assert prepared.train.tokens - prepared.train.bytes == 10 * 2 * 2 - 1  # all but bos and eos, of which one was cut
    with pytest.raises(DataError, match=r"all is bad that the sources hold. First: .*line 1"):
        prepare(config_of(BROKEN[5:8], on_bad_document="skip"))
    assert prepare(config_of(GOOD)).faults == ()


def test_only_ten_places_are_told(config_of):
    with pytest.raises(DataError, match=r"(?s)60 of 60 rows .*line 10: .*\.\.\. and 50 more") as caught:
        prepare(config_of([{"prompt": "a"}] * 60))
    assert "line 11:" not in str(caught.value)


def test_the_first_places_are_told_in_the_order_of_the_file(config_of):
    rows = [{"prompt": "\x1b[2J"}, *["{not json"] * 6, {"prompt": "a"}, *GOOD[:3], *["[1]"] * 9]
    for block_bytes in (1 << 20, 1):
        with pytest.raises(DataError) as caught:
            prepare(config_of(rows), block_bytes=block_bytes)
        told = [line for line in str(caught.value).splitlines() if line.startswith("  /")]
        assert [int(line.split(", line ")[1].split()[0].strip(":")) for line in told] == [*range(1, 9), 12, 13]


def test_faults_are_told_without_control_characters(config_of):
    with pytest.raises(DataError, match=r"Keys: prompt, \\x1b\[2J;") as caught:
        prepare(config_of([{"prompt": "a", "\x1b[2J": "b"}]))
    assert "\x1b" not in str(caught.value)


def test_columns_of_parquet_that_are_null(config_of, tmp_path):
    columns = {"messages": [TALK, None], "prompt": [None, "p"], "response": [None, "r"], "tools": [None, None]}
    write_parquet(tmp_path / "x.parquet", columns)
    prepared = prepare(config_of([], "conversations", sources=(f"parquet:{tmp_path}/x.parquet",)))
    assert prepared.train.documents == 2 and prepared.faults == ()


def test_neither_workers_nor_interruptions_change_a_byte(config_of, tmp_path, monkeypatch):
    rows = list(itertools.chain.from_iterable(zip(BROKEN[5:13] * 7, GOOD[:56], strict=True)))
    settings = {"on_bad_document": "skip", "validation_fraction": 0.2}
    monkeypatch.setattr(building, "_GROUP_BYTES", 300)
    whole = prepare(config_of(rows, **settings), block_bytes=600)
    assert len(whole.train.sources[0].shards) > 3 and whole.faults[0].kinds["unreadable"] == 21

    real, count = building.write_shard, itertools.count()

    def interrupted(path, rows):
        if next(count) % 4 == 3:
            raise KeyboardInterrupt
        real(path, rows)

    monkeypatch.setattr(building, "write_shard", interrupted)
    config, resumed, interruptions = config_of(rows, **settings, cache=str(tmp_path / "other")), None, 0
    while not resumed:
        try:
            resumed = prepare(config, block_bytes=600)
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions >= 2 and without_cache(contents(whole)) == without_cache(contents(resumed))

    monkeypatch.setattr(building, "write_shard", real)
    monkeypatch.setattr(building, "_WORTH_PROCESSES", 0)
    monkeypatch.setattr(encoding, "_IN_FLIGHT_PER_WORKER", 2)
    config = config_of(rows, **settings, cache=str(tmp_path / "third"))
    assert without_cache(contents(whole)) == without_cache(contents(prepare(config, workers=2, block_bytes=600)))


def test_batches_of_pairs(config_of):
    prepared = prepare(config_of(GOOD))
    table = np.arange(120, dtype=np.float32).reshape(60, 2)
    batches = Batches(prepared, "train", 8, 3, reference=table)
    assert batches.num_rows == 60 and batches.num_batches == 8
    seen = []
    for step in range(15):
        batch, digest = batches.at(step)
        assert batch.tokens.shape == (16, 32) and batch.labels.tolist() == [1, 0] * 8
        asked = [int(prepared.tokenizer.decode(ids).split("+")[0]) for ids in batch.tokens]
        assert np.array_equal(batch.reference, table[asked[::2]].ravel())  # looked up by the number of the row
        assert np.array_equal(asked[::2], asked[1::2])
        assert combine_hashes(hash_rows(batch._replace(reference=batch.reference + 1))) == digest
        assert combine_hashes(hash_rows(batch._replace(labels=1 - batch.labels))) != digest
        part = Batches(prepared, "train", 8, 3, rows=[1, 6], reference=table).batch(step)
        assert all(np.array_equal(a[[0, 1, 2, 3]], b[[2, 3, 12, 13]]) for a, b in zip(part, batch, strict=True))
        seen += asked[::2]
    assert sorted(seen[:60]) == sorted(seen[60:]) == list(range(60)) and seen[:60] != seen[60:]

    in_order = Batches(prepared, "train", 8, 0, shuffle=False, reference=table)
    last = in_order.batch(7)
    assert np.array_equal(last.reference, np.append(table[56:].ravel(), np.zeros(8)))
    assert np.all(last.weights[:8].sum(axis=1) > 0) and not np.any(last.weights[8:]) and not np.any(last.segments[8:])


def test_conversations_packed_and_apart(config_of, tmp_path):
    rows = [{"messages": TALK}] * 5 + [{"prompt": "p", "response": "r"}] * 3
    texts, num_rows = {}, {}
    for together in (True, False):
        examples = ExampleConfig(template=str(tmp_path / "chat.jinja"), packing=together)
        prepared = prepare(config_of(rows, "conversations", examples=examples, sequence_length=64))
        batch = Batches(prepared, "train", prepared.train.rows, 0, shuffle=False).batch(0)
        counted = [prepared.tokenizer.decode(t[w > 0]) for t, w in zip(batch.targets, batch.weights, strict=True)]
        texts[together], num_rows[together] = "".join(sorted("".join(counted))), prepared.train.rows
        assert prepared.train.documents == 8 and np.sum(batch.weights) == 5 * 3 + 3 * 2
    assert texts[True] == texts[False] == "h" * 5 + "o" * 5 + "r" * 3
    assert num_rows[False] == 8 and num_rows[True] == 3  # of 65 tokens, for 5 of 23 and 3 of 4


def test_another_template_is_another_preparation(config_of, tmp_path):
    config = config_of([{"messages": TALK}] * 5, "conversations")
    first = prepare(config)
    (tmp_path / "chat.jinja").write_text(TEMPLATE.replace("<", "["))
    assert open_prepared(config) is None
    assert prepare(config).key != first.key
    assert open_prepared(config_of([{"messages": TALK}] * 5, "conversations", sequence_length=33)) is None


def test_a_tokenizer_trained_on_what_is_said(config_of):
    rows = [{"prompt": f"abab abab {number}", "response": "cdcd cdcd", "label": True, "id": "zq" * 30} for number in range(50)]
    prepared = prepare(config_of(rows, "labels", tokenizer=TokenizerConfig(vocab_size=285)))
    assert prepared.train.rows == 50
    pieces = {prepared.tokenizer.decode([i]) for i in range(285)}
    assert any("abab" in piece for piece in pieces) and not any("zq" in piece for piece in pieces)
