"""The checkpoints of one run as they are read: which there are, their parameters, the rows that all of them read."""

import dataclasses
import functools
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm.data.mixture import Batches
from jaxlm.data.packing import Batch
from jaxlm.data.prepare import Prepared, Report, prepare
from jaxlm.data.tokenizer import Tokenizer, load_tokenizer
from jaxlm.errors import CheckpointError, DataError
from jaxlm.eval.reach import check_reach
from jaxlm.experiment import Experiment
from jaxlm.layout import Layout, make_mesh
from jaxlm.model.config import ModelConfig
from jaxlm.run.directory import CHECKPOINTS, TOKENIZER, imported_from, load_config
from jaxlm.run.open import described, read_params
from jaxlm.run.own_data import data_of
from jaxlm.train.saved import saved_steps

BYTES_OF_PARAMETERS = 1 << 30  # of checkpoints that were read, kept for the next view
ROWS = 16  # that are read where nothing is said of it
LEAST_CHECKPOINTS = 3  # kept whatever they take: this one, the one before and the last


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows that every checkpoint of a series reads."""

    batch: Batch
    """Numpy arrays [R, L]."""
    sources: tuple[str, ...]
    """Where each row is from."""
    digest: str
    """Changes when they do."""


@dataclasses.dataclass
class Reads:
    """What a probe asked for: its result holds as long as all of that is the same."""

    checkpoints: set[int] = dataclasses.field(default_factory=set)
    """Steps of other checkpoints, beside its own."""
    relations: dict[str, int | None] = dataclasses.field(default_factory=dict)
    """Which step it got for "previous 30", the one before 30: see `related`."""
    steps: tuple[int, ...] = ()
    """All there were, where it asked."""
    rows: bool = False
    training: bool = False
    experiment: bool = False


@dataclasses.dataclass
class Series:
    """The checkpoints of one run, in order, and what was read of them."""

    folder: Path
    steps: tuple[int, ...]
    layout: Layout
    mesh: jax.sharding.Mesh
    tokenizer: Tokenizer | None
    experiment: Experiment
    model_of: Callable[[int], ModelConfig]
    """That of a step, settled for this platform."""
    read: Callable[[int], Any]
    """The parameters of a step, placed; CheckpointError where they cannot be read."""
    read_rows: Callable[[], Rows]
    """What every checkpoint reads; DataError where there is none."""
    read_training: Callable[[int], Batch | None]
    """The first rows that were trained on; None where none are known."""
    training_digest: Callable[[], str] = lambda: ""
    """Changes when those do."""
    asked: dict[str, Any] = dataclasses.field(default_factory=lambda: {"rows": ROWS, "sources": []})
    """How many rows of what was asked for."""
    reads: Reads = dataclasses.field(default_factory=Reads)
    """Of the probe at work."""
    unread: dict[int, CheckpointError] = dataclasses.field(default_factory=dict)
    """Checkpoints that could not be read, and why."""
    untold: list[DataError] = dataclasses.field(default_factory=list)
    """Why there is no text to read, where it was asked for."""

    def __post_init__(self):
        """Begin with nothing in memory."""
        self._params: OrderedDict[int, Any] = OrderedDict()

    @functools.cached_property
    def rows(self) -> Rows:
        """The rows, read once."""
        with self._reading_text():
            return self.read_rows()

    def training_rows(self, count: int) -> Batch | None:
        """Return the first rows that were trained on; None where none are known."""
        with self._reading_text():
            return self.read_training(count)

    @contextmanager
    def _reading_text(self) -> Iterator[None]:
        try:
            yield
        except DataError as fault:
            self.untold.append(fault)
            raise

    def params(self, step: int) -> Any:
        """Return the parameters of a step; those used last stay in memory."""
        if step not in self._params:
            try:
                found = self.read(step)
            except CheckpointError as fault:
                self.unread[step] = fault
                raise
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(found))
            while len(self._params) >= max(LEAST_CHECKPOINTS, BYTES_OF_PARAMETERS // size):
                self._params.popitem(last=False)
            self._params[step] = found
        self._params.move_to_end(step)
        return self._params[step]

    def settled(self, step: int) -> dict[str, str]:
        """Return what a step's results also depend on: the platform, its arithmetic, the version of JAX, the tokenizer."""
        tokenizer = "" if self.tokenizer is None else self.tokenizer.digest
        dtype, platform = self.model_of(step).compute_dtype, self.mesh.devices.flat[0].platform
        return {"compute_dtype": dtype, "platform": platform, "jax": jax.__version__, "tokenizer": tokenizer}


def related(name: str, step: int, steps: Sequence[int]) -> int | None:
    """Return the step that is the "previous", "first" or "last" of a series, seen from `step`; None where there is none."""
    if name == "previous":
        return max((other for other in steps if other < step), default=None)
    return {"first": min, "last": max}[name](steps)


