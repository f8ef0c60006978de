"""How long a row a model reads, and what lets it read longer ones."""

from jaxlm.errors import DataError
from jaxlm.model.config import ModelConfig


def check_reach(length: int, model: ModelConfig, what: str = "rows") -> str:
    """Return a warning where `what` has more tokens than the model is made for, an empty text where it has not.

    Raises DataError where it cannot be read at all: learned positions end, and so do the relative positions of Self-Extend.
    """
    if length <= model.max_length:
        return ""
    said = f"{what} have {length} tokens: this model reads at most {model.max_length}"
    if model.positions == "learned":
        raise DataError(f"{said}, for it has learned positions and none beyond")
    if model.self_extend.on:
        raise DataError(f"{said} with {_grouping(model)}: {further(model)}")
    how = "as it was trained" if model.rope_scaling.kind == "none" else f"with rope_scaling.factor {_factor(model)}"
    return f"{said}, {how}; to read further, {further(model)}"


def further(model: ModelConfig) -> str:
    """Return which options let a model read longer rows; an empty text where none does."""
    if model.positions == "learned":
        return ""
    if model.positions != "rope":
        return "set --extend.max-length"
    if model.self_extend.on:
        return "raise --extend.self-extend.group-size (the window a multiple of it), or set --extend.max-length below its limit"
    if model.rope_scaling.kind != "none":
        kind = model.rope_scaling.kind
        return f"raise --extend.rope-scaling.factor above {_factor(model)}, with --extend.rope-scaling.kind {kind}"
    return "see --extend.self-extend.window-size and --extend.rope-scaling.kind"


def _factor(model: ModelConfig) -> str:
    return f"{model.rope_scaling.factor:g}"


def _grouping(model: ModelConfig) -> str:
    return f"self_extend.group_size {model.self_extend.group_size} and window_size {model.self_extend.window_size}"
