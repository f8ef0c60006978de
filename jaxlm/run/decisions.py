"""Routing decisions on disk: one file a step (or batch of an evaluation), with the hash of the batch that it belongs to."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.data.storage import write_atomically
from jaxlm.errors import CheckpointError, ConfigError, DataError
from jaxlm.model.intervention import RouterIntervention
from jaxlm.model.moe import Decisions
from jaxlm.run.arrays import read_npz


def check_folders(router: RouterIntervention) -> None:
    """Raise ConfigError where decisions cannot be written to the folder meant, or there is none to follow them from."""
    if router.replay and not os.path.isdir(router.replay):
        raise ConfigError(f"router.replay = {router.replay!r}: there is no such folder. --router.record writes one")
    if router.record:
        folder = Path(router.record).absolute()
        there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            why = "permission denied" if there.is_dir() else "it is not a folder"
            raise ConfigError(f"router.record = {router.record!r} cannot be written: {there}, {why}. Name another folder")


def write_decisions(folder: Path, step: int, decisions: Decisions, batch_hash: str) -> None:
    """Write where every token of a step went: `experts` int16, `gates` float32, `kept`, each [mixture layers, B, L, K].

    The number of experts, as an expert, stands for none (padding). Raises CheckpointError where it cannot be written.
    """
    buffer = io.BytesIO()
    np.savez(buffer, experts=np.asarray(decisions.experts, np.int16), gates=np.asarray(decisions.gates),
             kept=np.asarray(decisions.kept), batch_hash=np.array(batch_hash))  # fmt: skip
    target = folder / f"{step:08d}.npz"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(target, buffer.getvalue())
    except OSError as fault:
        raise CheckpointError(f"cannot write {target}: {fault.strerror}; what was recorded before is kept") from fault


def read_experts(folder: Path, step: int, batch_hash: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the recorded experts of a step, int32 `shape` = [mixture layers, B, L, K].

    Raises DataError where they are missing, of another shape, or were recorded for another batch.
    """
    path = folder / f"{step:08d}.npz"
    try:
        stored = read_npz(path, ("experts", "batch_hash"))
    except FileNotFoundError as fault:
        raise DataError(
            f"{folder} holds no decisions for step {step}: record that many steps with --router.record first"
        ) from fault
    experts = stored["experts"]
    if experts.dtype.kind not in "iu":
        raise DataError(f"{path} holds {experts.dtype}, not the numbers of experts: record it again with --router.record")
    if str(stored["batch_hash"]) != batch_hash:
        raise DataError(f"{path} was recorded for another batch: replay needs the same data, seed, batch size and steps")
    if experts.shape != shape:
        raise DataError(
            f"{path} holds decisions {experts.shape} (layers, rows, length, experts per token), the model takes {shape}"
        )
    return experts.astype(np.int32)


def shape_of(model: Any, rows: int, length: int) -> tuple[int, ...]:
    """Return the shape of a batch's decisions."""
    return (len(model.moe_layers), rows, length, model.moe.experts_per_token)
