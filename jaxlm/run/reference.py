"""The model that preferences are measured against: beside the policy, or its log-probabilities, computed once and kept."""

import dataclasses
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import to_dict
from jaxlm.data.storage import cache_folder, storage_errors, sync_folder, write_atomically
from jaxlm.errors import CheckpointError, ConfigError
from jaxlm.model.config import ModelConfig
from jaxlm.objective.preference import reference_log_probs
from jaxlm.run import display
from jaxlm.run.agreement import agreed, gathered, told
from jaxlm.run.directory import CHECKPOINTS, TOKENIZER
from jaxlm.run.initial import chosen_anew
from jaxlm.run.open import described, read_params
from jaxlm.run.setup import Setup
from jaxlm.train import checkpoint

DAY = 86400.0
_FORMAT = 1  # part of every key: raise it when the same inputs are to give other numbers
_VERIFIED = 4  # batches of pairs, spread over a table, that are computed anew before it is believed
_TOLERANCE = 1e-3  # of a response's log-probability in nats, beside what its number format rounds
_FLUSH_SECONDS = 20.0


@dataclasses.dataclass(frozen=True)
class Reference:
    """The checkpoint that is the reference, of which no weight is read yet."""

    folder: Path
    step: int
    model: ModelConfig
    fingerprint: str

    def described(self) -> dict[str, Any]:
        """Return what the policy's checkpoints say of it."""
        return {"run": str(self.folder), "step": self.step, "fingerprint": self.fingerprint}


def with_reference(setup: Setup, saves: Path, out: Any) -> Setup:
    """Return the set-up with what its preferences are measured against, on the current mesh.

    A live reference is read whole; otherwise every pair's log-probabilities come from the cache, of which a sample is computed
    anew and compared, or are computed. `saves` holds the policy's checkpoints, which say what it was measured against before.
    Raises CheckpointError for a reference that cannot be read, has another tokenizer, is not what the policy began with, or
    whose cached numbers are not what it gives now.
    """
    experiment = setup.experiment
    if not (experiment.paired and experiment.preference.needs_reference) or experiment.reference_is_base:
        return setup
    folder = Path(experiment.preference.reference_run or experiment.init_from)
    steps = told(f"list of checkpoints in {folder}", checkpoint.saved_steps(folder / CHECKPOINTS))
    before = told("reference so far", _reference_so_far(saves))
    with agreed("reference", timeout=3600):
        reference = find_reference(setup, folder, steps, before)
        params = read_params(folder / CHECKPOINTS, reference.step, reference.model, experiment.layout, setup.mesh)
    setup = dataclasses.replace(setup, reference_described=reference.described())
    if experiment.preference.reference == "live":
        return dataclasses.replace(setup, reference=params)
    splits = [split for split in ("train", "validation") if setup.prepared.split(split).rows]
    tables = {split: _table(setup, reference, params, split, out) for split in splits}
    return dataclasses.replace(setup, reference_log_probs=tables)


def _reference_so_far(saves: Path) -> dict[str, Any]:
    """Return what the newest checkpoint that can be read says of its reference; nothing where there is none."""
    for step in reversed(checkpoint.saved_steps(saves)):
        with suppress(CheckpointError):
            return checkpoint.description(saves, step).get("reference") or {}
    return {}


def find_reference(setup: Setup, folder: Path, steps: list[int], before: dict[str, Any]) -> Reference:
    """Return the checkpoint that is the reference, its tokenizer and model compared with the policy's.

    It is the newest in `folder`, or of a run that continues the one it had `before`.
    """
    experiment, saves = setup.experiment, folder / CHECKPOINTS
    if not steps:
        raise CheckpointError(f"the reference {folder} has no checkpoint: name a run with one by --preference.reference-run")
    step = before["step"] if before.get("run") == str(folder) and before.get("step") in steps else steps[-1]
    _, model = described(saves, step, setup.mesh)
    if checkpoint.description(saves, step).get("tokenizer") != setup.prepared.tokenizer.digest:
        raise CheckpointError(
            f"the reference {folder} has another tokenizer than the data: set --data.tokenizer.path {folder / TOKENIZER}"
        )
    if chosen_anew(model, setup.model) == setup.model:
        model = setup.model  # with the policy's number format and kernel: the same parameters are to give the same numbers
    elif experiment.preference.reference == "live":
        raise ConfigError(
            f"preference.reference = 'live' runs {folder} beside the policy, whose model is another: set "
            "--preference.reference cached, or name a run of the same model"
        )
    fingerprint = checkpoint.fingerprint(saves, step)
    if before and before["fingerprint"] != fingerprint:
        raise CheckpointError(
            f"this run was measured against step {before['step']} of {before['run']}, which is gone or changed: {folder} now "
            f"gives step {step}. Bring it back, or begin anew in another --run-dir"
        )
    return Reference(folder, step, model, fingerprint)


