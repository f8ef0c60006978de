"""Frozen dataclasses that check themselves: names, types and ranges, before any device is touched."""

import dataclasses
import functools
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, dataclass_transform

from jaxlm.errors import ConfigError, suggest

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of a number, both included, written as `Annotated[int, Range(1)]`."""

    low: float = float("-inf")
    high: float = float("inf")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config(cls: type[Config]) -> type[Config]:
    """Make `cls` a frozen, keyword-only dataclass whose constructor checks names, types and ranges.

    A method `check(self)`, where there is one, then tests what concerns several fields at once; a class method `from_text`
    makes a word stand for a value where another configuration has the class as a field. All faults are
    `ConfigError`s that name the field, what was given and what would be right.
    """
    cls = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    generated = cls.__init__

    @functools.wraps(generated)
    def __init__(self, *args, **given):
        fields = {f.name: f for f in dataclasses.fields(cls)}
        if args:
            raise ConfigError(f"{cls.__name__} takes its fields by name, for example {next(iter(fields))}={args[0]!r}")
        for name in given:
            if name not in fields:
                raise ConfigError(
                    f"{cls.__name__} has no field {name!r}.{suggest(name, fields)} Its fields: {', '.join(fields)}"
                )
        for name, field in fields.items():
            if name not in given and field.default is field.default_factory is dataclasses.MISSING:
                raise ConfigError(f"{cls.__name__} needs a value for {name!r}")
        generated(self, **given)
        for name, hint in _hints(cls).items():
            object.__setattr__(self, name, _conform(getattr(self, name), hint, f"{cls.__name__}.{name}"))
        if hasattr(self, "check"):
            self.check()

    cls.__init__ = __init__
    return cls


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def _conform(value: Any, hint: Any, where: str) -> Any:
    """Return `value` as the type `hint` asks for, or raise a ConfigError that names `where`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        value = _conform(value, arguments[0], where)
        for bound in (a for a in arguments[1:] if isinstance(a, Range) and value is not None):
            if not bound.low <= value <= bound.high:
                wanted = (
                    f"at least {bound.low:g}" if bound.high == float("inf") else f"between {bound.low:g} and {bound.high:g}"
                )
                raise ConfigError(f"{where} = {value!r} is out of range: it must be {wanted}")
        return value
    if origin is Literal:
        if value not in arguments:
            hintful = suggest(value, map(str, arguments)) if isinstance(value, str) else ""
            raise ConfigError(f"{where} = {value!r} is none of {', '.join(map(repr, arguments))}.{hintful}")
        return value
    if origin in (typing.Union, types.UnionType):
        return _conform_union(value, arguments, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where} = {value!r} must be a tuple, for example ({value!r},)")
        return tuple(_conform(item, arguments[0], f"{where}[{i}]") for i, item in enumerate(value))
    if dataclasses.is_dataclass(hint):
        if isinstance(value, Mapping):
            return from_dict(hint, value)
        if isinstance(value, str) and hasattr(hint, "from_text"):
            return hint.from_text(value)
        if not isinstance(value, hint):
            raise ConfigError(f"{where} = {value!r} must be a {hint.__name__}(...)")
        return value
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where} = {value!r} must be {_name(hint)}, not {type(value).__name__}")
    return value


def _conform_union(value: Any, options: tuple, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    faults = []
    for option in (o for o in options if o is not type(None)):
        try:
            return _conform(value, option, where)
        except ConfigError as fault:
            faults.append(str(fault))
    raise ConfigError("; or ".join(faults))


def _name(hint: Any) -> str:
    return {int: "a whole number", float: "a number", bool: "True or False", str: "text"}.get(hint, str(hint))


def to_dict(value: Any) -> Any:
    """Return a configuration as plain JSON values."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return [to_dict(item) for item in value] if isinstance(value, (list, tuple)) else value


def from_dict(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """Build the configuration that `to_dict` wrote; unknown or ill-typed fields raise ConfigError."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{cls.__name__} must be an object of named fields, not {type(values).__name__}")
    return cls(**values)


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return dotted field names and their plain values: {"model.num_layers": 4, ...}."""
    if not dataclasses.is_dataclass(value):
        return {prefix: to_dict(value)}
    flat = {}
    for field in dataclasses.fields(value):
        flat |= flatten(getattr(value, field.name), f"{prefix}.{field.name}" if prefix else field.name)
    return flat


def difference(left: Any, right: Any) -> list[tuple[str, Any, Any]]:
    """Return (dotted field, left value, right value) wherever two configurations differ; a missing one shows as None."""
    a, b = flatten(left), flatten(right)
    return [(name, a.get(name), b.get(name)) for name in dict.fromkeys([*a, *b]) if a.get(name) != b.get(name)]


def digest(value: Any) -> str:
    """Return 16 hexadecimal digits that change when, and only when, the configuration does."""
    canonical = json.dumps(to_dict(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
