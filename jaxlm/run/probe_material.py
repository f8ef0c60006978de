"""What probes of a long context read: rows of text and tasks, made and checked before a device is touched."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxlm.data.long_rows import documents_of, long_rows
from jaxlm.data.tokenizer import Tokenizer, load_tokenizer
from jaxlm.errors import ConfigError, DataError
from jaxlm.eval.probe_config import RETRIEVAL, TEXT, Probes, window_of
from jaxlm.eval.reach import check_reach
from jaxlm.eval.retrieval import Task, copy_tasks, needle_tasks, passkey_tasks, read_tasks
from jaxlm.experiment import Experiment
from jaxlm.model.extension import Extension
from jaxlm.run.directory import TOKENIZER, imported_from


class Material(NamedTuple):
    """What is to be read."""

    lengths: tuple[int, ...]
    """Ascending, in tokens."""
    rows: np.ndarray | None
    """Of text, [R, longest + 1]; None where no probe reads any."""
    num_bytes: np.ndarray | None
    """Of text that each target stands for, [R, longest]."""
    tasks: dict[str, list[Task]]
    """By kind of probe."""
    notes: tuple[str, ...]
    """What to tell about it."""


def gather(
    folder: Path, experiment: Experiment, probes: Probes, extension: Extension, sources: tuple[str, ...], split: str
) -> Material:
    """Return what to read of a run's own text, or of `sources`; ConfigError or DataError for what cannot be measured."""
    path, model = folder / TOKENIZER, extension.applied(experiment.model)
    if "short" in probes.probe and not extension.changes:
        raise ConfigError("--probe short compares an extended model with the plain one: give --extend options too")
    if not path.exists():
        raise DataError(f"{folder} has no tokenizer, and probes are made of text: import its model from a folder that has one")
    tokenizer, lengths = load_tokenizer(path), probes.lengths_of(experiment.model, model)
    warning = check_reach(lengths[-1], model)
    tasks = _tasks(tokenizer, lengths, probes)
    longest = max((task.length for of_kind in tasks.values() for task in of_kind), default=0)
    warning = check_reach(max(longest, lengths[-1]), model) or warning
    notes = [f"[yellow]warning:[/] {warning}"] if warning else []
    if not set(probes.probe) & set(TEXT):
        return Material(lengths, None, None, tasks, tuple(notes))
    longest = max(lengths[-1], window_of(extension, experiment.model) if "short" in probes.probe else 0)
    rows = _text(folder, experiment, probes, sources, split, tokenizer, longest)
    if rows.max() >= model.vocab_size:
        raise DataError(
            f"the text has token {rows.max()}, and the model knows 0 to {model.vocab_size - 1}: leave out what spells it"
        )
    fewer = f" (there is no text for {probes.rows})" if len(rows) < probes.rows else ""
    how = "the beginning of a document each" if probes.whole_documents else "documents laid end to end"
    notes.append(f"text: {len(rows)} rows{fewer} of {longest:,} tokens, {how}")
    return Material(lengths, rows, tokenizer.token_bytes()[rows[:, 1:]], tasks, tuple(notes))


def _text(
    folder: Path, experiment: Experiment, probes: Probes, sources: tuple[str, ...], split: str, tokenizer: Tokenizer,
    longest: int,
) -> np.ndarray:  # fmt: skip
    """Return rows of `longest` tokens."""
    data = experiment.data
    if sources:
        data = dataclasses.replace(
            data, sources=sources, weights=(), validation_sources=(), validation_fraction=0.0, form="text"
        )  # fmt: skip
        split = "train"
    elif imported_from(folder):
        raise DataError(f"{folder} was imported and has no text of its own: say what to read, --source text:book.txt say")
    elif data.form != "text":
        raise DataError(
            f"{folder} was trained on {data.form}, and this reads plain text: name some, --source text:book.txt say"
        )
    return long_rows(documents_of(data, split), tokenizer, probes.rows, longest, whole_documents=probes.whole_documents)


def _tasks(tokenizer: Tokenizer, lengths: Sequence[int], probes: Probes) -> dict[str, list[Task]]:
    made: dict[str, Callable[[], list[Task]]] = {
        "passkey": lambda: passkey_tasks(tokenizer, lengths, probes.depths, probes.trials, probes.seed, chat=probes.chat),
        "needle": lambda: needle_tasks(tokenizer, lengths, probes.depths, probes.trials, probes.seed, chat=probes.chat),
        "copy": lambda: copy_tasks(tokenizer, lengths, probes.trials, probes.seed, probes.depths),
        "tasks": lambda: read_tasks(Path(probes.tasks), tokenizer),
    }
    return {kind: made[kind]() for kind in probes.probe if kind in RETRIEVAL}
