"""What fuzzing has found, as small as it was made: a target, the files, and what must come of them now."""

import dataclasses
import functools
import io
import zipfile
from pathlib import Path

import numpy as np

from fuzz.mutate import Files
from fuzz.target import find
from jaxlm.sweep.trials import RUNS

DEEP = b'{"a":' * 150_000 + b"1" + b"}" * 150_000
LISTS = b"[" * 200_000
HUGE = b"1" + b"0" * 400


@dataclasses.dataclass(frozen=True)
class Example:
    """One input; with `seed`, the files that differ from a seed of the target."""

    target: str
    files: Files
    comes: str
    """"accepted" or "refused"."""
    seed: int | None = None

    def whole(self, folder: Path) -> Files:
        """Return all files of the input."""
        return self.files if self.seed is None else _seeds(self.target, folder)[self.seed] | self.files


@functools.cache
def _seeds(target: str, folder: Path) -> list[Files]:
    (folder / target).mkdir()
    return find(target).seeds(folder / target)


def model(field: bytes) -> bytes:
    """Return a configuration whose model has such a field."""
    rest = b'"vocab_size": 8192, "hidden_size": 8, "num_heads": 4, "intermediate_size": 4'
    layers = b"" if b"num_layers" in field else b'"num_layers": 2, '
    return b'{"name": "y", "steps": 30, "batch_size": 8, "model": {%s%s, %s}}' % (layers, field, rest)


def tensors(header: bytes) -> bytes:
    """Return a safetensors file of such a header and no data."""
    return len(header).to_bytes(8, "little") + header


def npy(header: str, data: bytes = b"") -> bytes:
    """Return a .npy file with such a header."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def npz(**members: bytes) -> bytes:
    """Return an archive of such members."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return out.getvalue()


def array(values) -> bytes:
    """Return values as a .npy file."""
    out = io.BytesIO()
    np.save(out, np.asarray(values))
    return out.getvalue()


def sentencepiece(piece: bytes) -> bytes:
    """Return a SentencePiece model of four pieces, one of them these bytes."""
    pieces = [(b"<unk>", 2), (b"<s>", 3), (b"</s>", 3), (piece, 1)]
    parts = [b"\x0a" + bytes([len(text)]) + text + b"\x15" + bytes(4) + b"\x18" + bytes([kind]) for text, kind in pieces]
    trainer = b"\x18\x02" + b"\x20\x04" + b"\xc0\x02\x00" + b"\xc8\x02\x01" + b"\xd0\x02\x02"
    return b"".join(b"\x0a" + bytes([len(part)]) + part for part in parts) + b"\x12" + bytes([len(trainer)]) + trainer


def bomb(suffix: str) -> bytes:
    """Return 400 MiB of one line, compressed."""
    import gzip

    import zstandard

    data = b"a" * (400 << 20) if suffix == "zst" else bytes(400 << 20)
    return zstandard.ZstdCompressor(level=1).compress(data) if suffix == "zst" else gzip.compress(data, 1)


_RESULT = b'{"settings": {}, "code": "a", "version": "b", "measures": {"one": %s}}'
_NOTHING = b'{"values": [[]], "axes": ["layer", "head"], "labels": {}}'
_TRIAL = b'{"arm": "a", "seed": %s, "changes": {}, "control": true, "run": "../runs/a", "digest": "a"}'
_SWEEP = b'{"name": "s", "about": "", "file": "s.py", "control": %s, "code": "c", "time": "t", "trials": [%s]}'

