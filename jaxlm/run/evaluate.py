"""`jaxlm eval`: a checkpoint's loss on any text."""

import dataclasses
import json
from pathlib import Path

import jax
from rich.progress import track

from jaxlm.data.mixture import Batches
from jaxlm.data.prepare import prepare
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.errors import DataError
from jaxlm.eval.language_model import evaluate, target_bytes
from jaxlm.experiment import Experiment
from jaxlm.objective import language_model
from jaxlm.run import display
from jaxlm.run.directory import TOKENIZER
from jaxlm.run.open import opened


def evaluate_run(folder: Path, step: int | None, sources: tuple[str, ...], split: str, batches: int, batch_size: int) -> None:
    """Print loss, perplexity, bits per byte and accuracy as one JSON object, over the run's own text or over `sources`."""
    out = display.console()
    with opened(folder, step) as run:
        data = run.experiment.data
        if sources:
            tokenizer = own_tokenizer(run.experiment, folder)
            data = dataclasses.replace(
                data, sources=sources, weights=(), validation_sources=(), validation_fraction=0.0, tokenizer=tokenizer
            )
            split = "train"
        with display.preparation(out) as progress:
            prepared = prepare(data, report=progress)
        if prepared.tokenizer.digest != run.tokenizer.digest:
            raise DataError(
                f"the data of {folder} is tokenised differently now: its sources have changed. Say what to read with --source"
            )
        rows = batch_size or run.experiment.batch_size
        read = Batches(prepared, split, rows, 0, shuffle=False)
        count = min(batches or read.num_batches, read.num_batches)
        place = jax.NamedSharding(run.mesh, run.experiment.layout.spec("batch", None))
        sums_of = jax.jit(lambda params, batch: language_model.loss(params, batch, run.model, run.experiment.layout)[1])
        token_bytes = run.tokenizer.token_bytes()

        def placed():
            for index in track(range(count), "evaluating", console=out, transient=True, disable=not out.is_terminal):
                batch, _ = read.at(index)
                yield jax.device_put(batch, place), target_bytes(batch.targets, batch.weights, token_bytes)

        values = evaluate(sums_of, run.params, placed())
    where = {
        "run": str(folder),
        "step": run.step,
        "source": list(sources) or list(data.sources),
        "split": None if sources else split,
    }
    print(json.dumps(where | values))


def own_tokenizer(experiment: Experiment, folder: Path) -> TokenizerConfig:
    """Return a configuration that loads the tokenizer which the run was trained with."""
    config = experiment.data.tokenizer
    return config if config.kind == "byte" else dataclasses.replace(config, path=str((folder / TOKENIZER).absolute()))
