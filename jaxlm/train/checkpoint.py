"""Checkpoints read: checked, on any mesh, and honest about damage. Orbax is known here and in `checkpoint_writer.py` alone."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from jaxlm.config import read_json
from jaxlm.errors import CheckpointError
from jaxlm.train.abandoned_reads import expect_abandoned_reads
from jaxlm.train.checkpoint_writer import items
from jaxlm.train.checksums import CHECKSUMS, checksums, damage
from jaxlm.train.saved import saved_steps
from jaxlm.train.step import TrainState

_DEEPEST = 1000  # of values in values in a file of Orbax's, which come to ten or so


def read_state(folder: Path, step: int, abstract: TrainState, *, verified: bool = False) -> TrainState:
    """Return the whole state saved at `step`, placed as `abstract` says, whatever mesh and processes wrote it; see `read`."""
    found = read(folder, step, items(abstract), verified=verified)
    progress = found["progress"]
    return TrainState(progress["step"], progress["rng"], found["params"], found["optimizer"], progress["guard"])


def verify(folder: Path, step: int) -> None:
    """Raise CheckpointError where a file of the checkpoint at `step` is not as it was written."""
    path = folder / str(step)
    fault = damage(path)
    if fault:
        raise CheckpointError(f"checkpoint {path} is damaged: {fault}")


def read(folder: Path, step: int, abstract: dict[str, Any], *, verified: bool = False) -> dict[str, Any]:
    """Return the named items saved at `step`, or raise CheckpointError where they are damaged or of another shape.

    Of several processes each reads its own part and waits for no other, so that a fault of one is only its own: it is for
    the caller to agree on it, here and before on `compare`. Files are checked first, unless `verified`.
    """
    if not verified:
        verify(folder, step)
        compare(folder, step, abstract)
    path = folder / str(step)
    with _readable(path):
        return ocp.load_checkpointables(path.absolute(), abstract)


def compare(folder: Path, step: int, abstract: dict[str, Any]) -> None:
    """Raise CheckpointError where the checkpoint at `step` does not say that it holds `abstract`."""
    path = folder / str(step)
    with _readable(path):
        _compare(path, ocp.checkpointables_metadata(path.absolute()).metadata, abstract)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Read without the other processes, and turn whatever goes wrong into a CheckpointError."""
    _refuse_deep(path)
    expect_abandoned_reads()
    try:
        with _reading_alone():
            yield
    except CheckpointError:
        raise
    except Exception as fault:
        reason = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
        raise CheckpointError(f"checkpoint {path} cannot be read as this model: {reason:.300}") from fault


def _refuse_deep(path: Path) -> None:
    """Raise CheckpointError for a file of values in values in values: TensorStore's reader would end this process."""
    for file in (*path.glob("_*"), *path.glob("*/_*"), *path.glob("*/array_metadatas/*")):
        with suppress(OSError):
            read = np.fromfile(file, np.uint8)
            steps = np.isin(read, list(b"[{")).astype(np.int8) - np.isin(read, list(b"]}"))
            if steps.cumsum(dtype=np.int64).max(initial=0) > _DEEPEST:
                raise CheckpointError(f"checkpoint {path} is damaged: {file.relative_to(path)} is nested too deeply")


def _reading_alone() -> AbstractContextManager[Any]:
    if jax.process_count() == 1:
        return nullcontext()
    me = jax.process_index()
    return ocp.Context(
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"reader{me}"
        )
    )


def _compare(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise CheckpointError naming the first leaf that is missing or of another shape: Orbax pads and cuts silently."""

    def leaves(tree: Any) -> dict[str, Any]:
        named = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(place, simple=True, separator="."): leaf for place, leaf in named}

    there = leaves({name: found.get(name) for name in wanted})
    asked = leaves(wanted)
    for name, leaf in asked.items():
        if name not in there:
            raise CheckpointError(f"checkpoint {path} has no {name}: it is of another model or optimizer")
        shape, dtype = tuple(there[name].shape), there[name].dtype
        if (shape, dtype) != (tuple(leaf.shape), leaf.dtype):
            raise CheckpointError(
                f"checkpoint {path} holds {name} as {dtype}{shape}, the configuration asks for {leaf.dtype}{leaf.shape}"
            )
    extra = sorted(set(there) - set(asked))
    if extra:
        raise CheckpointError(f"checkpoint {path} holds {extra[0]}, which this configuration has not")


def fingerprint(folder: Path, step: int) -> str:
    """Return a hash of the files of the checkpoint at `step`; CheckpointError where there is none that can be read."""
    path = folder / str(step)
    try:
        sums = read_json((path / CHECKSUMS).read_bytes()) if (path / CHECKSUMS).exists() else checksums(path)
    except (OSError, ValueError) as fault:
        raise CheckpointError(f"checkpoint {path} cannot be read: {fault}") from fault
    return hashlib.blake2b(json.dumps(sums, sort_keys=True).encode(), digest_size=16).hexdigest()


def description(folder: Path, step: int) -> dict[str, Any]:
    """Return what was said of the checkpoint when it was saved: config, tokenizer, data position, versions."""
    path = folder / str(step)
    _refuse_deep(path)
    try:
        found = ocp.checkpointables_metadata(path.absolute()).custom_metadata
    except Exception as fault:
        raise CheckpointError(f"{path} is not a readable checkpoint: {fault!r:.300}") from fault
    if not isinstance(found, dict) or "jaxlm" not in found:
        raise CheckpointError(f"{path} was not written by jaxlm: it carries no description of its model")
    return found


def newest_good(
    folder: Path, load: Callable[[int], Any], report: Callable[[str], None], steps: Iterable[int] | None = None
) -> tuple[int, Any] | None:
    """Return (step, load(step)) of the newest checkpoint that can be read, or None where there is none at all.

    A damaged one is reported and moved aside into `damaged/`, never deleted. Where none of several can be read, the
    CheckpointError of the newest is raised: starting over would hide the loss.
    """
    first_fault = None
    for step in reversed(list(steps if steps is not None else saved_steps(folder))):
        try:
            return step, load(step)
        except CheckpointError as fault:
            first_fault = first_fault or fault
            report(f"{fault}; trying the one before it")
    if first_fault is not None:
        raise CheckpointError(f"no checkpoint in {folder} can be read. The newest: {first_fault}")
    return None


def set_aside(folder: Path, step: int) -> Path:
    """Move a damaged checkpoint out of the way of the run's next save at the same step."""
    aside = folder.parent / "damaged"
    aside.mkdir(exist_ok=True)
    target = next(p for n in range(1, 1_000_000) if not (p := aside / f"{step}-{n}").exists())
    (folder / str(step)).rename(target)
    return target
