"""A reference's log-probabilities of all pairs, computed once, kept on disk, and believed only after a second look."""

import hashlib
import io
import json
import os
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import to_dict
from jaxlm.data.storage import cache_folder, storage_errors, sync_folder, write_atomically
from jaxlm.errors import CheckpointError, DataError
from jaxlm.locks import in_turn
from jaxlm.model.config import ModelConfig
from jaxlm.objective.preference import reference_log_probs
from jaxlm.run import display
from jaxlm.run.agreement import agreed, gathered
from jaxlm.run.arrays import map_npy
from jaxlm.run.setup import Setup

DAY = 86400.0
_FORMAT = 1  # part of every key: raise it when the same inputs are to give other numbers
_VERIFIED = 4  # batches of pairs, spread over a table, that are computed anew before it is believed
_TOLERANCE = 1e-3  # of a response's log-probability in nats, beside what its number format rounds
_FLUSH_SECONDS = 20.0


def log_prob_table(setup: Setup, fingerprint: str, model: ModelConfig, params: Any, split: str, out: Any) -> np.ndarray:
    """Return float32 [pairs, 2], what a model says of a split's responses, in the order of its rows.

    `fingerprint` is that of the checkpoint with its parameters. Raises CheckpointError where what is kept is not what the
    model gives now, or where it gives no numbers.
    """
    data, leading = setup.prepared, jax.process_index() == 0
    decisive = {
        "format": _FORMAT,
        "checkpoint": fingerprint,
        "model": to_dict(model),
        "tokenizer": data.tokenizer.digest,
        "data": data.key,
        "split": split,
        "sequence_length": setup.experiment.data.sequence_length,
        "pairs": data.split(split).rows,
    }
    key = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder(setup.experiment.data.cache) / "references" / f"{key}.npy"
    scorer = _Scorer(setup, model, params, split)
    with ExitStack() as held, storage_errors(path.parent, 16 * decisive["pairs"]):
        with agreed("reference log-probabilities", timeout=DAY):
            if leading:
                path.parent.mkdir(parents=True, exist_ok=True)
                waits = "waiting for another run that computes the same reference log-probabilities"
                held.enter_context(in_turn(path.with_suffix(".lock"), lambda: out.print(waits)))
            kept = _read(path, decisive["pairs"])
        if all(gathered("cached log-probabilities", kept is not None)):
            with agreed("cached log-probabilities compared", timeout=3600):
                _compare(kept, scorer, path)
            return kept
        found = _compute(path, scorer, split, out)
        with agreed("log-probabilities computed"):
            if not np.all(np.isfinite(found)):
                pair = int(np.argwhere(~np.isfinite(found))[0, 0])
                raise CheckpointError(f"the reference gives {split} pair {pair} no number: is it a model that was trained?")
            if leading:
                write_atomically(path.with_suffix(".json"), json.dumps(decisive, indent=1).encode())
                os.replace(_partial(path), path)
                sync_folder(path.parent)
    return found


class _Scorer:
    """The reference's log-probabilities of a split's pairs, batch by batch, in the order of its rows."""

    def __init__(self, setup: Setup, model: ModelConfig, params: Any, split: str):
        experiment = setup.experiment
        piece = replace(experiment, batch_size=experiment.batch_size // experiment.accumulate, accumulate=1)
        self._setup, self._params = replace(setup, experiment=piece), params
        self._batches, layout = self._setup.batches(split, in_order=True), experiment.layout
        self.rounding = float(jnp.finfo(model.compute_dtype).eps)
        self.num_batches, self.pairs = self._batches.num_batches, self._batches.num_rows

        @jax.jit
        def program(params: Any, batch: Any) -> jax.Array:
            return jax.reshard(reference_log_probs(params, batch, model, layout), jax.P())

        self._program = program

    def rows(self, index: int) -> slice:
        """Return which of the pairs batch `index` holds."""
        size = self._setup.experiment.batch_size
        return slice(index * size, min((index + 1) * size, self.pairs))

    def batch(self, index: int) -> np.ndarray:
        """Return float32 [pairs of the batch, 2]."""
        placed = self._setup.place(self._batches.batch(index))
        here = self.rows(index)
        return np.asarray(jax.device_get(self._program(self._params, placed))).reshape(-1, 2)[: here.stop - here.start]


def _partial(path: Path) -> Path:
    return path.with_suffix(".partial")


def _read(path: Path, pairs: int) -> np.ndarray | None:
    try:
        found = np.array(map_npy(path))
    except DataError:
        return None
    return found if found.shape == (pairs, 2) and found.dtype == np.float32 and np.all(np.isfinite(found)) else None


def _compute(path: Path, scorer: _Scorer, split: str, out: Any) -> np.ndarray:
    """Return the whole table. Process 0 keeps on disk what is done of it, and a run of one process goes on from there."""
    table, first = np.full((scorer.pairs, 2), np.nan, np.float32), 0
    if jax.process_index() == 0:
        table = _partial_table(_partial(path), scorer.pairs)
    if jax.process_count() == 1:
        done = ~np.isnan(table).any(axis=1)
        first = next((i for i in range(scorer.num_batches) if not np.all(done[scorer.rows(i)])), scorer.num_batches)
        if first and _first_difference(table, scorer, (0, first // 2, first - 1)):
            out.print("[yellow]warning:[/] what was begun of the reference's log-probabilities is damaged: it is computed anew")
            first = 0
    flushed = time.monotonic()
    with display.preparation(out) as report:
        for index in range(first, scorer.num_batches):
            report(f"log-probabilities of the {split} pairs under the reference", index / scorer.num_batches)
            table[scorer.rows(index)] = scorer.batch(index)
            if isinstance(table, np.memmap) and time.monotonic() - flushed > _FLUSH_SECONDS:
                table.flush()
                flushed = time.monotonic()
    if isinstance(table, np.memmap):
        table.flush()
    return np.array(table)


def _partial_table(path: Path, pairs: int) -> np.memmap:
    """Return float32 [pairs, 2] on disk, as far as an earlier start had come: the rest is no number."""
    with suppress(OSError, DataError):
        found = map_npy(path)
        if found.shape == (pairs, 2) and found.dtype == np.float32:
            return np.lib.format.open_memmap(path, mode="r+")
    content = io.BytesIO()
    np.save(content, np.full((pairs, 2), np.nan, np.float32))
    write_atomically(path, content.getvalue())
    return np.lib.format.open_memmap(path, mode="r+")


def _compare(kept: np.ndarray, scorer: _Scorer, path: Path) -> None:
    """Raise CheckpointError where some of the kept numbers, computed anew, are others."""
    differs = _first_difference(kept, scorer, np.linspace(0, scorer.num_batches - 1, _VERIFIED, dtype=int))
    if differs:
        pair, which, before, now = differs
        raise CheckpointError(
            f"{path} holds {before:.4f} as the log-probability of response {which + 1} of pair {pair}, and the reference "
            f"now gives {now:.4f}: another version or device computed it. Remove it (rm {path}) to compute it anew"
        )


def _first_difference(table: np.ndarray, scorer: _Scorer, batches: Iterable[int]) -> tuple[int, int, float, float] | None:
    """Return (pair, response, number in the table, number computed anew) where they are not the same, if anywhere."""
    for index in sorted(set(batches)):
        before, now = table[scorer.rows(index)], scorer.batch(index)
        off = np.abs(now - before) > _TOLERANCE + scorer.rounding * np.abs(before)
        if np.any(off):
            pair, which = np.argwhere(off)[0]
            return int(scorer.rows(index).start + pair), int(which), float(before[pair, which]), float(now[pair, which])
    return None
