"""An experiment: everything that decides a run's result, in one frozen value, from one Python file."""

import importlib.util
import json
import math
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from jaxlm.config import Range, config, difference, from_dict, to_dict
from jaxlm.data.prepare import DataConfig
from jaxlm.errors import ConfigError, JaxlmError, suggest
from jaxlm.hardware import Chip
from jaxlm.layout import Layout, MeshConfig, of_slices
from jaxlm.model import transformer
from jaxlm.model.config import ModelConfig
from jaxlm.model.intervention import RouterIntervention
from jaxlm.param import check_layout, name_axes
from jaxlm.train import arrange
from jaxlm.train.optimizer import OptimizerConfig, schedule
from jaxlm.train.step import GuardConfig


@config
class EvaluationConfig:
    """Loss on held-out text during the run."""

    every: Annotated[int, Range(0)] = 250
    """Steps between evaluations; 0 evaluates at the end only."""
    batches: Annotated[int, Range(0)] = 20
    """Batches of the validation split, from its start; 0 takes all of it."""


@config
class CheckpointConfig:
    """When state is saved, and which saves are kept."""

    every: Annotated[int, Range(0)] = 500
    """Steps between checkpoints; 0 saves at the end only."""
    keep: Annotated[int, Range(1)] = 2
    """The newest ones kept."""
    keep_every: Annotated[int, Range(0)] = 0
    """Keep also every checkpoint whose step this divides; 0 keeps none besides."""


@config
class SampleConfig:
    """Text written at the end of the run."""

    prompts: tuple[str, ...] = ()
    """Beginnings to continue; none writes from nothing."""
    tokens: Annotated[int, Range(0)] = 120
    """Tokens to write for each; 0 writes none."""
    temperature: Annotated[float, Range(0)] = 0.8
    """Of the distribution sampled from; 0 takes the likeliest token."""
    top_p: Annotated[float, Range(0, 1)] = 0.95
    """Sample from the smallest set of tokens that holds this probability."""


@config
class LogConfig:
    """What the run writes down."""

    every: Annotated[int, Range(1)] = 1
    """Steps between rows of metrics.jsonl."""
    tensorboard: bool = True
    """Write RUN/tensorboard beside it."""


@config
class Experiment:
    """A language-model training run."""

    name: str
    """Names the run; its directory is runs/NAME unless --run-dir says otherwise."""
    steps: Annotated[int, Range(1)]
    """Optimizer steps."""
    batch_size: Annotated[int, Range(1)]
    """Rows a step, over all devices."""
    model: ModelConfig
    """The network."""
    data: DataConfig = DataConfig()
    """What it reads."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How it learns."""
    seed: Annotated[int, Range(0, 2**31 - 1)] = 0
    """Of initial parameters, dropout and the order of the data."""
    accumulate: Annotated[int, Range(1)] = 1
    """Microbatches whose gradients add up to one step; a divisor of batch_size."""
    z_loss: Annotated[float, Range(0)] = 0.0
    """Weight of the squared log-normaliser in the loss (1e-4 in PaLM)."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass recomputes instead of keeping: nothing, all but matrix products, whole layers."""
    guard: GuardConfig = GuardConfig()
    """Steps to skip."""
    router: RouterIntervention = RouterIntervention()
    """What is done to the routers of a mixture of experts."""
    init_from: str = ""
    """Run whose newest parameters to begin from: of the same model, or a dense one that the experts are upcycled from."""
    layout: Layout = Layout()
    """Which mesh axis splits what."""
    mesh: MeshConfig = MeshConfig()
    """The devices' arrangement."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Validation during the run."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When state is saved."""
    sample: SampleConfig = SampleConfig()
    """Text written at the end."""
    log: LogConfig = LogConfig()
    """Records."""

    def check(self) -> None:
        """Raise ConfigError where parts contradict one another."""
        if self.batch_size % self.accumulate:
            fits = [n for n in range(1, self.batch_size + 1) if self.batch_size % n == 0]
            raise ConfigError(
                f"batch_size = {self.batch_size} does not divide into accumulate = {self.accumulate} microbatches: "
                f"take accumulate = {min(fits, key=lambda n: abs(n - self.accumulate))}"
            )
        if self.data.sequence_length > self.model.max_length:
            raise ConfigError(
                f"data.sequence_length = {self.data.sequence_length} exceeds model.max_length = {self.model.max_length}: "
                f"set --model.max-length {self.data.sequence_length} or a shorter row"
            )
        if self.data.tokenizer.vocab_size > self.model.vocab_size:
            raise ConfigError(
                f"data.tokenizer.vocab_size = {self.data.tokenizer.vocab_size} does not fit "
                f"model.vocab_size = {self.model.vocab_size}: set --model.vocab-size {self.data.tokenizer.vocab_size}"
            )
        if not self.model.causal:
            raise ConfigError("model.causal = False sees the next token, which is the target: language modelling needs True")
        self.router.check_model(self.model)
        if self.model.moe.num_experts:
            self._check_places()
        schedule(self.optimizer, self.steps)

    def _check_places(self) -> None:
        moe = self.model.moe
        if moe.router == "expert_choice" and self.sample.tokens:
            raise ConfigError(
                "sample.tokens asks for text, token by token, but in expert choice the experts choose from whole rows: "
                "set --sample.tokens 0"
            )
        for name in ("capacity_factor", "evaluation_capacity_factor"):
            factor, tokens = getattr(moe, name), moe.rows_per_group * self.data.sequence_length
            places = (factor or 0.0) * moe.experts_per_token * tokens / moe.num_experts
            if factor is not None and places < 1:
                least = math.ceil(100 * moe.num_experts / (moe.experts_per_token * tokens)) / 100
                raise ConfigError(
                    f"model.moe.{name} = {factor:g} gives each of {moe.num_experts} experts {places:.2g} places for a group of "
                    f"{tokens} tokens, less than one: set it to {least:g} or more, raise --model.moe.rows-per-group, or None "
                    "to drop nothing"
                )
            if moe.router == "expert_choice" and factor is not None and places > tokens:
                raise ConfigError(
                    f"model.moe.{name} = {factor:g} lets an expert choose {places:g} of {tokens} tokens: set it to "
                    f"{moe.num_experts / moe.experts_per_token:g} at most"
                )


