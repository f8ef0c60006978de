"""What is settled before the first step: inputs, mesh, data, and a directory that all processes see."""

import os
import time
from pathlib import Path
from typing import Any

import jax

from jaxlm.data.chat import read_template
from jaxlm.data.prepare import DataConfig, Prepared, prepare
from jaxlm.data.sources import parse_source
from jaxlm.data.storage import write_atomically
from jaxlm.data.tokenizer import train_tokenizer
from jaxlm.errors import ConfigError
from jaxlm.experiment import Experiment, settle_mesh
from jaxlm.hardware import chip
from jaxlm.layout import make_mesh, slices_of
from jaxlm.model.config import ModelConfig
from jaxlm.run import display, processes
from jaxlm.run.agreement import agreed, same, told
from jaxlm.run.data import say_faults

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


def check_inputs(data: DataConfig) -> None:
    """Raise ConfigError or DataError for a source or tokenizer file that is missing or not what it should be."""
    for spelling in (*data.sources, *data.validation_sources):
        parse_source(spelling, rows=data.form != "text")
    read_template(data.examples.template)
    if data.tokenizer.path:
        train_tokenizer(data.tokenizer, ())