@contextmanager
def opened_series(
    folder: Path, *, rows: int = ROWS, sources: Sequence[str] = (), report: Report | None = None
) -> Iterator[Series]:
    """Open a run's checkpoints on one device, whatever mesh wrote them, its mesh current inside the `with`.

    All read the same `rows` rows of its validation text (of `sources`, where any are named), spread evenly over all there are.
    Nothing is read before it is asked for. Raises CheckpointError where the folder is no run or has no checkpoint.
    """
    experiment, saves = load_config(folder), folder / CHECKPOINTS
    steps = tuple(saved_steps(saves))
    if not steps:
        raise CheckpointError(f"{folder} has no checkpoint yet: train it further, or lower --checkpoint.every")
    mesh = make_mesh({}, jax.devices()[:1])
    tokenizer = load_tokenizer(folder / TOKENIZER) if (folder / TOKENIZER).exists() else None

    @functools.cache
    def model_of(step: int) -> ModelConfig:
        try:
            return described(saves, step, mesh)[1]
        except CheckpointError as fault:
            opened.unread[step] = fault
            raise

    @_remembered
    def own_text() -> Prepared | None:
        return None if imported_from(folder) else _prepared(folder, experiment, tokenizer, (), report)

    @_remembered
    def read_rows() -> Rows:
        return _rows(folder, experiment, tokenizer, rows, sources, report, own_text)

    def read_training(count: int) -> Batch | None:
        return None if own_text() is None else _trained_on(own_text(), experiment, count)

    with jax.set_mesh(mesh):
        opened = Series(
            folder, steps, experiment.layout, mesh, tokenizer, experiment, model_of,
            read=lambda step: read_params(saves, step, model_of(step), experiment.layout, mesh),
            read_rows=read_rows, read_training=read_training,
            training_digest=lambda: own_text().key if own_text() else "", asked={"rows": rows, "sources": list(sources)},
        )  # fmt: skip
        yield opened


def _remembered(read: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function that reads once: what there is, or the same DataError, so that no text is prepared for each probe."""
    faults: list[DataError] = []

    @functools.cache
    def once() -> Any:
        if faults:
            raise faults[0]
        try:
            return read()
        except DataError as fault:
            faults.append(fault)
            raise

    return once


def _prepared(
    folder: Path, experiment: Experiment, tokenizer: Tokenizer | None, sources: Sequence[str], report: Report | None
) -> Prepared:
    """Return the run's own text, or that of other sources as its tokenizer and settings have it."""
    if tokenizer is None:
        raise DataError(f"{folder} has no tokenizer, its model was imported without one: probes of text cannot be run")
    prepared = prepare(data_of(folder, experiment, sources), report=report)
    if prepared.tokenizer.digest != tokenizer.digest:
        raise DataError(
            f"the data of {folder} is tokenised differently now: its sources have changed. Say what to read with --source"
        )
    return prepared


def _rows(
    folder: Path, experiment: Experiment, tokenizer: Tokenizer | None, count: int, sources: Sequence[str],
    report: Report | None, own_text: Callable[[], Prepared | None],
) -> Rows:  # fmt: skip
    """Return rows spread evenly over a split; of preferences and labels both rows of a pair."""
    prepared, model = _prepared(folder, experiment, tokenizer, sources, report) if sources else own_text(), experiment.model
    if prepared is None:
        raise DataError(f"{folder} was imported and has no text of its own: say what to read, --source text:book.txt say")
    name = "train" if sources else "validation"
    split = prepared.split(name)
    if not split.rows:
        raise DataError(f"{folder} holds no text out for validation: say what to read, --source text:book.txt say")
    check_reach(prepared.config.sequence_length, model)
    each = 2 if prepared.config.form in ("preferences", "labels") else 1
    count = min(max(1, count // each), split.rows)
    numbers = ((np.arange(count) + 0.5) * split.rows / count).astype(int)
    found = Batches(prepared, name, split.rows, 0, rows=numbers, shuffle=False).batch(0)
    greatest = max(found.tokens.max(), found.targets.max())
    if greatest >= model.vocab_size:
        raise DataError(
            f"the text has token {greatest}, and the model knows 0 to {model.vocab_size - 1}: its tokenizer has "
            "tokens that the model was not made for; name a text without them by --source"
        )
    ends = np.cumsum([part.rows for part in split.sources])
    where = [split.sources[place].source for place in np.searchsorted(ends, numbers, side="right") for _ in range(each)]
    key = hashlib.sha256(f"{prepared.key} {name} {numbers.tolist()}".encode()).hexdigest()[:16]
    return Rows(Batch(*found[:5]), tuple(where), key)


def _trained_on(prepared: Prepared, experiment: Experiment, count: int) -> Batch:
    read = Batches(prepared, "train", experiment.batch_size, experiment.seed)
    steps = min(-(-count // experiment.rows), read.num_batches)
    parts = [read.batch(step)[:5] for step in range(steps)]
    return Batch(*(np.concatenate(x)[:count] for x in zip(*parts, strict=True)))