# Fields that may change between a run and its continuation: they do not decide what a step computes (a mesh does so only
# in the order of sums).
FREE_FIELDS = ("name", "mesh.", "layout.", "checkpoint.", "log.", "sample.", "data.cache", "router.record")


def changed_fields(saved: Experiment, asked: Experiment) -> list[tuple[str, object, object]]:
    """Return the differences that make a continued run another experiment."""
    return [entry for entry in difference(saved, asked) if not entry[0].startswith(FREE_FIELDS)]


def check_devices(experiment: Experiment, num_devices: int, chip: Chip | None = None, slices: int = 1) -> dict[str, int]:
    """Return the mesh's shape over this many devices, or raise ConfigError where model or batch do not divide over it."""
    return settle_mesh(experiment, num_devices, chip, slices).shape


def settle_mesh(experiment: Experiment, num_devices: int, chip: Chip | None = None, slices: int = 1) -> arrange.Choice:
    """Return the mesh's shape and, where it was left to be chosen (`mesh.auto`), the reasons.

    `chip` is what the devices are, None where that is not known or they are a processor's; `slices` how many slices they form.
    Raises ConfigError where model or batch do not divide over the mesh.
    """
    if not experiment.mesh.auto:
        shape = experiment.mesh.shape(num_devices)
        if shape["replica"] % slices:
            raise ConfigError(of_slices(shape["replica"], slices, num_devices))
        check_shape(experiment, shape)
        return arrange.Choice(shape, ())
    work = work_of(experiment, chip)
    return arrange.choose(work, experiment.mesh, num_devices, lambda shape: check_shape(experiment, shape), chip, slices)


def work_of(experiment: Experiment, chip: Chip | None) -> arrange.Work:
    """Return what a step of the experiment computes on devices of this kind (None: a processor's)."""
    platform = "cpu" if chip is None else "tpu" if chip.is_tpu else "gpu"
    return arrange.Work(
        model=experiment.model.for_platform(platform), layout=experiment.layout,
        rows=experiment.batch_size // experiment.accumulate, length=experiment.data.sequence_length,
        accumulate=experiment.accumulate, optimizer=experiment.optimizer.kind, remat=experiment.remat,
    )  # fmt: skip


