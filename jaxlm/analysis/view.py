"""One checkpoint of a series as a probe sees it: parameters, rows, losses and activations, each read when it is asked for."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm import param
from jaxlm.analysis.activations import ENDS, OF_MIXTURES, Activations, Reduce, capture, check_sites
from jaxlm.analysis.measure import NotSuited
from jaxlm.analysis.predictions import Scores, score
from jaxlm.analysis.series import Rows, Series, related
from jaxlm.data.data_config import DataConfig
from jaxlm.data.packing import Batch
from jaxlm.data.tokenizer import Tokenizer, TokenizerConfig
from jaxlm.errors import CheckpointError
from jaxlm.experiment import Experiment
from jaxlm.layout import Layout
from jaxlm.model import transformer
from jaxlm.model.config import ModelConfig
from jaxlm.model.edit import Edit, unchanged

BYTES_OF_ACTIVATIONS = 256 << 20  # computed at once, and kept of a checkpoint for the next probe
TOKENS_AT_ONCE = 8192


class View:
    """One checkpoint of a series.

    Everything is computed when it is first asked for, on one device, under the current mesh (`jax.set_mesh(view.mesh)`), and
    kept while probes look at this checkpoint. What a probe asks of other checkpoints is noted, so that its result is made anew
    when they are others.
    """

    def __init__(self, series: Series, step: int):
        """Look at `step` of a series."""
        self._series, self.step = series, step
        self._scores: Scores | None = None
        self._activations: Activations = {}

    @classmethod
    def of(
        cls, params_by_step: Mapping[int, Any], model: ModelConfig, rows: Batch, *, layout: Layout = Layout(),
        tokenizer: Tokenizer | None = None, experiment: Experiment | None = None, step: int | None = None,
        sources: Sequence[str] = (), training: Batch | None = None,
    ) -> "View":  # fmt: skip
        """Return a view of parameters in memory, at `step` (None: the last), without a run on disk.

        `sources` say where each row is from, `training` are rows that the model was trained on.
        """
        steps = tuple(sorted(params_by_step))
        if experiment is None:
            data = DataConfig(sequence_length=rows.tokens.shape[1], tokenizer=TokenizerConfig(kind="none", vocab_size=1))
            experiment = Experiment(name="view", steps=max(1, steps[-1]), batch_size=1, model=model, data=data)
        found = Rows(rows, tuple(sources) or ("rows",) * len(rows.tokens), "")
        series = Series(
            Path("view"), steps, layout, jax.sharding.get_mesh(), tokenizer, experiment, model_of=lambda step: model,
            read=params_by_step.__getitem__, read_rows=lambda: found,
            read_training=lambda count: None if training is None else Batch(*(x[:count] for x in training[:5])),
        )  # fmt: skip
        return cls(series, steps[-1] if step is None else step)

    @property
    def folder(self) -> Path:
        """The run's directory."""
        return self._series.folder

    @property
    def experiment(self) -> Experiment:
        """What the run was asked to do: a probe that looks is run anew where that changes."""
        self._series.reads.experiment = True
        return self._series.experiment

    @property
    def layout(self) -> Layout:
        """Which mesh axis splits what."""
        return self._series.layout

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """The one device that reads the checkpoint."""
        return self._series.mesh

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The run's; None for an imported model that came without one."""
        return self._series.tokenizer

    @functools.cached_property
    def model(self) -> ModelConfig:
        """The model's configuration, settled for this platform."""
        return self._series.model_of(self.step)

    @property
    def spec(self) -> dict[str, param.Param]:
        """The model's parameters before they exist, by name: shapes, axes, kinds."""
        return param.named_leaves(transformer.spec(self.model))

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps of all checkpoints: a probe that asks for them is run anew where one is added."""
        self._series.reads.steps = self._series.steps
        return self._series.steps

    @property
    def steps_so_far(self) -> tuple[int, ...]:
        """The steps of the checkpoints up to this one, which later ones do not change."""
        return tuple(step for step in self._series.steps if step <= self.step)

    @property
    def previous(self) -> "View | None":
        """The checkpoint before; None at the first."""
        return self._related("previous")

    @property
    def first(self) -> "View":
        """The first checkpoint."""
        return self._related("first")

    @property
    def last(self) -> "View":
        """The last checkpoint: a probe that asks for it is run anew where there is a later one."""
        return self._related("last")

    def at(self, step: int) -> "View":
        """Return the checkpoint of another step; CheckpointError where there is none."""
        if step not in self._series.steps:
            known = ", ".join(map(str, self._series.steps))
            raise CheckpointError(f"{self.folder} has no checkpoint of step {step}: it has {known}")
        self._series.reads.checkpoints.add(step)
        return self if step == self.step else View(self._series, step)

    def _related(self, name: str) -> "View | None":
        step = related(name, self.step, self._series.steps)
        self._series.reads.relations[f"{name} {self.step}"] = step
        return None if step is None else self.at(step)

    @property
    def params(self) -> Any:
        """The parameters, on the device, adapters merged."""
        return self._series.params(self.step)

    @property
    def rows(self) -> Batch:
        """The rows that every checkpoint reads: tokens, targets, weights, segments, positions, numpy arrays [R, L]."""
        self._series.reads.rows = True
        return self._series.rows.batch

    @property
    def row_sources(self) -> tuple[str, ...]:
        """Which source each of `rows` is from."""
        self._series.reads.rows = True
        return self._series.rows.sources

    def training_rows(self, count: int) -> Batch:
        """Return the first rows that the run was trained on, [count, L] or fewer; NotSuited where none are known."""
        self._series.reads.training = True
        found = self._series.training_rows(count)
        if found is None:
            raise NotSuited(f"{self.folder} has no training text of its own")
        return found

    def scores(self, params: Any = None, edit: Edit = unchanged, batch: Batch | None = None) -> Scores:
        """Return what the model makes of each target of `batch` (None: `rows`), float32 [R, L] each.

        `params` (None: this checkpoint's) may be any of the same shapes. One program serves all checkpoints as long as `edit`
        is one function, or a `jax.tree_util.Partial` of one function and arrays.
        """
        own = params is None and edit is unchanged and batch is None
        if own and self._scores is not None:
            self._series.reads.rows = True
            return self._scores
        params, batch = self.params if params is None else params, self.rows if batch is None else batch
        size = max(1, TOKENS_AT_ONCE // batch.tokens.shape[1])
        parts = [
            [x[: len(part)] for x in score(params, _take(batch, part, size), self.model, self.layout, edit)]
            for part in _parts(len(batch.tokens), size)
        ]
        found = Scores(*(np.concatenate(x) for x in zip(*parts, strict=True)))
        if own:
            self._scores = found
        return found

    def losses(self, params: Any = None, edit: Edit = unchanged, batch: Batch | None = None) -> np.ndarray:
        """Return the loss of each target in nats, 0 where its weight is 0, float32 [R, L]; arguments as of `scores`."""
        weights = (self.rows if batch is None else batch).weights
        return np.where(weights != 0, self.scores(params, edit, batch).loss, np.float32(0))

    def mean_loss(self, params: Any = None, edit: Edit = unchanged, batch: Batch | None = None) -> float:
        """Return the mean loss of the targets that count, in nats; arguments as of `scores`."""
        weights = (self.rows if batch is None else batch).weights
        losses = self.losses(params, edit, batch).astype(np.float64)
        return float((losses * weights).sum() / weights.sum())

    def activations(self, *sites: str, edit: Edit = unchanged, batch: Batch | None = None, params: Any = None) -> Activations:
        """Return what `sites` held of `batch` (None: `rows`), site -> layer -> float32 [R, L, ...]; see `activations.SITES`.

        "attention" is [R, heads, L, L]. What is great is better asked for in pieces (`pieces`).
        """
        return _joined([found for _, found in self.pieces(*sites, edit=edit, batch=batch, params=params)])

    def reduced(self, reduce: Reduce, *sites: str, edit: Edit = unchanged, batch: Batch | None = None) -> Activations:
        """Return what `reduce`, a module-level function, makes of the sites of each layer, name -> layer -> [R, ...].

        It works on the device, so that what is too great to keep, as attention is, never leaves it; see `activations.Reduce`.
        """
        check_sites(sites, self.model)
        params, batch = self.params, self.rows if batch is None else batch
        count, length = batch.tokens.shape
        each = sum(_bytes_of(site, length, self.model) for site in sites) // self.model.num_layers
        size = min(count, max(1, BYTES_OF_ACTIVATIONS // max(1, each)), max(1, TOKENS_AT_ONCE // length))
        parts = []
        for part in _parts(count, size):
            found = capture(params, _take(batch, part, size), sites, self.model, self.layout, edit, reduce)
            parts.append({name: {layer: x[: len(part)] for layer, x in of.items()} for name, of in found.items()})
        return _joined(parts)

    def pieces(
        self, *sites: str, edit: Edit = unchanged, batch: Batch | None = None, params: Any = None
    ) -> Iterator[tuple[Batch, Activations]]:
        """Yield rows and their `activations`, as many rows at a time as the memory meant for it holds.

        All that fits there of this checkpoint's own is kept, and not computed again.
        """
        own = params is None and edit is unchanged and batch is None
        self._series.reads.rows |= batch is None
        batch = self._series.rows.batch if batch is None else batch
        missing = [site for site in sites if not own or site not in self._activations]
        if not missing:
            yield batch, {site: self._activations[site] for site in sites}
            return
        check_sites(sites, self.model)
        params, (count, length) = self.params if params is None else params, batch.tokens.shape
        each = sum(_bytes_of(site, length, self.model) for site in missing)
        size = min(count, max(1, BYTES_OF_ACTIVATIONS // each), max(1, TOKENS_AT_ONCE // length))
        keep = own and each * count <= BYTES_OF_ACTIVATIONS - self._kept_bytes()
        if keep:
            self._keep(params, batch, missing, size)
            yield batch, {site: self._activations[site] for site in sites}
            return
        for part in _parts(count, size):
            found = capture(params, _take(batch, part, size), sites, self.model, self.layout, edit)
            cut = {site: {layer: x[: len(part)] for layer, x in of.items()} for site, of in found.items()}
            yield Batch(*(x[part] for x in batch[:5])), cut

    def _keep(self, params: Any, batch: Batch, sites: Sequence[str], size: int) -> None:
        parts = []
        for part in _parts(len(batch.tokens), size):
            found = capture(params, _take(batch, part, size), sites, self.model, self.layout)
            parts.append({site: {layer: x[: len(part)] for layer, x in of.items()} for site, of in found.items()})
        self._activations |= _joined(parts)

    def _kept_bytes(self) -> int:
        return sum(x.nbytes for of in self._activations.values() for x in of.values())


def _joined(parts: Sequence[Activations]) -> Activations:
    """Return activations of rows that were computed apart as those of all of them."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    return {name: {layer: np.concatenate([part[name][layer] for part in parts]) for layer in first[name]} for name in first}


def _parts(rows: int, size: int) -> list[range]:
    return [range(start, min(start + size, rows)) for start in range(0, rows, size)]


def _take(batch: Batch, part: range, size: int) -> Batch:
    """Return rows of a batch, filled up with its first ones, so that one shape is compiled."""
    numbers = np.arange(part.start, part.start + min(size, len(batch.tokens))) % len(batch.tokens)
    return Batch(*(x[numbers] for x in batch[:5]))


def _bytes_of(site: str, length: int, model: ModelConfig) -> int:
    """Return the bytes of a row's activations at a site, over all layers."""
    if site in ENDS:
        return 4 * length * model.hidden_size
    chosen = model.moe.num_experts if model.moe.router == "expert_choice" else model.moe.experts_per_token
    widths = {
        "q": model.num_heads * model.head_size, "heads": model.num_heads * model.head_size,
        "k": model.kv_heads * model.head_size, "v": model.kv_heads * model.head_size, "attention": model.num_heads * length,
        "router_logits": model.moe.num_experts, "experts": chosen, "gates": chosen,
    }  # fmt: skip
    layers = len(model.moe_layers) if site in OF_MIXTURES else model.num_layers
    return 4 * length * layers * widths.get(site, model.hidden_size)
