"""How long a row a model reads, and what lets it read longer ones."""

from jaxlm.errors import DataError
from jaxlm.model.config import ModelConfig


def check_reach(length: int, model: ModelConfig, what: str = "rows", trained: ModelConfig | None = None) -> str:
    """Return a warning where `what` has more tokens than the model is made for, an empty text where it has not.

    `trained` is the model without its extension, where that is known: it tells whose limit this is. Raises DataError where it
    cannot be read at all: learned positions end, and so do the relative positions of Self-Extend.
    """
    if length <= model.max_length:
        return ""
    said = f"{what} have {length} tokens: this model reads at most {model.max_length}"
    if model.positions == "learned":
        raise DataError(f"{said}, for it has learned positions and none beyond")
    if model.self_extend.on:
        raise DataError(f"{said} with {_grouping(model)}: {further(model, length)}")
    if model.rope_scaling.kind != "none":
        said += f", with rope_scaling.factor {_factor(model)}"
    elif trained is not None:
        said += ", as it was trained" if trained.max_length == model.max_length else ", for so --extend.max-length has it"
    return f"{said}; to read further, {further(model, length)}"


def further(model: ModelConfig, length: int = 0) -> str:
    """Return which options let a model read rows of `length` tokens (0: longer ones); an empty text where none does."""
    if model.positions == "learned":
        return ""
    if model.positions != "rope":
        return "set --extend.max-length"
    length, reached = length or model.max_length + 1, _reached(model)
    if length <= reached:
        return f"raise --extend.max-length, {model.max_length} now, or leave it out: the method itself reaches {reached} tokens"
    if model.self_extend.on:
        return _regrouped(model, length, reached)
    if model.rope_scaling.kind != "none":
        kind = model.rope_scaling.kind
        return f"raise --extend.rope-scaling.factor above {_factor(model)}, with --extend.rope-scaling.kind {kind}"
    return "see --extend.self-extend.window-size and --extend.rope-scaling.kind"


def _reached(model: ModelConfig) -> int:
    """Return how long a row the method itself reaches, whatever max_length was set; 0 where that is not known."""
    if model.self_extend.on:
        return model.self_extend.longest(model.self_extend.original_length or model.max_length)
    return int(model.rope_scaling.factor * model.rope_scaling.original_length) if model.rope_scaling.kind != "none" else 0


def _regrouped(model: ModelConfig, length: int, reached: int) -> str:
    """Return which groups and window of Self-Extend reach `length`."""
    found = model.self_extend.reaching(length, model.self_extend.original_length or model.max_length)
    if found is None:
        return f"no groups of Self-Extend reach {length} tokens: take shorter rows"
    also = ", without --extend.max-length" if reached > model.max_length else ""
    option = "--extend.self-extend"
    return f"take {option}.group-size {found.group_size} with {option}.window-size {found.window_size}{also}"


def _factor(model: ModelConfig) -> str:
    return f"{model.rope_scaling.factor:g}"


def _grouping(model: ModelConfig) -> str:
    return f"self_extend.group_size {model.self_extend.group_size} and window_size {model.self_extend.window_size}"