EXAMPLES = {
    "a deep configuration": Example("run-config", {"config.json": DEEP}, "refused"),
    "a field called self": Example("run-config", {"config.json": b'{"self": 1}'}, "refused"),
    "deep overrides": Example("overrides", {"plan.json": LISTS}, "refused"),
    "a number that no float holds": Example(
        "overrides", {"plan.json": b'{"optimizer": {"learning_rate": %s}}' % HUGE}, "refused"
    ),
    "starts that are texts": Example("run-folder", {"run.json": b'{"starts": ["a"]}'}, "accepted", 0),
    "starts of odd values": Example(
        "run-folder",
        {"run.json": b'{"starts": [{"time": {}, "git_commit": 1.5, "mesh": {"data": [1]}, "processes": "[/]"}]}'},
        "accepted",
        0,
    ),
    "a mesh that is a number": Example("run-folder", {"run.json": b'{"starts": [{"mesh": 3}]}'}, "accepted", 0),
    "a step that is a text": Example("run-folder", {"metrics.jsonl": b'{"step": "a", "split": "train"}\n\n'}, "refused", 1),
    "a deep row": Example("run-folder", {"metrics.jsonl": DEEP + b"\n\n"}, "refused", 1),
    "seconds that are texts": Example(
        "run-folder",
        {"metrics.jsonl": b'{"step": 1, "split": "goodput", "start": 0, "seconds": {"stepping": "a"}}\n'},
        "accepted",
        1,
    ),
    "losses that are no numbers": Example(
        "run-folder",
        {"metrics.jsonl": b'{"step": 1, "split": "train", "loss": {}, "mfu": "a", "router_dropped": [[]]}\n'},
        "accepted",
        1,
    ),
    "a measure that is a number": Example("run-folder", {"analysis/loss/10.json": _RESULT % b"3"}, "accepted", 1),
    "a deep result": Example("run-folder", {"analysis/loss/10.json": DEEP}, "accepted", 1),
    "a measure of 400 digits": Example(
        "run-folder", {"analysis/loss/10.json": _RESULT % b'{"unit": "", "values": %s}' % HUGE}, "accepted", 1
    ),
    "a file of a checkpoint with a name too long": Example(
        "run-folder", {"checkpoints/10/checksums.json": b'{"%s": [3, "5d2"]}' % (b"a" * 5000)}, "accepted", 0
    ),
    "a measure of nothing": Example(
        "sweep-record",
        dict.fromkeys((f"{RUNS}/a/analysis/maps/{step}.json" for step in (10, 20)), _RESULT % _NOTHING),
        "accepted",
        0,
    ),
    "deep checksums": Example("checkpoint", {"checkpoints/3/checksums.json": LISTS}, "refused", 0),
    "a seed that is no number": Example(
        "sweep-record", {"s/sweep.json": _SWEEP % (b'"a"', _TRIAL % b"Infinity")}, "refused", 0
    ),
    "a control that is no arm": Example("sweep-record", {"s/sweep.json": _SWEEP % (b'"b"', _TRIAL % b"0")}, "refused", 0),
    "a deep sweep": Example("sweep-record", {"s/sweep.json": DEEP}, "refused", 0),
    "hashes that are null": Example("records", {"content_hashes.json": b"null"}, "accepted", 0),
    "a deep manifest": Example("records", {"manifest.json": LISTS}, "accepted", 0),
    "a deep job": Example("records", {"launch/job.json": DEEP}, "refused", 0),
    "a deep line of texts": Example("prompt-lines", {"lines.jsonl": LISTS + b"\n"}, "refused"),
    "a line with another separator in it": Example(
        "prompt-lines", {"lines.jsonl": '{"text": "a\u2028b", "target": "c"}'.encode()}, "accepted"
    ),
    "a header without an end": Example("npy-rows", {"rows.npy": npy("{'descr': '<i8', 'shape': (3, (")}, "refused"),
    "a header that claims 2^60": Example(
        "npy-reference", {"table.npy": npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({1 << 59}, 2)}}")}, "refused"
    ),
    "an array of texts of no length": Example(
        "npy-rows", {"rows.npy": npy("{'descr': '<U0', 'fortran_order': False, 'shape': (3, 4)}")}, "refused"
    ),
    "an archive cut short": Example("npz-decisions", {"00000005.npz": npz(experts=array([1]))[:-9]}, "refused"),
    "a member that is no array": Example(
        "npz-decisions", {"00000005.npz": npz(experts=b"x", batch_hash=array("abc"))}, "refused"
    ),
    "experts that are texts": Example(
        "npz-decisions", {"00000005.npz": npz(experts=array(np.zeros((2, 3, 4, 2), "U3")), batch_hash=array("abc"))}, "refused"
    ),
    "a member that claims 2^40": Example(
        "npz-decisions",
        {
            "00000005.npz": npz(
                experts=npy(f"{{'descr': '<i2', 'fortran_order': False, 'shape': ({1 << 40},)}}"), batch_hash=array("abc")
            )
        },
        "refused",
    ),
    "shardings nested deeply": Example("checkpoint", {"checkpoints/3/params/_sharding": DEEP}, "refused", 0),
    "a result of 10^400": Example(
        "sweep-record",
        {f"{RUNS}/a/analysis/maps/20.json": b'{"settings": {}, "code": "a", "measures": {"": {"values": [%s]}}}' % HUGE},
        "accepted",
        0,
    ),
    "a rate of 10^400": Example(
        "sweep-record",
        {f"{RUNS}/a/metrics.jsonl": b'{"step": 19, "split": "train", "tokens_per_second": %s}\n' % HUGE},
        "accepted",
        0,
    ),
    "a path too long": Example("source-words", {"word": b" :" + b"a" * 5000}, "refused"),
    "a pattern that no file's name can match": Example("source-words", {"word": b"parquet:\0/*"}, "refused"),
    "a data set that is no name": Example("source-words", {"word": b"tfds:0x10:train#text"}, "refused"),
    "more chips than there are": Example("topology-words", {"word": b"v5e-9999999999999999"}, "refused"),
    "a number of 5000 digits": Example("topology-words", {"word": b"v5p:" + b"9" * 5000}, "refused"),
    "a topology of 5000 digits": Example("topology-words", {"word": "\ufdfa:".encode() + b"9" * 20_000}, "refused"),
    "an age of a point": Example("condition-words", {"word": b"age > .h"}, "accepted"),
    "half a surrogate pair": Example(
        "sentencepiece",
        {
            "tokenizer.model": sentencepiece(b"a"),
            "tokenizer_config.json": b'{"added_tokens_decoder": {"4": {"content": "\\ud800"}}}',
        },
        "refused",
    ),
    "a head of 10^400": Example("run-config", {"config.json": model(b'"head_dim": %s' % HUGE)}, "refused"),
    "10^400 layers": Example("run-config", {"config.json": model(b'"num_layers": %s' % HUGE)}, "refused"),
    "a shard's name too long": Example(
        "safetensors-shards",
        {"model.safetensors.index.json": b'{"weight_map": {"a": "%s.safetensors"}}' % (b"a" * 5000)},
        "refused",
    ),
    "an array whose header claims gigabytes": Example(
        "npy-rows", {"rows.npy": b"\x93NUMPY\x02\x00" + (4_000_000_000).to_bytes(4, "little") + b"{'descr': '<i2'}"}, "refused"
    ),
    "10^18 heads": Example(
        "run-config",
        {"config.json": model(b'"num_kv_heads": 7, "head_dim": 2').replace(b'"num_heads": 4', b'"num_heads": %d' % 10**18)},
        "refused",
    ),
    "a label nested 600 deep": Example(
        "jsonl-labels",
        {"rows.jsonl": b'{"prompt": "a", "response": "b", "label": %s}\n' % (b'{"a": ' * 600 + b"1" + b"}" * 600)},
        "refused",
    ),
    "10^18 layers": Example("run-config", {"config.json": model(b'"num_layers": %d' % 10**18)}, "refused"),
    "a tokenizer's path too long": Example(
        "run-config",
        {"config.json": model(b'"head_dim": 2')[:-1] + b', "data": {"tokenizer": {"path": "%s"}}}' % (b"a" * 5000)},
        "accepted",
    ),
    "half a surrogate pair, in bytes": Example("run-config", {"config.json": b'{"name": "\xed\xa0\x80"}'}, "refused"),
    "a name that cannot be printed": Example(
        "safetensors",
        {"model.safetensors": tensors(b'{"\\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}')},
        "refused",
    ),
    "a piece that is no text": Example("sentencepiece", {"tokenizer.model": sentencepiece(b"\xaa\xff")}, "refused"),
    "a model of four pieces": Example("sentencepiece", {"tokenizer.model": sentencepiece(b"a")}, "accepted"),
    "an empty tensor of 10^400": Example(
        "safetensors",
        {"model.safetensors": tensors(b'{"a": {"dtype": "F32", "shape": [0, %s], "data_offsets": [0, 0]}}' % HUGE)},
        "refused",
    ),
    "a bomb of one line, zst": Example("jsonl-text", {"rows.jsonl.zst": bomb("zst")}, "refused"),
    "a bomb of one line, gz": Example("jsonl-conversations", {"rows.jsonl.gz": bomb("gz")}, "refused"),
}
