"""Files of documents: JSON lines, Parquet and ArrayRecord, as texts and as rows of every form."""

import gzip
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from fuzz.mutate import Files, dump, lines_bytes, mutated
from fuzz.target import Target
from jaxlm.analysis.lines import read_lines
from jaxlm.data.byte_tokenizer import ByteTokenizer
from jaxlm.data.example_config import ExampleConfig
from jaxlm.data.example_fields import Fault
from jaxlm.data.examples import texts_of
from jaxlm.data.forms import rows_of
from jaxlm.data.sources import parse_source
from jaxlm.errors import DataError

_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LENGTH = 48
_TALK = [
    {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who was it?"},
    {"role": "assistant", "content": "Nobody."}, {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."},
]  # fmt: skip
ROWS: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": "A cat\nsat."}, {"text": "", "id": 3}, {"text": "caf\u00e9 \U0001f600", "meta": {"a": [1, None]}}],
    "conversations": [{"messages": _TALK}, {"prompt": "2 + 2 =", "response": " 4"}, {"messages": _TALK[1:3], "source": "x"}],
    "preferences": [
        {"prompt": "Say hi.", "chosen": "hi", "rejected": "no"},
        {"chosen": _TALK[:3], "rejected": [*_TALK[:2], {"role": "assistant", "content": "You."}]},
        {"prompt": _TALK[:2], "chosen": [_TALK[2]], "rejected": [{"role": "assistant", "content": "He."}]},
    ],
    "labels": [{"prompt": "a", "response": "b", "label": True}, {"prompt": _TALK[:2], "response": [_TALK[2]], "label": 0}],
}


def _compressed(name: str, content: bytes) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(content, 1, mtime=0)
    if name.endswith(".zst"):
        import zstandard

        return zstandard.ZstdCompressor(level=1).compress(content)
    return content


def _json_lines(form: str) -> list[bytes]:
    return [b"\n".join(map(dump, ROWS[form])) + b"\n", b"".join(dump(row) + b"\n" for row in ROWS[form] * 4)]


def _made_json_lines(rng: Random, form: str) -> Files:
    """Change lines, then perhaps compress them, then perhaps change the compressed bytes."""
    name = rng.choice(("rows.jsonl", "rows.jsonl", "rows.jsonl.gz", "rows.jsonl.zst"))
    content = lines_bytes(rng, rng.choice(_LINES[form]))
    if rng.random() < 0.01:
        content = rng.choice((b"a", b'{"text": "', b" ", b"\n", b"[")) * rng.choice((10**5, 10**6))
    made = _compressed(name, content)
    if name != "rows.jsonl" and rng.random() < 0.5:
        made = mutated(rng, made, head=40)
    return {name: made}


_LINES = {form: _json_lines(form) for form in ROWS}
_BAD: list[DataError] = []


def _read_texts(spelling: str) -> bool:
    """Read every document of a source; whether one was good. Texts are texts, their ids differ."""
    _BAD.clear()
    ids = set()
    for document in parse_source(spelling).documents(_BAD.append):
        document.text.encode()
        assert "\0" not in document.text and document.text, "an empty document, or a binary one"
        assert document.id not in ids, "two documents of one id"
        ids.add(document.id)
    _check_faults(_BAD)
    return bool(ids)


def _check_faults(faults: Sequence[DataError]) -> None:
    assert all(isinstance(fault, DataError) and 0 < len(str(fault)) < 6000 for fault in faults), "a fault in too many words"


def _read_rows(spelling: str, form: str) -> bool:
    """Read every row, encode the good ones and lay them into a batch: ids of the vocabulary, weights that are finite."""
    _BAD.clear()
    config = ExampleConfig(long_prompt="keep_end")
    rows = rows_of(form, _LENGTH, ByteTokenizer.vocab_size, config, _TEMPLATE)
    tokenizer, encoded = ByteTokenizer(), []
    for document in parse_source(spelling, rows=True).documents(_BAD.append):
        found = rows.encode(tokenizer, document.text)
        assert isinstance(texts_of(document.text, config), str)
        if isinstance(found, Fault):
            assert found.kind and 0 < len(found.message) < 3000, "a fault in too many words"
        else:
            encoded.append(found)
    _check_faults(_BAD)
    if not encoded:
        return False
    laid = rows.pack(encoded, tokenizer)
    batch = rows.batch(laid, np.zeros((len(laid), 2), np.float32) if form in ("preferences", "labels") else None)
    for leaf in _arrays(batch):
        assert np.isfinite(leaf).all(), "a batch that is not finite"
    return True


def _arrays(batch: Any) -> list[np.ndarray]:
    if isinstance(batch, np.ndarray):
        return [batch]
    return [leaf for part in (batch if isinstance(batch, tuple) else ()) for leaf in _arrays(part)]


def _only(folder: Path) -> Path:
    return next(folder.iterdir(), folder / "gone")


def _json_lines_target(form: str) -> Target:
    def read(folder: Path) -> bool:
        spelling = f"jsonl:{_only(folder)}"
        return _read_texts(spelling) if form == "text" else _read_rows(spelling, form)

    return Target(
        f"jsonl-{form}", f"JSON lines of the form {form}, plain, .gz and .zst", lambda folder: None,
        lambda rng, _: _made_json_lines(rng, form), read,
    )  # fmt: skip


# ---- Parquet


def _parquet_seeds(folder: Path) -> dict[str, list[bytes]]:
    """Return files with and without compression, dictionaries and pages of the second version, some with other columns."""
    import pyarrow
    import pyarrow.parquet

    made: dict[str, list[bytes]] = {form: [] for form in ROWS}
    for form, rows in ROWS.items():
        plain = [{name: value for name, value in row.items() if not isinstance(value, dict)} for row in rows]
        same = [row for row in plain if {type(v) for v in row.values()} == {type(v) for v in plain[0].values()}] or plain[:1]
        for options in (
            {"compression": "snappy"}, {"compression": "none", "use_dictionary": False}, {"data_page_version": "2.0"},
            {"compression": "zstd", "write_statistics": False, "row_group_size": 2},
        ):  # fmt: skip
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(same * 5), folder / "x.parquet", **options)
            made[form].append((folder / "x.parquet").read_bytes())
    table = {"text": [b"a", b"\xff", None], "when": np.array([0, 1, 2], "datetime64[s]"), "n": [[1], [], [2, 3]]}
    pyarrow.parquet.write_table(pyarrow.table(table), folder / "x.parquet")
    made["text"].append((folder / "x.parquet").read_bytes())
    return made


