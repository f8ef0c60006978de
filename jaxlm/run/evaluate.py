"""`jaxlm eval`: a checkpoint's loss on any text."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from rich.progress import track

from jaxlm.data.mixture import Batches
from jaxlm.data.packing import Batch
from jaxlm.data.prepare import prepare
from jaxlm.data.tokenizer import TokenizerConfig, load_tokenizer
from jaxlm.errors import DataError
from jaxlm.eval.language_model import evaluate, target_bytes
from jaxlm.experiment import Experiment
from jaxlm.model.intervention import RouterIntervention, make_edit
from jaxlm.objective import language_model
from jaxlm.run import decisions, display
from jaxlm.run.directory import TOKENIZER, imported_from
from jaxlm.run.open import OpenRun, opened


def evaluate_run(
    folder: Path,
    step: int | None,
    sources: tuple[str, ...],
    split: str,
    batches: int,
    batch_size: int,
    router: RouterIntervention = RouterIntervention(),
) -> None:
    """Print loss, perplexity, bits per byte and accuracy as one JSON object, over the run's own text or over `sources`.

    Of a mixture of experts also what its routers did, under the intervention asked for.
    """
    out = display.console()
    if imported_from(folder) and not sources:
        raise DataError(f"{folder} was imported and has no text of its own: say what to read, --source text:book.txt say")
    with opened(folder, step) as run:
        data, tokenizer = run.experiment.data, run.needs_tokenizer()
        if sources or data.tokenizer.path:
            data = dataclasses.replace(data, tokenizer=own_tokenizer(run.experiment, folder))
        if sources:
            data = dataclasses.replace(data, sources=sources, weights=(), validation_sources=(), validation_fraction=0.0)
            split = "train"
        with display.preparation(out) as progress:
            prepared = prepare(data, report=progress)
        if prepared.tokenizer.digest != tokenizer.digest:
            raise DataError(
                f"the data of {folder} is tokenised differently now: its sources have changed. Say what to read with --source"
            )
        rows = batch_size or run.experiment.batch_size
        read = Batches(prepared, split, rows, 0, shuffle=False)
        count = min(batches or read.num_batches, read.num_batches)
        place = jax.NamedSharding(run.mesh, run.experiment.layout.spec("batch", "length"))
        router.check_model(run.model)
        sums_of = _evaluator(run, router)
        token_bytes = tokenizer.token_bytes()

        def placed():
            for index in track(range(count), "evaluating", console=out, transient=True, disable=not out.is_terminal):
                batch, digest = read.at(index)
                greatest = max(batch.tokens.max(), batch.targets.max())
                if greatest >= run.model.vocab_size:
                    raise DataError(
                        f"the text has token {greatest}, and the model knows 0 to {run.model.vocab_size - 1}: its tokenizer "
                        "has tokens that the model was not made for; leave out the text that spells them"
                    )
                placed = index, digest, jax.device_put(batch, place)
                yield placed, target_bytes(batch.targets, batch.weights, token_bytes)

        values = evaluate(sums_of, run.params, placed())
    where = {
        "run": str(folder),
        "step": run.step,
        "source": list(sources) or list(data.sources),
        "split": None if sources else split,
    }
    print(json.dumps(where | values))


def _evaluator(run: OpenRun, router: RouterIntervention) -> Callable[[Any, Any], language_model.Sums]:
    """Return sums_of(params, (number, hash, batch)), which also records or replays routing decisions where asked."""

    @jax.jit
    def program(params: Any, batch: Batch, replayed: Any) -> language_model.Sums:
        edit = make_edit(router, run.model, batch.tokens, replayed=replayed)
        layout, record = run.experiment.layout, bool(router.record)
        return language_model.loss(params, batch, run.model, layout, edit=edit, record=record)[1]

    def sums_of(params: Any, numbered: tuple[int, str, Batch]) -> language_model.Sums:
        index, digest, batch = numbered
        replayed = None
        if router.replay:
            shape = decisions.shape_of(run.model, *batch.tokens.shape)
            replayed = decisions.read_experts(Path(router.replay), index, digest, shape)
        sums = program(params, batch, replayed)
        if router.record:
            decisions.write_decisions(Path(router.record), index, jax.device_get(sums.decisions), digest)
        return sums._replace(decisions=None)

    return sums_of


def own_tokenizer(experiment: Experiment, folder: Path) -> TokenizerConfig:
    """Return a configuration that loads the tokenizer which the run was trained with."""
    config, path = experiment.data.tokenizer, str((folder / TOKENIZER).absolute())
    if config.kind == "byte":
        return config
    return dataclasses.replace(config, path=path, vocab_size=load_tokenizer(path).vocab_size)
