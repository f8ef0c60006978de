"""Fields that were set and that nothing reads, because another field switches off what they are for."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxlm.config import flatten
from jaxlm.experiment import Experiment
from jaxlm.function_file import names_function

_ROTARY = ("model.rope_theta", "model.rope_fraction", "model.rope_scaling", "model.sliding_rope_theta")


class _Off(NamedTuple):
    """Fields, or groups of them, without effect where `when` holds."""

    fields: tuple[str, ...]
    when: Callable[[Experiment], bool]
    because: str


# The first that holds for a field is told of.
_OFF = (
    _Off(("lora",), lambda e: not e.lora.rank, "lora.rank is 0: all weights are trained"),
    _Off(("model.moe",), lambda e: not e.model.moe.num_experts, "model.moe.num_experts is 0: all layers are dense"),
    _Off(("preference",), lambda e: not e.paired, "data.form has neither preferences nor labels"),
    _Off(("data.examples",), lambda e: e.data.form == "text", "data.form is 'text'"),
    _Off(("data.examples.packing",), lambda e: e.paired, "pairs of rows are not packed"),
    _Off(("data.weights",), lambda e: len(e.data.sources) == 1, "there is one source"),
    _Off(("data.validation_fraction",), lambda e: bool(e.data.validation_sources), "data.validation_sources is given"),
    _Off(("data.tokenizer.training_bytes",), lambda e: bool(e.data.tokenizer.path), "data.tokenizer.path is given"),
    _Off(_ROTARY, lambda e: e.model.positions != "rope", "model.positions is not 'rope'"),
    _Off(("model.rope_scaling",), lambda e: e.model.rope_scaling.kind == "none", "model.rope_scaling.kind is 'none'"),
    _Off(("model.sliding_rope_theta", "model.sliding_window"), lambda e: "sliding" not in e.model.attention_pattern,
         "model.attention_pattern has no sliding layer"),
    _Off(("model.init_scale",), lambda e: bool(e.model.init_std), "model.init_std is given"),
    _Off(("model.moe.expert_groups", "model.moe.groups_per_token"), lambda e: e.model.moe.expert_groups == 1,
         "model.moe.expert_groups is 1"),
    _Off(("model.moe.bias_update_rate",),
         lambda e: e.model.moe.router != "sigmoid" and not names_function(e.model.moe.router),
         "model.moe.router has no balancing bias"),
    _Off(("model.moe.min_capacity", "model.moe.priority"),
         lambda e: e.model.moe.capacity_factor is None and e.model.moe.evaluation_capacity_factor is None,
         "no capacity factor is set: nothing is dropped"),
    _Off(("model.moe.balance_over",), lambda e: not e.model.moe.load_balancing_loss, "model.moe.load_balancing_loss is 0"),
    _Off(("optimizer.decay_fraction",), lambda e: e.optimizer.schedule != "wsd", "optimizer.schedule is not 'wsd'"),
    _Off(("optimizer.final_fraction",), lambda e: e.optimizer.schedule in ("constant", "inverse_sqrt"),
         "optimizer.schedule does not end anywhere else"),
    _Off(("optimizer.b1",), lambda e: e.optimizer.kind == "adafactor", "optimizer.kind is 'adafactor'"),
    _Off(("optimizer.b2",), lambda e: e.optimizer.kind in ("adafactor", "sgd"), "optimizer.kind has no second moment"),
    _Off(("optimizer.epsilon",), lambda e: e.optimizer.kind in ("adafactor", "sgd", "lion"), "optimizer.kind does not use it"),
    _Off(("checkpoint.keep_every",), lambda e: not e.checkpoint.every, "checkpoint.every is 0: only the end is saved"),
)  # fmt: skip


def unread_fields(experiment: Experiment) -> dict[str, list[str]]:
    """Return the fields that are not at their default and have no effect, by the reason why.

    They are no error: one field that is varied may switch off what others say, as in the dense arm of a sweep of mixtures.
    """
    given, default = flatten(experiment), _defaults(experiment) | _defaults(experiment.model, "model.")
    found: dict[str, list[str]] = {}
    for name, value in given.items():
        if value == default.get(name, value):
            continue
        for off in _OFF:
            if any(name == field or name.startswith(f"{field}.") for field in off.fields) and off.when(experiment):
                found.setdefault(off.because, []).append(name)
                break
    return found


def _defaults(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return the defaults of all fields of a configuration that have one."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        if field.default is not dataclasses.MISSING:
            found |= flatten(field.default, prefix + field.name)
    return found


def describe_unread(experiment: Experiment) -> list[str]:
    """Return a line for each reason, for people."""
    return [
        f"{', '.join(names)} {'has' if len(names) == 1 else 'have'} no effect: {why}"
        for why, names in unread_fields(experiment).items()
    ]