def check_shape(experiment: Experiment, shape: Mapping[str, int]) -> None:
    """Raise ConfigError where the model or a batch does not divide over a mesh of this shape."""
    check_layout(transformer.spec(experiment.model), experiment.layout, shape)
    ways, parts = experiment.layout.ways("batch", shape), experiment.layout.ways("length", shape)
    length = experiment.data.sequence_length
    if length % parts:
        fits = [n for n in range(1, parts + 1) if math.gcd(length, parts) % n == 0][-3:]
        raise ConfigError(
            f"data.sequence_length = {length} cannot be split evenly over mesh.context = {parts}: set --mesh.context to a "
            f"divisor such as {', '.join(map(str, fits))}, or --data.sequence-length {max(1, round(length / parts)) * parts}"
        )
    unit = ways * experiment.model.moe.rows_per_group
    rows = experiment.batch_size // experiment.accumulate
    if rows % unit:
        over = name_axes(experiment.layout.spec("batch")[0], shape) or "mesh.data"
        groups = f" in groups of {experiment.model.moe.rows_per_group}" if unit > ways else ""
        raise ConfigError(
            f"batch_size / accumulate = {rows} rows{groups} do not divide over {over} = {ways}: "
            f"set --batch-size {max(unit, round(rows / unit) * unit) * experiment.accumulate}"
        )


def apply_overrides(experiment: Experiment, path: Path) -> Experiment:
    """Return the experiment with the fields that a JSON file names changed, nested as in a run's config.json.

    Raises ConfigError, with the file, for one that cannot be read, for fields that do not exist and values that do not suit.
    """
    try:
        changes = json.loads(path.read_text())
        return from_dict(Experiment, _merge(to_dict(experiment), changes))
    except (OSError, ValueError) as fault:
        raise ConfigError(f"--overrides {path} cannot be read as JSON: {fault}") from fault
    except ConfigError as fault:
        raise ConfigError(f"--overrides {path}: {fault}") from fault


def _merge(fields: Any, changes: Any) -> Any:
    if not (isinstance(fields, dict) and isinstance(changes, dict)):
        return changes
    return fields | {name: _merge(fields.get(name), change) for name, change in changes.items()}


def load_experiment(path: Path) -> Experiment:
    """Run an experiment file and return what its `experiment()` returns; every fault is a ConfigError with its place.

    `FILE.py:NAME` calls another function of the file, for example a variant of the same experiment for a pod. A `.json` file
    is a resolved configuration, as a run directory holds it; nothing is run.
    """
    if path.suffix == ".json" and path.is_file():
        return _load_resolved(path)
    name = "experiment"
    if not path.is_file() and ".py:" in path.name:
        file, name = path.name.rsplit(":", 1)
        path = path.with_name(file)
    if not path.is_file():
        near = [p for p in path.parent.iterdir() if p.suffix in (".py", ".json")] if path.parent.is_dir() else []
        raise ConfigError(f"no experiment file {path}.{suggest(path.name, [p.name for p in near])}")
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    if module_spec is None:
        raise ConfigError(
            f"{path} is no experiment: give a .py file that defines experiment(), or a resolved .json configuration"
        )
    module = importlib.util.module_from_spec(module_spec)
    sys.path.insert(0, str(path.parent.absolute()))  # experiments build on their neighbours
    try:
        module_spec.loader.exec_module(module)
        if not callable(getattr(module, name, None)):
            near = suggest(name, [n for n, value in vars(module).items() if callable(value)])
            raise ConfigError(f"{path} defines no function {name}() that returns an Experiment.{near}")
        found = getattr(module, name)()
    except JaxlmError as fault:
        raise type(fault)(f"{fault}{_line(fault, path)}") from fault
    except Exception as fault:
        raise ConfigError(f"{path} cannot be run: {type(fault).__name__}: {fault}{_line(fault, path)}") from fault
    finally:
        sys.path.pop(0)
    if not isinstance(found, Experiment):
        raise ConfigError(f"{name}() in {path} returned a {type(found).__name__}, not an Experiment")
    return found


def _load_resolved(path: Path) -> Experiment:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as fault:
        raise ConfigError(f"{path} cannot be read as JSON: {fault}") from fault
    try:
        return from_dict(Experiment, values)
    except ConfigError as fault:
        raise ConfigError(f"{path} is not a configuration of this version of jaxlm: {fault}") from fault


def _line(fault: BaseException, path: Path) -> str:
    lines = [f.lineno for f in traceback.extract_tb(fault.__traceback__) if Path(f.filename).name == path.name]
    return f" ({path}, line {lines[-1]})" if lines else ""
