"""`jaxlm eval --probe`: how far a model reads and finds again, as tables, pictures and one JSON object."""

import functools
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from jaxlm.config import digest, to_dict
from jaxlm.errors import ConfigError
from jaxlm.eval.answers import Answer, row_width, solve
from jaxlm.eval.by_position import by_position, memory, short_context, strided_losses, token_losses
from jaxlm.eval.probe_config import Probes, short_lengths, window_of
from jaxlm.eval.retrieval import Task
from jaxlm.model.config import ModelConfig
from jaxlm.model.extension import Extension
from jaxlm.model.flops import forward_flops_per_token
from jaxlm.run import display
from jaxlm.run.directory import load_config
from jaxlm.run.open import OpenRun, opened
from jaxlm.run.probe_material import Material, gather
from jaxlm.run.probe_report import as_json, check_short, draw, made_folder, show, write

BINS = 16  # stretches of a row whose losses are averaged
TOKENS_AT_ONCE = 8192  # of tasks, where no batch size is asked for
TOLD = ("passkey", "needle", "tasks")  # whose answers are text

Report = Callable[[int, int], None]
"""Told of how many tokens were read, in rows of which length."""


def probe_run(
    folder: Path, step: int | None, probes: Probes, extension: Extension = Extension(), sources: tuple[str, ...] = (),
    split: str = "validation", batch_size: int = 0,
) -> None:  # fmt: skip
    """Measure what `probes` asks for; print tables for people, and one JSON object on standard output.

    The object is also in probes.json, beside pictures of what was measured: {"run", "step", "extension" (its label), "settings"
    (all of it), "trained_length", "longest" (tokens that the model reads), "probes" (the options), "source" (what was asked
    for: a list, or the split of the run's own), "sources_read" (those of which the rows are: one is read to its end before
    the next, whatever their weights in training), "device", "batch_size" (0: text a row at a time, tasks as many as 8,192
    tokens hold), "seconds"}, and for each probe:

    - "positions": by length, {"length", "rows", "loss" (nats a token), "perplexity", "bits_per_byte", "tokens", "bins": the
      same for stretches "from" a place in the row "to" another, "seconds" (a row, after the first batch), "memory":
      {"arguments", "temporary", "outputs", "peak"} (bytes, one batch, as compiled)}, and with a stride "strided": {"stride",
      "rows", "loss", ...}.
    - "short": {"exact_to" (up to this length nothing may change), "lengths": [{"length", "fits" (that length), "greatest",
      "mean" (loss as extended less loss as trained, nats: where it is greatest by size, and the mean)}]}.
    - "passkey", "needle", "copy", "tasks": [{"length", "depth", "tasks" (how many), "accuracy", "token_accuracy", "log_prob"
      (mean of an answer, nats)}]; of tasks from a file depths are rounded to tenths, and lengths up to a power of two.
    - "wrong": of each of these but "copy", [{"length", "depth", "expected", "given" (texts), "tokens" (ids of that)}]: the
      answers that were not right; each token of what was given is the likeliest after the right ones before it.

    A number that is none, or infinite, is null. Raises ConfigError or DataError for what cannot be measured, before a device is
    touched; JaxlmError, after all was written, where "short" finds a change that must not be.
    """
    if batch_size < 0:
        raise ConfigError(f"--batch-size {batch_size} must be 1 or more, or 0 for what probes choose")
    out, begun = display.console(), time.monotonic()
    material = gather(folder, load_config(folder), probes, extension, sources, split)
    made_folder(Path(probes.out) if probes.out else folder / "probes")
    for note in material.notes:
        out.print(note, soft_wrap=True)
    with opened(folder, step, extension=extension) as run:
        found = {
            "run": str(folder), "step": run.step, "extension": extension.label, "settings": to_dict(extension),
            "trained_length": run.trained.max_length, "longest": run.model.max_length, "probes": to_dict(probes),
            "source": list(sources) or split, "sources_read": list(material.sources),
            "device": jax.devices()[0].device_kind, "batch_size": batch_size,
        }  # fmt: skip
        with _progress(out, run.model, _work(material, probes, extension, run.trained, batch_size)) as report:
            found |= _measured(run, material, probes, extension, batch_size, report)
    found["seconds"] = round(time.monotonic() - begun, 1)
    to = Path(probes.out) if probes.out else folder / "probes" / _name(found)
    made_folder(to)
    write(found, to)
    draw(found, to)
    show(found, to, out)
    print(as_json(found))
    check_short(found)


def _name(found: dict[str, Any]) -> str:
    """Return a name that tells an extension, and is another one for whatever else is measured."""
    asked = {name: value for name, value in found["probes"].items() if name != "out"}
    what = digest([asked, *(found[name] for name in ("settings", "step", "source", "batch_size"))])
    return re.sub(r"[^a-z0-9.]+", "-", f"{found['extension']} {what[:8]}")


