"""What is settled before the first step: inputs, mesh, data, and a directory that all processes see."""

import os
import time
from pathlib import Path
from typing import Any

import jax

from jaxlm import param
from jaxlm.data.chat import read_template
from jaxlm.data.packing import Batch
from jaxlm.data.prepare import DataConfig, Prepared, prepare
from jaxlm.data.sources import check_spelling, parse_source
from jaxlm.data.storage import write_atomically
from jaxlm.data.tokenizer import train_tokenizer
from jaxlm.errors import CheckpointError, ConfigError
from jaxlm.experiment import Experiment
from jaxlm.experiment_mesh import settle_mesh
from jaxlm.hardware import chip
from jaxlm.layout import make_mesh, slices_of
from jaxlm.model import functions
from jaxlm.model.config import ModelConfig
from jaxlm.objective import own
from jaxlm.run import display, processes
from jaxlm.run.agreement import agreed, same, told
from jaxlm.run.data import say_faults
from jaxlm.run.decisions import check_folders
from jaxlm.run.directory import CHECKPOINTS, load_config
from jaxlm.run.setup import spec_of
from jaxlm.train.saved import saved_steps

DAY = 86400.0


def laid_out(experiment: Experiment, devices: list[jax.Device], out: Any) -> jax.sharding.Mesh:
    """Return the run's mesh, and say why where it was left to be chosen."""
    choice = settle_mesh(experiment, len(devices), chip(devices[0].device_kind), slices_of(devices))
    for reason in choice.reasons:
        out.print(f"mesh: {reason}", soft_wrap=True)
    return make_mesh(choice.shape, devices)


def prepared_data(data: DataConfig, out: Any) -> Prepared:
    """Return the prepared data: process 0 makes what is missing, the others find it there or make their own after it."""
    leading, prepared = processes.index() == 0, None
    with agreed("data prepared", timeout=DAY):
        if leading:
            with display.preparation(out) as progress:
                prepared = prepare(data, report=progress)
            say_faults(prepared, out)
    with agreed("data found", timeout=DAY):
        prepared = prepared or prepare(data)
    same("prepared data", prepared.key, "their sources are not the same files")
    return prepared


def check_shared(folder: Path) -> None:
    """Raise ConfigError where a process does not see the run directory of process 0: its part of checkpoints would be lost."""
    if processes.count() == 1:
        return
    sign, leading = folder / "shared", processes.index() == 0
    if leading:
        write_atomically(sign, os.urandom(8).hex())
    written = told("run directory", sign.read_text() if leading else "")
    with agreed("run directory"):
        until = time.monotonic() + 30  # a network's file system may show a new file late
        while not (sign.exists() and sign.read_text() == written):
            if time.monotonic() > until:
                raise ConfigError(
                    f"this process does not see the run directory {folder.absolute()} of process 0: put it on a file system "
                    "that all machines mount under the same path, with --run-dir"
                )
            time.sleep(0.5)


def check_processes(experiment: Experiment) -> None:
    """Raise ConfigError for what works in a run of one process alone."""
    for name in ("record", "replay"):
        if processes.count() > 1 and getattr(experiment.router, name):
            raise ConfigError(
                f"router.{name} works in a run of one process, and this one has {processes.count()}: leave it out, or start one"
            )


def check_trainable(model: ModelConfig) -> None:
    """Raise ConfigError where a model computes what it should, as one from elsewhere may, and yet cannot learn."""
    if model.moe.num_experts and model.moe.renormalize and model.moe.experts_per_token == 1:
        raise ConfigError(
            "moe.renormalize with experts_per_token = 1 makes every gate exactly 1, so that the router learns nothing from "
            "the language-model loss: set --model.moe.no-renormalize, or 2 experts per token"
        )


def check_functions(experiment: Experiment) -> None:
    """Load each function of the user's own, and call it once with abstract arrays; no device is touched.

    Raises ConfigError, with file and line, where that fails or gives something else than it must.
    """
    functions.check(experiment.model)
    if not experiment.objective:
        return
    model, layout, mesh = experiment.model.for_platform("cpu"), experiment.layout, functions.one_device()
    whole = (model.moe.rows_per_group, experiment.data.sequence_length)
    place = jax.NamedSharding(mesh, layout.spec("batch", "length"))
    batch = Batch(*(jax.ShapeDtypeStruct(whole, dtype, sharding=place) for dtype in ("i4", "i4", "f4", "i4", "i4")))
    params = param.abstract(spec_of(experiment, model), layout, mesh)

    def call(params: Any, batch: Batch, key: jax.Array | None) -> Any:
        remat, z_loss = experiment.remat, experiment.z_loss
        return own.loss(experiment.objective, params, batch, model, layout, z_loss=z_loss, remat=remat, key=key)

    for key in (functions.abstract_key(), None):
        functions.trace(experiment.objective, "objective", call, params, batch, key)


def check_inputs(experiment: Experiment, folder: Path) -> None:
    """Raise JaxlmError for what the run in `folder` reads, or writes besides, that is missing or not what it should be.

    That is sources, files of tokenizers and templates, folders of routing decisions, and other runs.
    """
    data = experiment.data
    for spelling in (*data.sources, *data.validation_sources):
        parse_source(spelling, rows=data.form != "text")
    read_template(data.examples.template)
    if data.tokenizer.path:
        train_tokenizer(data.tokenizer, ())
    check_folders(experiment.router)
    check_runs(experiment, folder)


def check_spellings(data: DataConfig) -> None:
    """Raise ConfigError for a source of no known kind: all that can be told where its files are not."""
    for spelling in (*data.sources, *data.validation_sources):
        check_spelling(spelling, rows=data.form != "text")


def check_runs(experiment: Experiment, folder: Path) -> None:
    """Raise CheckpointError where a run that the one in `folder` needs is none, or has no checkpoint.

    What it begins from is needed until it has a checkpoint of its own.
    """
    options = experiment.preference
    needed = {
        "init_from": "" if saved_steps(folder / CHECKPOINTS) else experiment.init_from,
        "preference.reference_run": options.reference_run if experiment.paired and options.needs_reference else "",
    }
    for field, run in needed.items():
        if not run:
            continue
        try:
            load_config(Path(run))
        except CheckpointError as fault:
            raise CheckpointError(f"{field} = {run!r}: {fault}") from fault
        if not saved_steps(Path(run) / CHECKPOINTS):
            raise CheckpointError(f"{field} = {run!r}: it has no checkpoint yet. Train it further, or name another run")
