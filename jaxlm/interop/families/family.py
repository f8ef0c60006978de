"""What a family of models is: a reader and a writer of its configuration, and a table of its tensors."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from jaxlm.config import to_dict
from jaxlm.errors import ConfigError
from jaxlm.function_file import names_function
from jaxlm.interop.families.fields import Fields
from jaxlm.interop.families.rope import with_plain_base
from jaxlm.interop.table import Table, Tensors, check_tensors, settle, tied_apart
from jaxlm.model.config import ModelConfig

# Buffers that older releases saved beside the weights: masks and rotary frequencies, which follow from the configuration.
BUFFERS = re.compile(r"\.(attn|attention)\.(masked_)?bias$|\.rotary_emb\.inv_freq$|\.masked_bias$")


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """A family of models as transformers names it."""

    model_types: tuple[str, ...]
    """Values of `model_type` in config.json, the one to write first."""
    architecture: str
    """The class with a language-modelling head."""
    prefix: str
    """What tensors' names begin with, but the head's; files saved of a model without its head go without."""
    reader: Callable[[Fields], ModelConfig]
    """Fields of a config.json -> the model, in full precision and with nothing dropped by capacity."""
    writer: Callable[[ModelConfig], dict[str, Any]]
    """The model -> fields of a config.json; values that the family cannot hold may be lost."""
    table: Callable[[ModelConfig], Table]
    """Which tensor holds which weight; `jaxlm.interop.table.settle` picks among spellings."""
    heads: tuple[str, ...] = ("lm_head.weight",)
    """Names of the output head's tensor."""
    whole_heads: bool = False
    """transformers refuses a width that does not divide by the number of heads, although the size of a head is given."""
    synonyms: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Other names of fields -> their names."""

    def read(self, values: Mapping[str, Any]) -> ModelConfig:
        """Return the model that a config.json describes; raise ConfigError for any field that is wrong or not honoured."""
        fields = Fields(values, synonyms=self.synonyms)
        model = self.reader(fields)
        self._check_architecture(fields)
        fields.finish()
        return model

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Return the config.json of transformers 5, or raise ConfigError naming a value that the family cannot hold."""
        check_as_trained(model)
        model = with_plain_base(model)
        fields = self.writer(model) | {"architectures": [self.architecture], "model_type": self.model_types[0]}
        if self.whole_heads and model.hidden_size % model.num_heads:
            raise ConfigError(
                f"{self.architecture} cannot hold num_heads = {model.num_heads}: transformers wants a divisor of hidden_size = "
                f"{model.hidden_size} there, whatever the size of a head"
            )
        # Defaults of some families name a token that a small vocabulary has not; whoever has the tokenizer fills them in.
        fields |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "dtype": "float32"}
        wanted = function_of(model)
        try:
            found = function_of(self.read(fields))
        except ConfigError as fault:
            raise ConfigError(f"{self.architecture} cannot hold this model: {fault}") from fault
        for name, value in wanted.items():
            if found.get(name) != value:
                raise ConfigError(
                    f"{self.architecture} cannot hold {name} = {value!r:.200}: models of that family have {found.get(name)!r}"
                )
        return fields

    def fit(self, model: ModelConfig, tensors: Tensors) -> tuple[ModelConfig, Table]:
        """Return the model and the table as these tensors have them; raise CheckpointError unless all are accounted for.

        The model gets a head of its own where one is stored that is not the embedding it should be tied to.
        """
        shapes = tensors.shapes()
        if model.tie_embeddings:
            untied = dataclasses.replace(model, tie_embeddings=False)
            model = tied_apart(model, settle(self.table(untied), untied, shapes, self.prefix), tensors)
        table = settle(self.table(model), model, shapes, self.prefix)
        check_tensors(table, model, shapes, lambda name: self.ignored(name, model))
        return model, table

    def ignored(self, name: str, model: ModelConfig) -> bool:
        """Whether a stored tensor has no part in the function: an old buffer, or a head that is the embedding."""
        return bool(BUFFERS.search(name)) or (model.tie_embeddings and name in self.heads)

    def _check_architecture(self, fields: Fields) -> None:
        names = fields.items("architectures", str)
        plain = self.architecture.lower(), re.sub("(forcausallm|lmheadmodel)$", "model", self.architecture.lower())
        if names and not any(name.lower() in plain for name in names):
            raise fields.fault("architectures", names, f"has another head than {self.architecture}, which jaxlm reads")


def check_as_trained(model: ModelConfig) -> None:
    """Raise ConfigError for a model that is read in a way that no configuration of transformers can say."""
    if model.self_extend.on:
        raise ConfigError(
            "no configuration of transformers can hold model.self_extend: Self-Extend is a way of reading a trained model, and "
            "another program would read it without. Export the model as it was trained, model.self_extend.window_size = 0"
        )
    for name, value in (("positions", model.positions), ("moe.router", model.moe.router)):
        if names_function(value):
            raise ConfigError(
                f"no configuration of transformers can hold model.{name} = {value!r}, a function of your own: such a model "
                "is read by jaxlm alone"
            )


def function_of(model: ModelConfig) -> dict[str, Any]:
    """Return what decides the function a model computes, two spellings of one thing alike; training's values are not in it."""
    model = with_plain_base(model)
    layers = range(model.num_layers)
    kinds, mixtures, moe = [model.attention_kind(layer) for layer in layers], model.moe_layers, model.moe
    values: dict[str, Any] = {
        "num_kv_heads": model.kv_heads, "head_dim": model.head_size, "biases": sorted(model.biases),
        "query_scale": round(model.attention_scale, 12), "attention_pattern": kinds,
        "sliding_window": model.sliding_window if "sliding" in kinds else 0, "moe.layers": mixtures,
    }  # fmt: skip
    for name in (
        "vocab_size num_layers hidden_size num_heads activation norm norm_bias norm_plus_one norm_position norm_epsilon "
        "parallel_residual positions causal qk_norm attention_softcap logit_softcap tie_embeddings scale_embeddings"
    ).split():
        values[name] = getattr(model, name)
    if len(mixtures) < model.num_layers:
        values["intermediate_size"] = model.intermediate_size
    if mixtures:
        values["moe.expert_size"] = moe.expert_size or model.intermediate_size
        for name in (
            "num_experts experts_per_token shared_experts router renormalize gate_scale evaluation_capacity_factor"
        ).split():
            values[f"moe.{name}"] = getattr(moe, name)
    if model.positions == "learned":
        values["max_length"] = model.max_length
    if model.positions == "rope":
        values |= _rotation(model, set(kinds))
    return values


def _rotation(model: ModelConfig, kinds: set[str]) -> dict[str, Any]:
    scaling = model.rope_scaling
    values: dict[str, Any] = {"rope_fraction": model.rope_fraction}
    if "global" in kinds or not model.sliding_rope_theta:
        values["rope_theta"] = model.rope_theta
        values["rope_scaling"] = "none"
        if scaling.kind != "none":
            values["rope_scaling"] = to_dict(scaling) | {"original_length": 0}
        if scaling.kind not in ("none", "linear", "proportional"):
            values["rope_scaling"]["original_length"] = scaling.original_length or model.max_length
    if "sliding" in kinds:
        shared = model.rope_theta if scaling.kind == "none" else "scaled as all"
        values["sliding_rope_theta"] = model.sliding_rope_theta or shared
    return values