def _measured(
    run: OpenRun, material: Material, probes: Probes, extension: Extension, batch_size: int, report: Report
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "positions" in probes.probe:
        found["positions"] = [
            _positions(run, material, length, probes.stride, batch_size or 1, report) for length in material.lengths
        ]
    if "short" in probes.probe:
        found["short"] = _short(run, material, extension, batch_size or 1, report)
    for kind, tasks in material.tasks.items():
        answered = _answered(run, tasks, batch_size, report)
        found[kind] = _means(answered)
        if kind in TOLD:
            found.setdefault("wrong", {})[kind] = _wrong(run, answered)
    return found


def _positions(run: OpenRun, material: Material, length: int, stride: int, batch_size: int, report: Report) -> dict[str, Any]:
    """Return losses by position of rows of one length, and what reading them took."""
    rows, num_bytes, ends = material.rows[:, : length + 1], material.num_bytes[:, :length], []
    batch_size = min(batch_size, len(rows))

    def tell(tokens: int) -> None:
        ends.append(time.perf_counter())
        report(tokens, length)

    read = functools.partial(token_losses, run.params, rows, run.model, run.experiment.layout, batch_size, tell)
    losses = read()
    if len(ends) < 2:
        read()  # the first batch, which is compiled, has no time of its own
    edges = np.unique(np.linspace(0, length, BINS + 1).astype(int)).tolist()
    taken = memory(run.params, rows[:batch_size], run.model, run.experiment.layout)
    values = {"length": length, "rows": len(rows)} | _whole(losses, num_bytes)
    values |= {"bins": by_position(losses, edges, num_bytes), "seconds": float(np.diff(ends).min()) / batch_size}
    values["memory"] = taken._asdict() | {"peak": taken.peak}
    if stride:
        rows = material.rows[:, : material.lengths[-1] + 1]
        losses = strided_losses(
            run.params, rows, run.model, run.experiment.layout, length, stride, batch_size,
            functools.partial(report, length=length),
        )  # fmt: skip
        num_bytes = material.num_bytes[:, : losses.shape[1]]
        values["strided"] = {"stride": stride, "rows": len(rows)} | _whole(losses, num_bytes)
    return values


def _whole(losses: np.ndarray, num_bytes: np.ndarray) -> dict[str, float]:
    (means,) = by_position(losses, (0, losses.shape[1]), num_bytes)
    return {name: value for name, value in means.items() if name not in ("from", "to")}


def _short(run: OpenRun, material: Material, extension: Extension, batch_size: int, report: Report) -> dict[str, Any]:
    """Return how much losses change in rows that the model reads without any extension."""
    exact_to, found = window_of(extension, run.trained), []
    for length in short_lengths(material.lengths, extension, run.trained):
        rows, tell = material.rows[:, : length + 1], functools.partial(report, length=length)
        batch_size = min(batch_size, len(rows))
        change = short_context(run.params, rows, run.trained, run.model, run.experiment.layout, batch_size, tell)
        greatest = float(change.flat[np.abs(change).argmax()])
        found.append({"length": length, "fits": length <= exact_to, "greatest": greatest, "mean": float(change.mean())})
    return {"exact_to": exact_to, "lengths": found}


def _answered(run: OpenRun, tasks: Sequence[Task], batch_size: int, report: Report) -> list[tuple[Task, Answer]]:
    """Return what the model made of tasks, the shortest first."""
    answered: list[tuple[Task, Answer]] = []
    for length in sorted({_cell(task)[0] for task in tasks}):
        part = [task for task in tasks if _cell(task)[0] == length]
        size, tell = batch_size or max(1, TOKENS_AT_ONCE // length), functools.partial(report, length=length)
        answers = solve(run.params, part, run.model, run.experiment.layout, size, run.tokenizer, tell)
        answered += zip(part, answers, strict=True)
    return answered


def _means(answered: Sequence[tuple[Task, Answer]]) -> list[dict[str, Any]]:
    """Return means by length and depth."""
    cells: dict[tuple[int, float], list[Answer]] = {}
    for task, answer in answered:
        cells.setdefault(_cell(task), []).append(answer)
    means = ("correct", "token_accuracy", "log_prob")
    return [
        {"length": length, "depth": depth, "tasks": len(answers)}
        | {name.replace("correct", "accuracy"): float(np.mean([getattr(each, name) for each in answers])) for name in means}
        for (length, depth), answers in sorted(cells.items())
    ]


def _wrong(run: OpenRun, answered: Sequence[tuple[Task, Answer]]) -> list[dict[str, Any]]:
    """Return which answers were not right, and what the model gave instead."""
    tokenizer = run.needs_tokenizer()
    return [
        {"length": task.length, "depth": task.depth, "expected": tokenizer.decode(task.answer), "given": answer.text,
         "tokens": list(answer.tokens)}
        for task, answer in answered
        if not answer.correct
    ]  # fmt: skip


def _cell(task: Task) -> tuple[int, float]:
    if task.kind != "task":
        return task.length, task.depth
    return 1 << (task.length - 1).bit_length(), round(task.depth, 1)


def _work(
    material: Material, probes: Probes, extension: Extension, trained: ModelConfig, batch_size: int
) -> list[tuple[int, int]]:
    """Return how many tokens will be read in rows of which length."""
    rows, work = 0 if material.rows is None else len(material.rows), []
    again = rows <= (batch_size or 1)  # a single batch is read twice, for its time
    for length in material.lengths if "positions" in probes.probe else ():
        windows = -(-(material.lengths[-1] - length) // probes.stride) + 1 if probes.stride else 0
        work.append((rows * (1 + again + windows) * length, length))
    if "short" in probes.probe:
        work += [(2 * rows * length, length) for length in short_lengths(material.lengths, extension, trained)]
    return work + [(row_width(task), _cell(task)[0]) for tasks in material.tasks.values() for task in tasks]


@contextmanager
def _progress(out: Console, model: ModelConfig, work: Sequence[tuple[int, int]]) -> Iterator[Report]:
    """Yield a report that keeps a bar with the time left, which counts operations: a token of a long row takes more."""
    cost = functools.cache(functools.partial(forward_flops_per_token, model))
    with display.measuring(out, sum(tokens * cost(length) for tokens, length in work)) as advance:
        yield lambda tokens, length: advance(tokens * cost(length), f"{length:,} tokens a row")
