"""What probes of a long context read: rows of text and tasks, made and checked before a device is touched."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxlm.data.long_rows import documents_of, long_rows
from jaxlm.data.tokenizer import Tokenizer, load_tokenizer
from jaxlm.errors import ConfigError, DataError
from jaxlm.eval.probe_config import RETRIEVAL, TEXT, Probes, short_lengths, window_of
from jaxlm.eval.reach import check_reach
from jaxlm.eval.retrieval import Task, TooShort, copy_tasks, needle_tasks, passkey_tasks, read_tasks
from jaxlm.experiment import Experiment
from jaxlm.model.extension import Extension
from jaxlm.run.directory import TOKENIZER, imported_from
from jaxlm.run.own_data import data_of


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
    sources: tuple[str, ...]
    """Those that the rows are of."""
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
    if probes.stride > lengths[0]:
        raise ConfigError(f"--stride {probes.stride} is more than a window of {lengths[0]} tokens, the shortest of --lengths")
    if "short" in probes.probe and not short_lengths(lengths, extension, experiment.model):
        raise ConfigError(
            "--probe short compares rows that the model reads without the extension: give one of --lengths up to "
            f"{experiment.model.max_length}"
        )
    check_reach(lengths[-1], model)  # refuses, before tasks are made, what cannot be read at all
    tasks, notes = _tasks(tokenizer, lengths, probes)
    longest = max([lengths[-1], *(task.length for of_kind in tasks.values() for task in of_kind)])
    if warning := check_reach(longest, model, trained=experiment.model):
        notes.insert(0, f"[yellow]warning:[/] {warning}")
    if not set(probes.probe) & set(TEXT):
        return Material(lengths, None, None, tasks, (), tuple(notes))
    longest = max(lengths[-1], window_of(extension, experiment.model) if "short" in probes.probe else 0)
    rows, read = _text(folder, experiment, probes, sources, split, tokenizer, longest)
    if rows.max() >= model.vocab_size:
        raise DataError(
            f"the text has token {rows.max()}, and the model knows 0 to {model.vocab_size - 1}: leave out what spells it"
        )
    fewer = f" (there is no text for {probes.rows})" if len(rows) < probes.rows else ""
    how = "the beginning of a document each" if probes.whole_documents else "documents laid end to end"
    notes.append(f"text: {len(rows)} rows{fewer} of {longest:,} tokens, {how}")
    return Material(lengths, rows, tokenizer.token_bytes()[rows[:, 1:]], tasks, read, tuple(notes))


def _text(
    folder: Path, experiment: Experiment, probes: Probes, sources: tuple[str, ...], split: str, tokenizer: Tokenizer,
    longest: int,
) -> tuple[np.ndarray, tuple[str, ...]]:  # fmt: skip
    """Return rows of `longest` tokens, and the sources that they are of."""
    data = experiment.data
    if sources:
        data = data_of(folder, experiment, sources, "text")
        split = "train"
    elif imported_from(folder):
        raise DataError(f"{folder} was imported and has no text of its own: say what to read, --source text:book.txt say")
    elif data.form != "text":
        raise DataError(
            f"{folder} was trained on {data.form}, and this reads plain text: name some, --source text:book.txt say"
        )
    read: list[str] = []
    documents = documents_of(data, split, read.append)
    rows = long_rows(documents, tokenizer, probes.rows, longest, whole_documents=probes.whole_documents)
    return rows, tuple(dict.fromkeys(read))


def _tasks(tokenizer: Tokenizer, lengths: Sequence[int], probes: Probes) -> tuple[dict[str, list[Task]], list[str]]:
    """Return the tasks of each kind, and notes of the lengths without room for one, where none were asked for."""
    made: dict[str, Callable[[int], list[Task]]] = {
        "passkey": lambda n: passkey_tasks(tokenizer, [n], probes.depths, probes.trials, probes.seed, chat=probes.chat),
        "needle": lambda n: needle_tasks(tokenizer, [n], probes.depths, probes.trials, probes.seed, chat=probes.chat),
        "copy": lambda n: copy_tasks(tokenizer, [n], probes.trials, probes.seed, probes.depths),
    }
    tasks: dict[str, list[Task]] = {}
    notes = []
    for kind in (kind for kind in probes.probe if kind in RETRIEVAL):
        if kind == "tasks":
            tasks[kind] = read_tasks(Path(probes.tasks), tokenizer)
            continue
        tasks[kind] = []
        for length in lengths:
            try:
                tasks[kind] += made[kind](length)
            except TooShort as fault:
                if probes.lengths or length == lengths[-1]:
                    raise
                notes.append(f"{kind}: rows of {length:,} tokens are left out, for {fault}")
    return tasks, notes
