"""`jaxlm eval`: a checkpoint's loss on any text, conversations or preferences."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from rich.progress import track

from jaxlm.data.forms import Form
from jaxlm.data.mixture import Batches
from jaxlm.data.prepare import prepare
from jaxlm.errors import ConfigError, DataError
from jaxlm.eval.language_model import evaluate, target_bytes
from jaxlm.eval.reach import check_reach
from jaxlm.model import lora
from jaxlm.model.extension import Extension
from jaxlm.model.intervention import RouterIntervention, make_edit
from jaxlm.objective import language_model, own, preference
from jaxlm.objective.preference_config import PreferenceConfig
from jaxlm.run import decisions, display
from jaxlm.run.data import say_faults
from jaxlm.run.directory import CHECKPOINTS, imported_from
from jaxlm.run.functions import find_functions
from jaxlm.run.open import OpenRun, opened, read_adapted
from jaxlm.run.own_data import data_of
from jaxlm.run.reference import read_reference, reference_so_far
from jaxlm.train.step import Sums


def evaluate_run(
    folder: Path,
    step: int | None,
    sources: tuple[str, ...],
    split: str,
    batches: int,
    batch_size: int,
    router: RouterIntervention = RouterIntervention(),
    form: Form | None = None,
    reference: Path | None = None,
    extension: Extension = Extension(),
) -> None:
    """Print a checkpoint's loss and its kin as one JSON object, over the run's own data or over `sources`.

    Of text and conversations they are loss, perplexity, bits per byte and accuracy; of preferences and labels the loss of the
    run's `preference`, rewards and log-probabilities, and the divergence from the `reference` (None: the run's own). Of a
    mixture of experts also what its routers did, under the intervention asked for. The model is read as `extension` has it.
    """
    out = display.console()
    decisions.check_folders(router)
    if imported_from(folder) and not sources:
        raise DataError(f"{folder} was imported and has no text of its own: say what to read, --source text:book.txt say")
    with opened(folder, step, extension=extension) as run:
        tokenizer, data = run.needs_tokenizer(), data_of(run.folder, run.experiment, sources, form)
        split = "train" if sources else split
        with display.preparation(out) as progress:
            prepared = prepare(data, report=progress)
        say_faults(prepared, out)
        if prepared.tokenizer.digest != tokenizer.digest:
            raise DataError(
                f"the data of {folder} is tokenised differently now: its sources have changed. Say what to read with --source"
            )
        find_functions(folder, run.experiment, objective=data.form not in ("preferences", "labels"))
        read = Batches(prepared, split, batch_size or run.experiment.batch_size, 0, shuffle=False)
        if warning := check_reach(data.sequence_length, run.model, "rows", run.trained):
            out.print(f"[yellow]warning:[/] {warning}", soft_wrap=True)
        count = min(batches or read.num_batches, read.num_batches)
        router.check_model(run.model)
        sums_of, measured_against = _evaluator(run, router, data.form, reference, out)
        layout = run.experiment.layout
        places = {2: layout.spec("batch", "length"), 1: layout.spec("batch")}
        token_bytes = tokenizer.token_bytes()

        def placed() -> Iterator[tuple[Any, int]]:
            for index in track(range(count), "evaluating", console=out, transient=True, disable=not out.is_terminal):
                batch, digest = read.at(index)
                greatest = max(batch.tokens.max(), batch.targets.max())
                if greatest >= run.model.vocab_size:
                    raise DataError(
                        f"the text has token {greatest}, and the model knows 0 to {run.model.vocab_size - 1}: its tokenizer "
                        "has tokens that the model was not made for; leave out the text that spells them"
                    )
                there = jax.tree.map(lambda x: jax.NamedSharding(run.mesh, places[x.ndim]), batch)
                yield (index, digest, jax.device_put(batch, there)), target_bytes(batch.targets, batch.weights, token_bytes)

        values = evaluate(sums_of, run.params, placed())
    where = {
        "run": str(folder),
        "step": run.step,
        "source": list(sources) or list(data.sources),
        "split": None if sources else split,
    }
    where |= {"extension": extension.label} if extension.changes else {}
    where |= {"reference": measured_against} if measured_against else {}
    print(json.dumps(where | values))


def _evaluator(
    run: OpenRun, router: RouterIntervention, form: Form, reference: Path | None, out: Any
) -> tuple[Callable[[Any, Any], Sums], dict[str, Any] | None]:
    """Return sums_of(params, (number, hash, batch)), which also records or replays routing decisions where asked.

    Also which reference preferences are measured against.
    """
    layout, options = run.experiment.layout, run.experiment.preference
    paired, described, beside = form in ("preferences", "labels"), None, None
    if paired:
        if options.form != form:
            options = PreferenceConfig(loss="kto" if form == "labels" else "sigmoid", beta=options.beta)
        if options.needs_reference:
            described, beside = _reference_of(run, reference, out)
    if reference is not None and beside is None:
        what = (
            f"the loss {options.loss!r} has none"
            if paired
            else (
                f"{form} {'is' if form == 'text' else 'are'} not compared with any. Pairs of responses are: add --source "
                "jsonl:pairs.jsonl --form preferences"
            )
        )
        raise ConfigError(f"--reference {reference} is of no use: {what}")

    @jax.jit
    def program(params: Any, batch: Any, replayed: Any, beside: Any) -> Sums:
        edit, record = make_edit(router, run.model, batch.tokens, replayed=replayed), bool(router.record)
        if paired:
            return preference.loss(
                params, batch, run.model, layout, options, reference_params=beside, edit=edit, record=record
            )[1]
        if run.experiment.objective:
            return own.loss(run.experiment.objective, params, batch, run.model, layout, edit=edit, record=record)[1]
        return language_model.loss(params, batch, run.model, layout, edit=edit, record=record)[1]

    def sums_of(params: Any, numbered: tuple[int, str, Any]) -> Sums:
        index, digest, batch = numbered
        replayed = None
        if router.replay:
            shape = decisions.shape_of(run.model, *batch.tokens.shape)
            replayed = decisions.read_experts(Path(router.replay), index, digest, shape)
        sums = program(params, batch, replayed, beside)
        if router.record:
            decisions.write_decisions(Path(router.record), index, jax.device_get(sums.decisions), digest)
        return sums._replace(decisions=None)

    return sums_of, described


def _reference_of(run: OpenRun, asked: Path | None, out: Any) -> tuple[dict[str, Any] | None, Any]:
    """Return which checkpoint preferences are measured against, and its parameters; None, with a word, where there is none.

    It is the newest of the run that is `asked` for, else what the policy itself was measured against.
    """
    experiment, saves = run.experiment, run.folder / CHECKPOINTS
    if asked is None and experiment.reference_is_base:
        params, _ = read_adapted(saves, run.step, run.trained, experiment.layout, run.mesh)
        return {"run": str(run.folder), "step": run.step, "base": True}, lora.detach(params)
    folder = asked or Path(experiment.preference.reference_run or (experiment.init_from if experiment.paired else ""))
    if folder == Path():
        out.print("no reference (--reference): rewards are beta times the log-probability itself", soft_wrap=True)
        return None, None
    before = {} if asked else reference_so_far(saves, [run.step])
    tokenizer = run.needs_tokenizer().digest
    reference, params = read_reference(folder, before, experiment, run.trained, tokenizer, run.mesh, out)
    if reference.model != run.trained:
        raise ConfigError(f"the reference {folder} is of another model than {run.folder}: it cannot stand beside it")
    return reference.described(), params
