"""A finished or stopped run, opened for reading: model, parameters and tokenizer, on the devices of this machine."""

import dataclasses
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from jaxlm import param
from jaxlm.config import from_dict
from jaxlm.data.tokenizer import Tokenizer, load_tokenizer
from jaxlm.errors import CheckpointError, ConfigError, DataError
from jaxlm.experiment import Experiment
from jaxlm.layout import Layout, make_mesh
from jaxlm.model import lora, transformer
from jaxlm.model.config import ModelConfig
from jaxlm.model.extension import Extension
from jaxlm.model.lora import LoraConfig
from jaxlm.run import display
from jaxlm.run.directory import CHECKPOINTS, TOKENIZER, imported_from, load_config
from jaxlm.run.functions import find_functions
from jaxlm.train import checkpoint
from jaxlm.train.saved import saved_steps


@dataclasses.dataclass(frozen=True)
class OpenRun:
    """A run's checkpoint in memory."""

    folder: Path
    experiment: Experiment
    model: ModelConfig
    """As it is to be read."""
    trained: ModelConfig
    """As it was trained: the same, but where an extension was asked for."""
    params: Any
    step: int
    tokenizer: Tokenizer | None
    """None for an imported model that came without."""
    mesh: jax.sharding.Mesh

    def needs_tokenizer(self) -> Tokenizer:
        """Return the tokenizer, or raise DataError where the run has none."""
        if self.tokenizer is None:
            raise DataError(
                f"{self.folder} has no tokenizer: its model was imported without one. `jaxlm score --tokens` reads token ids; "
                "for text, import it again from a folder that has tokenizer.json or tokenizer.model"
            )
        return self.tokenizer


def described(saves: Path, step: int, mesh: jax.sharding.Mesh) -> tuple[Experiment, ModelConfig]:
    """Return what a checkpoint says it is of, its model settled for this mesh; CheckpointError where it says nothing known."""
    description = checkpoint.description(saves, step)
    try:
        experiment = from_dict(Experiment, description["experiment"])
    except (KeyError, ConfigError) as fault:
        raise CheckpointError(f"checkpoint {saves / str(step)} describes no model of this version: {fault}") from fault
    find_functions(saves.parent, experiment)
    return experiment, experiment.model.for_platform(mesh.devices.flat[0].platform)


def read_adapted(saves: Path, step: int, model: ModelConfig, layout: Layout, mesh: jax.sharding.Mesh) -> tuple[Any, LoraConfig]:
    """Return a checkpoint's parameters alone, placed on this mesh, with its adapters as they are, and how it has any."""
    adapters = described(saves, step, mesh)[0].lora
    abstract = param.abstract(lora.adapt(transformer.spec(model), adapters), layout, mesh)
    return checkpoint.read(saves, step, {"params": abstract})["params"], adapters


def read_params(saves: Path, step: int, model: ModelConfig, layout: Layout, mesh: jax.sharding.Mesh) -> Any:
    """Return a checkpoint's parameters alone, placed on this mesh, its adapters merged into their weights."""
    params, adapters = read_adapted(saves, step, model, layout, mesh)
    if not adapters.rank:
        return params
    return _merge(*param.split(params, lora.adapt(transformer.spec(model), adapters)))


# Merged weights take the place of those that were read: a second copy of the model need not fit.
@functools.partial(jax.jit, donate_argnums=1)
def _merge(trained: Any, kept: Any) -> Any:
    return lora.merge(param.join(trained, kept))


@contextmanager
def opened(
    folder: Path, step: int | None = None, *, merge: bool = True, extension: Extension = Extension()
) -> Iterator[OpenRun]:
    """Open a run at `step` (None: its newest readable checkpoint) on one device, its mesh current inside the `with`.

    Only the parameters are read, whatever mesh wrote them, and adapters are merged unless `merge` is False. The model is to be
    read as `extension` has it. Raises CheckpointError where the folder is no run, has no such checkpoint, or nothing in it can
    be read, and ConfigError where its model cannot be extended so.
    """
    experiment = load_config(folder)
    extension.applied(experiment.model)  # each says what is wrong before a device is touched
    find_functions(folder, experiment)
    saves = folder / CHECKPOINTS
    steps = saved_steps(saves)
    if not steps:
        raise CheckpointError(f"{folder} has no checkpoint yet: train it further, or lower --checkpoint.every")
    if step is not None and step not in steps:
        raise CheckpointError(f"{folder} has no checkpoint of step {step}: it has {', '.join(map(str, steps))}")
    mesh = make_mesh({}, jax.devices()[:1])

    def load(step: int) -> tuple[Experiment, ModelConfig, Any]:
        experiment, model = described(saves, step, mesh)
        if not merge:
            return experiment, model, read_adapted(saves, step, model, experiment.layout, mesh)[0]
        return experiment, model, read_params(saves, step, model, experiment.layout, mesh)

    out = display.console()
    with jax.set_mesh(mesh):
        found = checkpoint.newest_good(
            saves, load, lambda fault: out.print(f"[yellow]warning:[/] {fault}"), None if step is None else [step]
        )
        step, (experiment, model, params) = found
        tokenizer = load_tokenizer(folder / TOKENIZER) if (folder / TOKENIZER).exists() else None
        _warn_of_shorter_rows(folder, experiment, extension, out)
        yield OpenRun(folder, experiment, extension.applied(model), model, params, step, tokenizer, mesh)


def _warn_of_shorter_rows(folder: Path, experiment: Experiment, extension: Extension, out: Any) -> None:
    """Say so where an extension goes by max_length, and the run never saw so long a row."""
    length, limit = experiment.data.sequence_length, experiment.model.max_length
    elsewhere = imported_from(folder) or experiment.init_from  # what was seen there is not known here
    scaled = extension.rope_scaling.kind != "none" and not extension.rope_scaling.original_length
    grouped = extension.self_extend.on and not extension.self_extend.original_length
    if length < limit and not elsewhere and (scaled or grouped):
        which = "rope-scaling" if scaled else "self-extend"
        out.print(
            f"[yellow]warning:[/] {folder} was trained on rows of {length} tokens, and is extended as if on {limit}, its "
            f"max_length: set --extend.{which}.original-length {length}",
            soft_wrap=True,
        )
