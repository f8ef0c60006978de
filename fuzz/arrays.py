"""Arrays that users give: .npy rows to score, .npz routing decisions, tables of a reference."""

import io
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from fuzz.mutate import NUMBERS, Files, mutated
from fuzz.target import Target, made_in_a_folder
from jaxlm.model.moe import Decisions
from jaxlm.run import reference_table
from jaxlm.run.decisions import read_experts, write_decisions
from jaxlm.run.score import _read_rows

_SHAPE = (2, 3, 4, 2)


def _npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def _row_seeds(folder: Path) -> list[bytes]:
    rows = np.arange(12).reshape(3, 4)
    return [
        _npy(each)
        for each in (rows, rows.astype(np.int16), rows.astype(np.uint64), rows.astype(np.float32), np.asfortranarray(rows))
    ]


def _header(rng: Random) -> bytes:
    """Return a file whose header, of the right length, says something odd."""
    kind = rng.choice(
        ("<i8", "<i4", ">i2", "|O", "<f8", "|V9", "<U4", "<M8[s]", "|u1", "|S0", "<c16", "[('a', '<i8')]", "<i3", "|i")
    )
    shape = ", ".join(str(rng.choice((*NUMBERS, -1, 3, 4, True, "1.5", "'a'"))) for _ in range(rng.choice((0, 1, 2, 2, 3, 40))))
    fortran = rng.choice(("False", "True", "1", "None"))
    descr = kind if kind.startswith("[") else repr(kind)
    more = rng.choice(("", "", "'x': 1, ", "'descr': 3, ", "(" * 300, "9" * 5000))
    text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': ({shape},), {more}}}".encode() + b" " * 20 + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little", signed=False) + text + bytes(rng.choice((0, 8, 96)))


def _rows(rng: Random, seeds: list[bytes]) -> Files:
    return {"rows.npy": _header(rng) if rng.random() < 0.5 else mutated(rng, rng.choice(seeds), seeds, head=130)}


def _read(folder: Path) -> None:
    found = _read_rows(folder / "rows.npy")
    assert found.ndim == 2 and found.dtype == np.int64 and found.size
    assert np.array_equal(np.load(io.BytesIO(_npy(found))), found)


def _decision_seeds(folder: Path) -> list[bytes]:
    rng = np.random.default_rng(0)
    decisions = Decisions(
        experts=rng.integers(0, 4, _SHAPE, np.int16), gates=np.ones(_SHAPE, np.float32), kept=np.ones(_SHAPE, bool)
    )
    files = made_in_a_folder(lambda f: write_decisions(f, 5, decisions, "abc"))
    return [next(iter(files.values()))]


def _decisions(rng: Random, seeds: list[bytes]) -> Files:
    content = mutated(rng, seeds[0], head=10**6)
    if rng.random() < 0.4:  # zip files that are whole, with arrays that are not
        out = io.BytesIO()
        import zipfile

        with zipfile.ZipFile(out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
            for name in ("experts.npy", "gates.npy", "kept.npy", "batch_hash.npy"):
                good = _npy(
                    np.array("abc") if name == "batch_hash.npy" else np.zeros(_SHAPE, rng.choice((np.int16, np.float64, "U3")))
                )
                if rng.random() < 0.9:
                    archive.writestr(name, rng.choice((good, good, _header(rng), mutated(rng, good), bytes(10**6))))
        content = out.getvalue()
    return {f"{5:08d}.npz": content}


def _read_decisions(folder: Path) -> None:
    experts = read_experts(folder, 5, "abc", _SHAPE)
    assert experts.shape == _SHAPE and experts.dtype == np.int32


def _table_seeds(folder: Path) -> list[bytes]:
    return [_npy(np.ones((3, 2), np.float32)), _npy(np.full((3, 2), np.nan, np.float32))]


def _table(rng: Random, seeds: list[bytes]) -> Files:
    return {"table.npy": _header(rng) if rng.random() < 0.4 else mutated(rng, rng.choice(seeds), seeds, head=130)}


def _read_table(folder: Path) -> bool:
    """Read a reference's table, which is made anew where it is not whole, and one that is begun."""
    path = folder / "table.npy"
    found: Any = reference_table._read(path, 3)
    assert found is None or (found.shape == (3, 2) and np.isfinite(found).all())
    begun = reference_table._partial_table(path, 3)
    assert begun.shape == (3, 2) and begun.dtype == np.float32
    return found is not None


TARGETS = (
    Target("npy-rows", "token rows of `jaxlm score`", _row_seeds, _rows, _read),
    Target("npz-decisions", "recorded routing decisions", _decision_seeds, _decisions, _read_decisions),
    Target("npy-reference", "kept log-probabilities of a reference", _table_seeds, _table, _read_table),
)
