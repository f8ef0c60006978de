"""`jaxlm export`: a run's model and tokenizer as others read them."""

import json
import sys
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxlm import param
from jaxlm.data.hugging_face_export import save_hugging_face
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.errors import ConfigError
from jaxlm.interop import adapters
from jaxlm.interop.axes import axes
from jaxlm.interop.families.find import family_for
from jaxlm.interop.safetensors import SINGLE
from jaxlm.interop.safetensors_writer import Dtype, write_safetensors
from jaxlm.interop.table import their_tensor, their_tensors
from jaxlm.run import display
from jaxlm.run.imports import new_folder
from jaxlm.run.open import opened

GIGABYTE = 1_000_000_000


def export_run(
    folder: Path, to: Path, format: Literal["hf"] = "hf", dtype: Dtype = "float32", shard_size: float = 5.0,
    step: int | None = None,
) -> None:  # fmt: skip
    """Write a run's model into the new folder `to`: config.json, safetensors, generation_config.json and tokenizer files.

    `shard_size` is the gigabytes a file of weights may hold. Raises ConfigError, naming the value, where no family of Hugging
    Face can hold the model, and CheckpointError where `to` is taken.
    """
    if not 0 < shard_size < float("inf"):
        raise ConfigError(f"--shard-size {shard_size:g} must be above 0: gigabytes that a file of weights may hold")
    out = display.console()
    with new_folder(to, "--to") as making, opened(folder, step) as run:
        family = family_for(run.model)
        ids = _ids(run.tokenizer)
        config = family.write(run.model) | ids | {"dtype": dtype}
        table = family.table(run.model)
        leaves = param.named_leaves(run.params)

        def leaf(name: str, repeat: int) -> np.ndarray:
            return np.asarray(jax.device_get(leaves[name][repeat] if name.startswith("blocks.") else leaves[name]))

        with display.transfer(out, f"writing {to.name}") as report:
            write_safetensors(
                making, their_tensors(table, run.model), lambda name: their_tensor(table, run.model, name, leaf), dtype,
                max(1, int(shard_size * GIGABYTE)), report,
            )  # fmt: skip
        _write_json(making / "config.json", config)
        _write_json(making / "generation_config.json", ids)
        if run.tokenizer is not None:
            save_hugging_face(run.tokenizer, making)
        files = len(list(making.glob("*.safetensors")))
        out.print(
            f"[bold]{to}[/]: step {run.step} of {folder} as {family.architecture}, {dtype}, in {files} "
            f"file{'s' if files > 1 else ''}; AutoModelForCausalLM.from_pretrained({str(to)!r}) reads it",
            soft_wrap=True,
        )


def export_adapters(folder: Path, to: Path, dtype: Dtype = "float32", step: int | None = None) -> None:
    """Write a run's adapters alone into the new folder `to`, as PEFT reads them: adapter_config.json and safetensors.

    Raises ConfigError where the run has none, or where a weight that they adapt is no matrix of its own in the family.
    """
    out = display.console()
    with new_folder(to, "--to") as making, opened(folder, step, merge=False) as run:
        config = run.experiment.lora
        if not config.rank:
            raise ConfigError(f"{folder} was trained without adapters (lora.rank): export the whole model, without --adapters")
        family = family_for(run.model)
        pieces = adapters.adapter_pieces(family.table(run.model), run.model, config)
        leaves = param.named_leaves(run.params)

        def read(name: str) -> np.ndarray:
            piece = pieces[name]
            theirs = np.empty(axes(piece.axes).their_shape(piece.shape), np.float32)
            axes(piece.axes).put(np.asarray(jax.device_get(leaves[piece.leaf][piece.repeat])), theirs)
            return theirs

        shapes = {name: axes(piece.axes).their_shape(piece.shape) for name, piece in pieces.items()}
        write_safetensors(making, shapes, read, dtype, sys.maxsize)
        (making / SINGLE).rename(making / adapters.WEIGHTS)
        _write_json(making / adapters.CONFIG, adapters.adapter_config(pieces, run.model, config))
        out.print(
            f"[bold]{to}[/]: adapters of step {run.step} of {folder}, {dtype}; PeftModel.from_pretrained(base, {str(to)!r}) "
            f"reads them, where base is the export of {run.experiment.init_from or 'what the run began with'}",
            soft_wrap=True,
        )


def _ids(tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Return what a configuration says of special tokens: where text begins and ends."""
    if tokenizer is None:
        return {}
    stops = list(tokenizer.stop_ids)
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": stops[0] if len(stops) == 1 else stops or tokenizer.eos_id}


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
