"""`jaxlm import`: a pretrained model of others made a run."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from jaxlm import param
from jaxlm.config import to_dict
from jaxlm.data.prepare import DataConfig
from jaxlm.data.storage import sync_folder
from jaxlm.data.tokenizer import Tokenizer, TokenizerConfig
from jaxlm.errors import CheckpointError
from jaxlm.experiment import Experiment, SampleConfig
from jaxlm.interop.place import load_params
from jaxlm.interop.source import Pretrained, open_pretrained
from jaxlm.layout import make_mesh
from jaxlm.model import transformer
from jaxlm.model.config import ModelConfig
from jaxlm.run import directory, display
from jaxlm.train.checkpoint_writer import CheckpointWriter
from jaxlm.train.optimizer import OptimizerConfig

_ROW = 2048  # tokens of a row when the run's own text is read, unless the model reads less


def import_model(source: str, folder: Path, *, tokenizer: bool = True) -> None:
    """Make the run `folder` of a pretrained model (see `open_pretrained`), its parameters the checkpoint of step 0.

    All or nothing: `folder` appears when everything is in it. Raises JaxlmError where something of the model is not supported
    or not whole, and where `folder` is taken.
    """
    out = display.console()
    with new_folder(folder, "--to") as making:
        _refuse_run(Path(source))
        found = open_pretrained(source, tokenizer=tokenizer)
        _check_memory(found.model)
        experiment = _experiment(found, folder)
        mesh = make_mesh({}, jax.devices()[:1])
        origin = _origin(found)
        with jax.set_mesh(mesh), display.transfer(out, f"reading {found.path.name}") as report:
            params = load_params(
                found.table, found.model, found.tensors, experiment.layout, mesh, report,
                lambda text: out.print(f"[yellow]warning:[/] {text}", soft_wrap=True),
            )  # fmt: skip
        _write(making, experiment, params, found.tokenizer, origin)
    count = param.count(transformer.spec(found.model))
    ids = found.tokenizer
    if ids is not None and ids.vocab_size > found.model.vocab_size:
        out.print(f"[yellow]warning:[/] the tokenizer has {ids.vocab_size} tokens, the model knows {found.model.vocab_size}")
    known = "no tokenizer" if ids is None else f"{type(ids).__name__} of {ids.vocab_size} tokens"
    out.print(
        f"[bold]{folder}[/]: {found.family}, {count / 1e6:,.1f}M parameters from {_dtypes(found.dtypes)}, {known}. Next: "
        f"{_next_command(folder, ids)}",
        soft_wrap=True,
    )


def _refuse_run(source: Path) -> None:
    if (source / directory.CHECKPOINTS).is_dir() and (source / directory.CONFIG).is_file():
        raise CheckpointError(f"{source} is a run already: nothing needs to be imported, begin with `jaxlm chat {source}` say")


def _experiment(found: Pretrained, folder: Path) -> Experiment:
    """Return the experiment that a run of this model is: what to evaluate, continue and begin from it with."""
    tokenizer = TokenizerConfig(kind="none", vocab_size=1)
    if found.tokenizer is not None:
        path = str((folder / directory.TOKENIZER).absolute())
        tokenizer = TokenizerConfig(path=path, vocab_size=min(found.tokenizer.vocab_size, found.model.vocab_size))
    return Experiment(
        name=folder.absolute().name,
        steps=1,
        batch_size=1,
        model=found.model,
        data=DataConfig(sequence_length=min(found.model.max_length, _ROW), tokenizer=tokenizer),
        optimizer=OptimizerConfig(warmup_steps=0),
        sample=SampleConfig(tokens=0),
    )


def _origin(found: Pretrained) -> dict[str, Any]:
    """Return what the run remembers of where it comes from."""
    return {
        "source": str(found.path.absolute()),
        "format": found.format,
        "family": found.family,
        "dtypes": dict(found.dtypes),
        "sha256": found.sha256,
    }


def _write(
    making: Path, experiment: Experiment, params: Any, tokenizer: Tokenizer | None, origin: Mapping[str, Any]
) -> None:  # fmt: skip
    directory.settle_config(making, experiment, allow_change=False)
    if tokenizer is not None:
        tokenizer.save(making / directory.TOKENIZER)
    devices = jax.devices()[:1]
    directory.record_start(making, experiment, {"devices": f"1 x {devices[0].device_kind}", "imported": dict(origin)})
    description = {
        "jaxlm": directory.versions()["jaxlm"],
        "experiment": to_dict(experiment),
        "tokenizer": tokenizer.digest if tokenizer is not None else None,
        "imported": dict(origin),
        "versions": directory.versions(),
    }
    writer = CheckpointWriter(making / directory.CHECKPOINTS, keep=1)
    try:
        writer.save_params(params, 0, description)
    finally:
        writer.close()


@contextmanager
def new_folder(folder: Path, option: str) -> Iterator[Path]:
    """Yield an empty folder beside `folder` that takes its name if all goes well, and is gone otherwise.

    Raises CheckpointError where `folder` holds something, or cannot be written; `option` is how it was given.
    """
    folder = folder.absolute()
    with _writable(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise CheckpointError(f"{folder} is there already: choose another {option}, or remove it first")
        folder.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".unfinished", dir=folder.parent))
        making.chmod(0o755)  # as any folder; temporary ones are closed to others
    try:
        yield making
        with _writable(folder):
            making.rename(folder)
            sync_folder(folder.parent)
    finally:
        shutil.rmtree(making, ignore_errors=True)


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as fault:
        raise CheckpointError(f"{folder} cannot be written: {fault.strerror or fault}") from fault


def _check_memory(model: ModelConfig) -> None:
    """Raise CheckpointError where this machine could never hold the parameters, rather than be killed half-way."""
    needed = 4 * param.count(transformer.spec(model))
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise CheckpointError(
            f"the model takes {needed / 1e9:,.1f} GB in float32 and this machine has {there / 1e9:,.1f} GB of memory: import "
            "it on a larger one"
        )


def _dtypes(dtypes: Mapping[str, int]) -> str:
    return ", ".join(dtypes)


def _next_command(folder: Path, tokenizer: Tokenizer | None) -> str:
    if tokenizer is None:
        return f"jaxlm score {folder} --tokens ROWS.npy"
    return f"jaxlm chat {folder}" if tokenizer.chat_template else f'jaxlm sample {folder} --prompt "Once upon a time"'
