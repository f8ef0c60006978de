"""What is spelt on a command line: sources, topologies, conditions and columns of `jaxlm runs`."""

import os
from pathlib import Path
from random import Random

from fuzz.mutate import TEXTS, Files, grown
from fuzz.target import Target
from jaxlm.data.sources import parse_source
from jaxlm.errors import ConfigError
from jaxlm.hardware import CHIPS
from jaxlm.plan.topology import parse_topology
from jaxlm.run.standing import Standing
from jaxlm.sweep.listing import Columns, keep_where, rows_of, sort_by

_NUMBERS = (
    "1",
    "2",
    "4",
    "8",
    "16",
    "64",
    "256",
    "0",
    "-1",
    "3",
    "6144",
    "99999",
    "9" * 30,
    "9" * 5000,
    "1.5",
    "x",
    "",
    "\u0663",
)
_ODD = tuple(text.replace("<", "(") for text in TEXTS)
_SOURCE = {
    "start": ("stdlib", "<kind>:<path>", "<kind>:<path>#<option>", "<kind><path>", "tfds:<name>:<name>#<name>",
    "<kind>:<kind>:<path>"),
    "kind": ("text", "jsonl", "arrayrecord", "parquet", "tfds", "stdlib", "txt", "TEXT", "", "json", *_ODD),
    "path": (
        "FOLDER/a.txt", "FOLDER/*.txt", "FOLDER/**/*", "FOLDER", "FOLDER/missing", "~", "~nobody/x", "[", "[!]", "FOLDER/[a-",
        "*" * 50,
        "FOLDER/a.txt/b", "//", ".", "FOLDER/{a,b}.txt", "a" * 5000, "FOLDER/loop/x", "<path><path>", "FOLDER/" + "*/" * 12,
        *_ODD,
    ),
    "option": ("text", "<number>", "#", "a/b", "100", "<option>#<option>", *_ODD),
    "number": _NUMBERS, "name": ("wiki", "a/b", "1.0.0", "train", "<number>", *_ODD),
}  # fmt: skip
_TOPOLOGY = {
    "start": (
        "<chip>:<dims>",
        "<chip>-<number>",
        "<chip>:<number>",
        "<chip>",
        "<chip>:<dims>-<number>",
        "<chip>litepod-<number>",
        "<odd>",
    ),
    "chip": (*[chip.name for chip in CHIPS], "v5", "tpu", "h100-pcie", "V5E", "v7x", "a" * 200, *_ODD),
    "dims": ("<number>x<number>", "<number>x<number>x<number>", "<number>", "x", "<dims>x<dims>"),
    "number": _NUMBERS,
    "odd": _ODD,
}
_CONDITION = {
    "start": ("<column> <sign> <value>", "<column><sign><value>", "<column>", "<sign>", "<odd>"),
    "column": ("loss", "kind", "age", "seed", "name", "model.num_layers", "num_layers", "lossy", "run", "train.loss", "why",
    *_ODD),
    "sign": ("<", "<=", ">", ">=", "=", "==", "!=", "~", "<>", "=>", "<<", "=~"),
    "value": ("<number>", "none", "true", "2h", "1e999", "nan", "-inf", "'a'", "finished", "9d", "..h", "1.1.1s", "<odd>"),
    "number": _NUMBERS, "odd": _ODD,
}  # fmt: skip


def _spelled(grammar: dict) -> object:
    def make(rng: Random, seeds: object) -> Files:
        text = grown(rng, grammar, depth=8)
        if rng.random() < 0.3 and text:
            at = rng.randrange(len(text))
            text = rng.choice(
                (
                    text[:at] + text[at + 1 :],
                    text[:at] + rng.choice(_ODD) + text[at:],
                    text[:at] + text[at:] * 2,
                    "\udcff" + text,
                )
            )
        return {"word": text.encode(errors="surrogatepass")}

    return make


def _word(folder: Path) -> str:
    return (folder / "word").read_bytes().decode(errors="surrogatepass")


def _source_seeds(folder: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text("a b c\n" * 5)
    (folder / "loop").symlink_to("loop")
    (folder / "deep" / "er").mkdir(parents=True)


def _read_source(folder: Path) -> None:
    """Open the source that is spelt; of one that is read here and is small, count the documents."""
    spelling = _word(folder).replace("FOLDER", str(folder.parent / "seeds"))
    before = os.getcwd()
    os.chdir(folder.parent / "seeds")  # what a relative name means
    try:
        source = parse_source(spelling)
        if not spelling.startswith("stdlib") and source.estimated_bytes < 1 << 16:
            assert sum(1 for _ in source.documents(lambda fault: None)) > 0
    finally:
        os.chdir(before)


def _read_topology(folder: Path) -> None:
    """Read a topology; its own name, where it has one, is read as the same."""
    found, _ = parse_topology(_word(folder))
    assert found.num_devices >= 1 and min(found.dims) >= 1
    again, said = parse_topology(found.name)
    assert (again.dims, again.chip, said) == (found.dims, found.chip, "")


def _read_condition(folder: Path) -> None:
    word = _word(folder)
    config = {"model.num_layers": 2, "seed": 1, "name": "a"}
    stands = [Standing(folder / name, "finished", name=name, last={"loss": 1.5, "step": 3}, config=config) for name in "ab"]
    rows = rows_of(stands, folder)
    columns = Columns(rows)
    kept = keep_where(rows, [word], columns)
    assert len(kept) <= len(rows) and len(sort_by(kept, "loss")) == len(kept)
    try:
        columns.find(word)
    except ConfigError:
        pass


TARGETS = (
    Target("source-words", "spellings of sources: text:PATH#BYTES ...", _source_seeds, _spelled(_SOURCE), _read_source),
    Target("topology-words", "names of topologies: v5p:4x4x4 ...", lambda folder: None, _spelled(_TOPOLOGY), _read_topology),
    Target("condition-words", "conditions of `jaxlm runs --where`", lambda folder: None, _spelled(_CONDITION), _read_condition),
)