def _parquet(rng: Random, seeds: dict[str, list[bytes]], forms: Sequence[str]) -> Files:
    """Change the pages, or the footer, which says where they are: it stands at the end."""
    form = rng.choice(forms)
    content = rng.choice(seeds[form])
    if rng.random() < 0.5:
        length = int.from_bytes(content[-8:-4], "little")
        start = len(content) - 8 - length
        footer = mutated(rng, content[start:-8], head=10**6)
        said = len(footer) if rng.random() < 0.8 else rng.choice((0, 1, 2**31 - 1, 2**32 - 1, length))
        return {f"{form}.parquet": content[:start] + footer + said.to_bytes(4, "little") + content[-4:]}
    return {f"{form}.parquet": mutated(rng, content, seeds[form], head=200)}


def _read_parquet(folder: Path) -> bool:
    path = _only(folder)
    form = path.stem
    return _read_texts(f"parquet:{path}") if form == "text" else _read_rows(f"parquet:{path}", form)


# ---- ArrayRecord


def _record_seeds(folder: Path) -> dict[str, list[bytes]]:
    from array_record.python.array_record_module import ArrayRecordWriter

    made: dict[str, list[bytes]] = {}
    for form, rows in ROWS.items():
        made[form] = []
        for options in ("group_size:1", "group_size:4,uncompressed", "group_size:2,zstd:1"):
            path = folder / "x.array_record"
            path.unlink(missing_ok=True)
            writer = ArrayRecordWriter(str(path), options)
            for row in rows * 2:
                writer.write(row["text"].encode() if form == "text" else dump(row))
            writer.close()
            made[form].append(path.read_bytes())
    return made


def _record(rng: Random, seeds: dict[str, list[bytes]]) -> Files:
    form = rng.choice(("text", "text", "preferences", "conversations"))
    content = rng.choice(seeds[form])
    # Most of a small file is padding to 64 KiB: the last block says where the others are.
    tail = content[-65536:] if rng.random() < 0.5 else b""
    head = content[: len(content) - len(tail)]
    if tail:
        return {f"{form}.array_record": head + mutated(rng, tail, head=200)}
    return {f"{form}.array_record": mutated(rng, content, head=400)}


def _read_record(folder: Path) -> bool:
    path = _only(folder)
    form = path.stem
    return _read_texts(f"arrayrecord:{path}") if form == "text" else _read_rows(f"arrayrecord:{path}", form)


# ---- texts of probes and of `jaxlm sample`


def _prompt_lines(rng: Random, seeds: None) -> Files:
    lines = [{"prompt": "The code is 7. It is ", "answer": "7", "depth": 0.5}, {"prompt": "a", "answer": "b"}, "a text"]
    lines += [{"tokens": [1, 5, 9]}, {"messages": _TALK[:2]}, {"text": "a", "target": "b"}]
    return {"lines.jsonl": lines_bytes(rng, b"\n".join(dump(line) for line in rng.sample(lines, 3)))}


def _read_prompts(folder: Path) -> bool:
    """Read the same lines as texts of probes, as tasks with an answer, and as prompts, or be refused in words."""
    from jaxlm.eval.retrieval import read_tasks
    from jaxlm.run import sample

    path, good = folder / "lines.jsonl", 0
    for read in (
        lambda: read_lines(path, ("text", "target")), lambda: read_tasks(path, ByteTokenizer()),
        lambda: sample._given(sample.Wanted(file=path)),
    ):  # fmt: skip
        try:
            good += bool(read())
        except DataError as fault:
            _check_faults([fault])
    return good > 0


TARGETS = (
    *map(_json_lines_target, ROWS),
    Target("parquet-text", "a column of texts in Parquet", _parquet_seeds, lambda r, s: _parquet(r, s, ("text",)),
    _read_parquet),
    Target(
        "parquet-rows", "rows of every form in Parquet", _parquet_seeds,
        lambda r, s: _parquet(r, s, ("conversations", "preferences", "labels")), _read_parquet,
    ),
    Target("arrayrecord", "texts and rows in ArrayRecord", _record_seeds, _record, _read_record),
    Target("prompt-lines", "JSON lines of prompts, tasks and texts of probes", lambda folder: None, _prompt_lines,
    _read_prompts),
)  # fmt: skip
