"""Routing decisions on disk: one file a step (or batch of an evaluation), with the hash of the batch that it belongs to."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.errors import CheckpointError, DataError
from jaxlm.model.moe import Decisions


def write_decisions(folder: Path, step: int, decisions: Decisions, batch_hash: str) -> None:
    """Write where every token of a step went: `experts` int16, `gates` float32, `kept`, each [mixture layers, B, L, K].

    The number of experts, as an expert, stands for none (padding). Raises CheckpointError where it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez(buffer, experts=np.asarray(decisions.experts, np.int16), gates=np.asarray(decisions.gates),
             kept=np.asarray(decisions.kept), batch_hash=np.array(batch_hash))  # fmt: skip
    target = folder / f"{step:08d}.npz"
    temporary = target.with_name(f".{target.name}")
    try:
        temporary.write_bytes(buffer.getvalue())
        temporary.rename(target)
    except OSError as fault:
        raise CheckpointError(f"cannot write {target}: {fault.strerror}; what was recorded before is kept") from fault


def read_experts(folder: Path, step: int, batch_hash: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the recorded experts of a step, int32 `shape` = [mixture layers, B, L, K].

    Raises DataError where they are missing, of another shape, or were recorded for another batch.
    """
    path = folder / f"{step:08d}.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            experts, recorded = stored["experts"], str(stored["batch_hash"])
    except FileNotFoundError as fault:
        raise DataError(
            f"{folder} holds no decisions for step {step}: record that many steps with --router.record first"
        ) from fault
    except (OSError, ValueError, KeyError, EOFError) as fault:
        raise DataError(f"{path} is no file of routing decisions: {fault!r:.200}") from fault
    if recorded != batch_hash:
        raise DataError(f"{path} was recorded for another batch: replay needs the same data, seed, batch size and steps")
    if experts.shape != shape:
        raise DataError(
            f"{path} holds decisions {experts.shape} (layers, rows, length, experts per token), the model takes {shape}"
        )
    return experts.astype(np.int32)


def shape_of(model: Any, rows: int, length: int) -> tuple[int, ...]:
    """Return the shape of a batch's decisions."""
    return (len(model.moe_layers), rows, length, model.moe.experts_per_token)
