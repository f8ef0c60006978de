"""Frozen dataclasses that check themselves: names, types and ranges, before any device is touched."""

import dataclasses
import functools
import hashlib
import json
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, dataclass_transform

from jaxlm.errors import ConfigError, suggest
from jaxlm.function_file import identity, names_function, settled, values_of_others

Config = TypeVar("Config")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_DEEPEST = 100  # no file of ours comes near, and functions that walk through values call themselves at every level


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of a number, both included, written as `Annotated[int, Range(1)]`."""

    low: float = float("-inf")
    high: float = float("inf")


@dataclasses.dataclass(frozen=True)
class Function:
    """A function in a file of the user's, spelled FILE.py:NAME, written as `Annotated[str, Function("route(logits)")]`.

    The value gets the digest of the file as it is: FILE.py:NAME@0123abcd. One that has a digest is taken as it is, so that a
    configuration can be read where the file is not; `function_file.load` is what holds it against the file.
    """

    call: str
    """How it is called, for messages."""
    optional: bool = False
    """An empty text is none."""


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
    def __init__(self, /, *args, **given):  # a file may name a field "self"
        fields = {f.name: f for f in dataclasses.fields(cls)}
        if args:
            raise ConfigError(f"{cls.__name__} takes its fields by name, for example {next(iter(fields))}={args[0]!r}")
        for name in given:
            if name not in fields:
                raise ConfigError(
                    f"{cls.__name__} has no field {name!r:.80}.{suggest(name, fields)} Its fields: {', '.join(fields)}"
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
                raise ConfigError(f"{where} = {value!r:.200} is out of range: it must be {wanted}")
        for function in (a for a in arguments[1:] if isinstance(a, Function) and (value or not a.optional)):
            value = _settle(value, function, where)
        return value
    if origin is Literal:
        if value not in arguments:
            hintful = suggest(value, map(str, arguments)) if isinstance(value, str) else ""
            raise ConfigError(f"{where} = {value!r:.200} is none of {', '.join(map(repr, arguments))}.{hintful}")
        return value
    if origin in (typing.Union, types.UnionType):
        return _conform_union(value, arguments, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where} = {value!r:.200} must be a tuple, for example ({value!r:.80},)")
        return tuple(_conform(item, arguments[0], f"{where}[{i}]") for i, item in enumerate(value))
    if dataclasses.is_dataclass(hint):
        if isinstance(value, Mapping):
            return from_own(hint, value)
        if isinstance(value, str) and hasattr(hint, "from_text"):
            return hint.from_text(value)
        if not isinstance(value, hint):
            raise ConfigError(f"{where} = {value!r:.200} must be a {hint.__name__}(...)")
        return value
    if hint is float and type(value) is int:
        try:
            return float(value)
        except OverflowError as fault:
            raise ConfigError(f"{where} has {len(str(value))} digits: that is no number to compute with") from fault
    if hint is int and type(value) is int and abs(value) >= 1 << 63:
        raise ConfigError(f"{where} has {len(str(value))} digits: that is no number to compute with")
    if type(value) is not hint:
        raise ConfigError(f"{where} = {value!r:.200} must be {_name(hint)}, not {type(value).__name__}")
    if value != value:
        raise ConfigError(f"{where} = nan is out of range: it must be a number, not NaN")
    return value


def _settle(value: str, function: Function, where: str) -> str:
    if not names_function(value):
        raise ConfigError(f"{where} = {value!r:.200} is not FILE.py:NAME, a function {function.call} in a file of your own")
    try:
        return settled(value)
    except ConfigError as fault:
        raise ConfigError(f"{where} = {fault}") from fault


def _conform_union(value: Any, options: tuple, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    if isinstance(value, str) and names_function(value):  # what is wrong with it is no matter of the other names
        options = [o for o in options if any(isinstance(a, Function) for a in typing.get_args(o)[1:])] or options
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


def read_json(text: str | bytes, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Return JSON values; ValueError, in words that go on after a file's name, where the text is none or nested too deeply.

    Half a surrogate pair is refused, too: Python's reader takes it for text, and no file or terminal can be given it. `pairs`
    makes the value of an object, of its names and values.
    """
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        values = json.loads(text, object_pairs_hook=pairs)
    except RecursionError as fault:
        raise ValueError("is nested too deeply") from fault
    except ValueError as fault:
        raise ValueError(f"is not JSON: {fault}") from fault
    if text.count("[") + text.count("{") > _DEEPEST and _is_deep(values):
        raise ValueError("is nested too deeply")
    if _ESCAPED_SURROGATE.search(text):
        try:
            json.dumps(values, ensure_ascii=False).encode()
        except UnicodeEncodeError as fault:
            raise ValueError("holds half a surrogate pair, which is no text") from fault
    return values


def _is_deep(values: Any) -> bool:
    level = [values]
    for _ in range(_DEEPEST):
        lists = (value.values() if isinstance(value, dict) else value for value in level if isinstance(value, (dict, list)))
        level = [inner for each in lists for inner in each]
    return bool(level)


def from_dict(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """Build the configuration that `to_dict` wrote; unknown or ill-typed fields raise ConfigError.

    What functions it names is somebody else's word: each has a digest, and is not trusted for being named here.
    """
    with values_of_others():
        return from_own(cls, values)


def from_own(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """Build a configuration from values that the user gave to this process, as `from_dict` does from those of a file."""
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
    """Return 16 hexadecimal digits that change when, and only when, the configuration does.

    Where the file of a function lies is no part of it: its content is.
    """
    canonical = json.dumps(_identities(to_dict(value)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _identities(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: _identities(value) for name, value in values.items()}
    return [_identities(value) for value in values] if isinstance(values, list) else identity(values)
