"""`jaxlm score`: log-probabilities and logits of given token rows."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.errors import ConfigError, DataError
from jaxlm.eval.reach import check_reach
from jaxlm.layout import Layout
from jaxlm.model import transformer
from jaxlm.model.config import ModelConfig
from jaxlm.model.extension import Extension
from jaxlm.ops.masks import Tokens
from jaxlm.run import display
from jaxlm.run.arrays import map_npy
from jaxlm.run.open import opened


def score_rows(
    folder: Path, tokens: Path, logits_out: Path | None, step: int | None, batch_size: int, extension: Extension = Extension()
) -> None:
    """Print one JSON object a row: {"row", "log_prob" (the sum), "log_probs" (of each token after the first)}.

    Logits go to `logits_out` as float32 [rows, length, vocabulary], written as they are computed. The model is read as
    `extension` has it.
    """
    if batch_size < 1:
        raise ConfigError(f"--batch-size {batch_size} must be 1 or more")
    if logits_out is not None and logits_out.exists() and tokens.exists() and logits_out.samefile(tokens):
        raise ConfigError(f"--logits {logits_out} is the file of --tokens: name another")
    rows = _read_rows(tokens)
    with opened(folder, step, extension=extension) as run:
        if rows.min() < 0 or rows.max() >= run.model.vocab_size:
            raise DataError(
                f"{tokens} holds token {max(rows.max(), -rows.min())}: this model knows 0 to {run.model.vocab_size - 1}"
            )
        if warning := check_reach(rows.shape[1], run.model, f"rows of {tokens}", run.trained):
            display.console().print(f"[yellow]warning:[/] {warning}", soft_wrap=True)
        file = None
        if logits_out is not None:
            try:
                file = np.lib.format.open_memmap(
                    logits_out, mode="w+", dtype=np.float32, shape=(*rows.shape, run.model.vocab_size)
                )
            except OSError as fault:
                raise DataError(f"{logits_out} cannot be written: {fault.strerror}") from fault
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            logits = np.asarray(row_logits(run.params, part, run.model, run.experiment.layout))
            if file is not None:
                file[start : start + len(part)] = logits
            chosen = np.asarray(token_log_probs(logits[:, :-1], part[:, 1:]))
            for index, log_probs in enumerate(chosen):
                total = float(log_probs.sum(dtype=np.float64))
                print(json.dumps({"row": start + index, "log_prob": total, "log_probs": [float(x) for x in log_probs]}))
        if file is not None:
            file.flush()


def _read_rows(path: Path) -> np.ndarray:
    rows = map_npy(path)
    if rows.ndim != 2 or rows.dtype.kind not in "iu" or not rows.size:
        raise DataError(
            f"{path} must hold integer token rows [rows, length]; np.save('rows.npy', np.array([[1, 5, 9]])) makes one"
        )
    if rows.max() >= 2**31:
        raise DataError(f"{path} holds token {rows.max()}, which no model knows")
    return rows.astype(np.int64)


@functools.partial(jax.jit, static_argnames=("config", "layout"))
def row_logits(params: Any, tokens_BL: Array, config: ModelConfig, layout: Layout) -> Array:
    """Return float32 logits [B, L, V] of rows that are one document each."""
    tokens_BL = jax.reshard(tokens_BL.astype(jnp.int32), layout.spec("batch", "length"))
    positions = jax.lax.broadcasted_iota(jnp.int32, tokens_BL.shape, 1, out_sharding=jax.typeof(tokens_BL).sharding)
    x_BLD, _ = transformer.forward(params, tokens_BL, Tokens(positions), config, layout)
    return transformer.unembed(params, x_BLD, config, layout)


def token_log_probs(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return log p(target) [B, L] under float32 logits [B, L, V], normalised in float64."""
    logits = logits.astype(np.float64)
    top = logits.max(axis=-1, keepdims=True)
    log_normaliser = np.log(np.exp(logits - top).sum(axis=-1)) + top[..., 0]
    return (np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0] - log_normaliser).astype(np.float32)
