"""Rotary settings: `rope_parameters` of transformers 5, `rope_theta` and `rope_scaling` of 4, and our values."""

import dataclasses
import math
from typing import Any

from jaxlm.interop.families.fields import LARGEST, Fields
from jaxlm.model.config import ModelConfig
from jaxlm.model.rope_config import RopeScaling
from jaxlm.ops.positions import ntk_base

KINDS = {kind: kind for kind in ("linear", "dynamic", "yarn", "longrope", "llama3", "proportional")} | {"default": "none"}
# Methods that count from the length the model was first trained on.
FROM_ORIGINAL = ("llama3", "yarn", "longrope")
NAMES = frozenset(
    "rope_type type rope_theta factor partial_rotary_factor original_max_position_embeddings attention_factor beta_fast "
    "beta_slow mscale mscale_all_dim truncate short_factor long_factor low_freq_factor high_freq_factor".split()
)


def read_rope(
    f: Fields, *, max_length: int, theta: float = 10_000.0, theta_name: str = "rope_theta", fraction: float = 1.0,
    fraction_name: str = "partial_rotary_factor", partial: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Return the rotary values of a model that has one base for all layers.

    Priorities are those of transformers: what the rotary object holds, then fields of the configuration itself (`theta_name`,
    `fraction_name`), then the family's defaults. `partial`: the family can rotate a part of each head by the plain method.
    """
    given = f.nested("rope_scaling") or f.nested("rope_parameters")
    f.nested("rope_parameters")
    outside = {"rope_theta": f.number(theta_name, theta, 1.0, above=True)}
    outside["partial_rotary_factor"] = f.number(fraction_name, fraction, 0.0, 1.0, above=True)
    original = f.optional_integer("original_max_position_embeddings")
    if original is not None:
        given = {**given, "original_max_position_embeddings": original}
    return _read(Fields(outside | dict(given), f"{f.where}: the rotary settings"), max_length, partial)


def read_rope_by_kind(f: Fields, *, max_length: int, pattern: tuple[str, ...]) -> dict[str, Any]:
    """Return the rotary values of a model whose sliding layers have a base of their own (Gemma 3)."""
    both = Fields(f.nested("rope_parameters"), f"{f.where}: rope_parameters")
    everywhere, local = both.nested("full_attention"), both.nested("sliding_attention")
    both.finish(frozenset())
    full = {"rope_theta": f.number("rope_theta", 1e6, 1.0, above=True)} | dict(everywhere) | dict(f.nested("rope_scaling"))
    sliding = {"rope_theta": f.number("rope_local_base_freq", 1e4, 1.0, above=True)} | dict(local)
    scaled = Fields(full, f"{f.where}: the rotary settings of full_attention")
    # transformers does not look for it inside nested settings.
    scaled.only("truncate", True)
    if "sliding" in pattern:
        scaled.only("partial_rotary_factor", 1.0, 1)
    found = _read(scaled, max_length, False)
    other = Fields(sliding, f"{f.where}: the rotary settings of sliding_attention")
    other.only("rope_type", "default")
    other.only("type", "default")
    base = _read(other, max_length, False)["rope_theta"]
    return found | ({"sliding_rope_theta": base} if "sliding" in pattern else {})


def _read(rope: Fields, max_length: int, partial: bool) -> dict[str, Any]:
    legacy = rope.choice("type", "default", KINDS)
    kind = rope.choice("rope_type", "default", KINDS) if "rope_type" in rope.values else legacy
    fraction = rope.number("partial_rotary_factor", 1.0, 0.0, 1.0, above=True)
    if fraction != 1 and not partial and kind != "proportional":
        raise rope.fault("partial_rotary_factor", fraction, "is not supported: models of this family rotate whole heads")
    original = max_length
    if kind in FROM_ORIGINAL:
        original = rope.integer("original_max_position_embeddings", max_length)
    scaling = RopeScaling(kind=kind, **_method(rope, kind, original, max_length))
    theta = rope.number("rope_theta", None, 1.0, above=True)
    rope.finish(NAMES)
    # Rows beyond the trained length are what these methods are for, and some configurations name that length alone.
    if kind in ("dynamic", "yarn", "longrope"):
        trained = max_length if kind == "dynamic" else original
        max_length = max(max_length, min(math.ceil(trained * max(scaling.factor, 1.0)), LARGEST))
    return {"rope_theta": theta, "rope_fraction": fraction, "rope_scaling": scaling, "max_length": max_length}


def _method(rope: Fields, kind: str, original: int, max_length: int) -> dict[str, Any]:
    """Return the fields of RopeScaling that belong to a kind."""
    if kind == "none":
        return {}
    if kind in ("linear", "proportional"):
        return {"factor": rope.number("factor", 1.0 if kind == "proportional" else None, above=True)}
    if kind == "dynamic":
        return {"factor": rope.number("factor", None, above=True), "original_length": max_length}
    if kind == "llama3":
        return {
            "factor": rope.number("factor", None, above=True), "original_length": original,
            "low_freq_factor": rope.number("low_freq_factor", None, above=True),
            "high_freq_factor": rope.number("high_freq_factor", None, above=True),
        }  # fmt: skip
    factor = rope.optional_number("factor")
    values: dict[str, Any] = {"factor": max_length / original if factor is None else factor, "original_length": original}
    values["attention_factor"] = rope.optional_number("attention_factor")
    if kind == "longrope":
        for name in ("short_factor", "long_factor"):
            values[name] = tuple(float(_entry(rope, name, item)) for item in rope.items(name, (int, float)) or ())
        return values
    for name, usual in (("beta_fast", 32.0), ("beta_slow", 1.0)):
        values[name] = rope.number(name, usual) if rope.get(name) is not None else usual
        values[name] = values[name] or usual
    for name in ("mscale", "mscale_all_dim"):
        values[name] = rope.number(name, 0.0) if rope.get(name) is not None else 0.0
    return values | {"truncate": rope.flag("truncate", True)}


def _entry(rope: Fields, name: str, item: float) -> float:
    """Return one entry of a list of factors, above 0."""
    if not 0 < item < 1e12:
        raise rope.fault(name, item, "must hold numbers above 0")
    return item


def with_plain_base(model: ModelConfig) -> ModelConfig:
    """Return the same function without static NTK-aware scaling, which has no name in transformers: it is a greater base."""
    scaling = model.rope_scaling
    if model.positions != "rope" or scaling.kind != "ntk":
        return model
    theta = ntk_base(model.rotary_dim, model.rope_theta, scaling.factor)
    return dataclasses.replace(model, rope_theta=theta, rope_scaling=RopeScaling())


def write_rope(model: ModelConfig) -> dict[str, Any]:
    """Return `rope_parameters` of transformers 5 for a model's scaled layers."""
    scaling = model.rope_scaling
    kind = "default" if scaling.kind == "none" else scaling.kind
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": model.rope_theta}
    if model.rope_fraction != 1:
        rope["partial_rotary_factor"] = model.rope_fraction
    if kind == "default":
        return rope
    rope["factor"] = scaling.factor
    if kind in FROM_ORIGINAL:
        rope["original_max_position_embeddings"] = scaling.original_length or model.max_length
    if kind == "llama3":
        rope |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    if kind in ("yarn", "longrope") and scaling.attention_factor is not None:
        rope["attention_factor"] = scaling.attention_factor
    if kind == "longrope":
        rope |= {"short_factor": list(scaling.short_factor), "long_factor": list(scaling.long_factor)}
    if kind == "yarn":
        rope |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow, "truncate": scaling.truncate}
        if scaling.mscale or scaling.mscale_all_dim:
            rope |= {"mscale": scaling.mscale, "mscale_all_dim": scaling.mscale_all_dim}
    return rope


def their_max_length(model: ModelConfig) -> int:
    """Return `max_position_embeddings`: what dynamic scaling counts from, or else the longest row."""
    dynamic = model.rope_scaling.kind == "dynamic"
    return model.rope_scaling.original_length or model.max_length if dynamic else model.max_length