def _table(setup: Setup, reference: Reference, params: Any, split: str, out: Any) -> np.ndarray:
    """Return float32 [pairs, 2], the reference's log-probabilities of a split's responses, in the order of its rows."""
    data, leading = setup.prepared, jax.process_index() == 0
    decisive = {
        "format": _FORMAT,
        "checkpoint": reference.fingerprint,
        "model": to_dict(reference.model),
        "tokenizer": data.tokenizer.digest,
        "data": data.key,
        "split": split,
        "sequence_length": setup.experiment.data.sequence_length,
        "pairs": data.split(split).rows,
    }
    key = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder(setup.experiment.data.cache) / "references" / f"{key}.npy"
    scorer = _Scorer(setup, reference.model, params, split)
    with ExitStack() as held, storage_errors(path.parent, 16 * decisive["pairs"]):
        with agreed("reference log-probabilities", timeout=DAY):
            if leading:
                path.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(_locked(path, out))
            kept = _read(path, decisive["pairs"])
        if all(gathered("cached log-probabilities", kept is not None)):
            with agreed("cached log-probabilities compared", timeout=3600):
                _compare(kept, scorer, path, reference.model)
            return kept
        found = _compute(path, scorer, split, out)
        with agreed("log-probabilities computed"):
            if not np.all(np.isfinite(found)):
                pair = int(np.argwhere(~np.isfinite(found))[0, 0])
                raise CheckpointError(f"the reference {reference.folder} gives {split} pair {pair} no number")
            if leading:
                write_atomically(path.with_suffix(".json"), json.dumps(decisive, indent=1).encode())
                os.replace(_partial(path), path)
                sync_folder(path.parent)
    return found


class _Scorer:
    """The reference's log-probabilities of a split's pairs, batch by batch, in the order of its rows."""

    def __init__(self, setup: Setup, model: ModelConfig, params: Any, split: str):
        self._setup, self._params = setup, params
        self._batches, layout = setup.batches(split, in_order=True), setup.experiment.layout
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


@contextmanager
def _locked(path: Path, out: Any) -> Iterator[None]:
    with open(path.with_suffix(".lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            out.print("waiting for another run that computes the same reference log-probabilities")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _partial(path: Path) -> Path:
    return path.with_suffix(".partial")


def _read(path: Path, pairs: int) -> np.ndarray | None:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == (pairs, 2) and found.dtype == np.float32 and np.all(np.isfinite(found)) else None


def _compute(path: Path, scorer: _Scorer, split: str, out: Any) -> np.ndarray:
    """Return the whole table. Process 0 keeps on disk what is done of it, and a run of one process goes on from there."""
    table, first = np.full((scorer.pairs, 2), np.nan, np.float32), 0
    if jax.process_index() == 0:
        table = _partial_table(_partial(path), scorer.pairs)
    if jax.process_count() == 1:
        done = ~np.isnan(table[:, 0])
        first = next((i for i in range(scorer.num_batches) if not np.all(done[scorer.rows(i)])), scorer.num_batches)
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
    try:
        found = np.lib.format.open_memmap(path, mode="r+")
        if found.shape == (pairs, 2) and found.dtype == np.float32:
            return found
    except (OSError, ValueError):
        pass
    begun = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(pairs, 2))
    begun[:] = np.nan
    return begun


def _compare(kept: np.ndarray, scorer: _Scorer, path: Path, model: ModelConfig) -> None:
    """Raise CheckpointError where some of the kept numbers, computed anew, are others."""
    for index in np.unique(np.linspace(0, scorer.num_batches - 1, _VERIFIED, dtype=int)):
        before, now = kept[scorer.rows(index)], scorer.batch(index)
        off = np.abs(now - before) > _TOLERANCE + float(jnp.finfo(model.compute_dtype).eps) * np.abs(before)
        if np.any(off):
            pair, which = np.argwhere(off)[0]
            raise CheckpointError(
                f"{path} holds {before[pair, which]:.4f} as the log-probability of response {which + 1} of pair "
                f"{scorer.rows(index).start + pair}, and the reference now gives {now[pair, which]:.4f}: it was computed "
                f"by another version or on another device. Remove it (rm {path}) to compute it anew"
            )
