"""An experiment: everything that decides a run's result, in one frozen value, from one Python file."""

import math
from typing import Annotated, Literal

from jaxlm.config import Function, Range, config, difference
from jaxlm.data.prepare import DataConfig
from jaxlm.errors import ConfigError
from jaxlm.function_file import identity
from jaxlm.layout import Layout, MeshConfig
from jaxlm.model import transformer
from jaxlm.model.config import ModelConfig
from jaxlm.model.intervention import RouterIntervention
from jaxlm.model.lora import LoraConfig, adapt
from jaxlm.objective.preference_config import PreferenceConfig
from jaxlm.param import count, split
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
    """Rows a step, over all devices; of preferences and labels, pairs of rows."""
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
    objective: Annotated[str, Function("loss(params, batch, config, layout, **settings)", optional=True)] = ""
    """A loss of your own, FILE.py:NAME (objective/own.py); empty: that of the data's form."""
    z_loss: Annotated[float, Range(0)] = 0.0
    """Weight of the squared log-normaliser in the loss (1e-4 in PaLM)."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass recomputes instead of keeping: nothing, all but matrix products, whole layers."""
    guard: GuardConfig = GuardConfig()
    """Steps to skip."""
    router: RouterIntervention = RouterIntervention()
    """What is done to the routers of a mixture of experts."""
    preference: PreferenceConfig = PreferenceConfig()
    """What is learnt from preferences and labels (data.form)."""
    lora: LoraConfig = LoraConfig()
    """Low-rank adapters, trained in the place of the weights."""
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

    @property
    def paired(self) -> bool:
        """Whether rows come in pairs, to be compared: preferences or labels."""
        return self.data.form in ("preferences", "labels")

    @property
    def rows(self) -> int:
        """Rows of tokens a step."""
        return self.batch_size * (2 if self.paired else 1)

    @property
    def trained_share(self) -> float:
        """The part of all parameters that is trained: with adapters, theirs."""
        if not self.lora.rank:
            return 1.0
        spec = adapt(transformer.spec(self.model), self.lora)
        return count(split(spec, spec)[0]) / count(spec)

    @property
    def reference_is_base(self) -> bool:
        """Whether the reference is the policy without its adapters, and so takes no memory."""
        return self._live_reference and bool(self.lora.rank) and not self.preference.reference_run

    @property
    def reference_beside(self) -> bool:
        """Whether a reference's parameters stand beside the policy's."""
        return self._live_reference and not self.reference_is_base

    @property
    def _live_reference(self) -> bool:
        return self.paired and self.preference.needs_reference and self.preference.reference == "live"

    def check(self) -> None:
        """Raise ConfigError where parts contradict one another."""
        if not self.name.isprintable() or {"", ".", ".."} & set(self.name.split("/")):
            raise ConfigError(
                f"name = {self.name!r:.80} names no folder below runs/: give printable characters, for example "
                f"{self._printable_name()!r}; --run-dir takes any path"
            )
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
        if self.model.self_extend.on:
            raise ConfigError(
                "model.self_extend is a way of reading a trained model, not of training one: leave it out here, and give it to "
                "jaxlm eval, sample, chat or score (--extend.self-extend.group-size 4 --extend.self-extend.window-size 64)"
            )
        self.router.check_model(self.model)
        self._check_post_training()
        if self.model.moe.num_experts:
            self._check_places()
        schedule(self.optimizer, self.steps)

    def _printable_name(self) -> str:
        parts = "".join(filter(str.isprintable, self.name)).split("/")
        return "/".join(part for part in parts if part not in ("", ".", ".."))[:60] or "run"

    def _check_post_training(self) -> None:
        if self.paired and self.preference.form != self.data.form:
            kinds = "kto" if self.data.form == "labels" else "sigmoid, ipo or another but kto"
            raise ConfigError(
                f"preference.loss = {self.preference.loss!r} is for data of form {self.preference.form!r}, and data.form = "
                f"{self.data.form!r}: set --preference.loss to {kinds}, or --data.form {self.preference.form}"
            )
        if self.paired and self.preference.needs_reference and not (self.init_from or self.preference.reference_run):
            raise ConfigError(
                f"preference.loss = {self.preference.loss!r} compares with a reference: name the run that holds it with "
                "--init-from (to begin from it, too) or --preference.reference-run"
            )
        if self.paired and self.z_loss:
            raise ConfigError(f"z_loss = {self.z_loss:g} belongs to next-token prediction, not to preferences: set --z-loss 0")
        if self.paired and self.objective:
            raise ConfigError(
                f"objective = {self.objective!r} reads rows of tokens, and data.form = {self.data.form!r} compares pairs of "
                "rows: leave it out and choose a preference.loss, or take data of another form"
            )
        moe = self.model.moe
        if self.paired and moe.num_experts and moe.rows_per_group > 1 and moe.evaluation_capacity_factor is not None:
            raise ConfigError(
                f"model.moe.rows_per_group = {moe.rows_per_group} with evaluation_capacity_factor = "
                f"{moe.evaluation_capacity_factor:g} makes what a response is worth depend on the other rows of its batch: set "
                "--model.moe.evaluation-capacity-factor None, or --model.moe.rows-per-group 1"
            )
        if self.lora.rank:
            if not self.init_from:
                raise ConfigError("lora.rank adapts a model that is trained already: name its run with --init-from")
            if self.router.freeze:
                raise ConfigError("router.freeze freezes nothing more with adapters (lora.rank): leave one of them out")
            adapt(transformer.spec(self.model), self.lora)

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
    """Return the differences that make a continued run another experiment.

    A function that lies elsewhere is the same function where its name and the content of its file are.
    """
    changes = [entry for entry in difference(saved, asked) if not entry[0].startswith(FREE_FIELDS)]
    return [(name, before, now) for name, before, now in changes if identity(before) != identity(now)]
