"""What a probe finds: numbers or texts with named axes, as they are kept in JSON and drawn by a report."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlm.errors import ConfigError, JaxlmError

DIGITS = 7  # what float32 holds


class NotSuited(JaxlmError):
    """A probe that says nothing of this model or data, and why: no fault, the other probes go on."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """Numbers or texts that a probe found, with one named axis for each dimension.

    Raises ConfigError where axes or labels do not fit the values.
    """

    values: Any
    """A number, a text, or (nested) sequences or an array of them; None and NaN stand for what is not known."""
    axes: Sequence[str] = ()
    """What runs along each dimension: "layer", "head", "position", "class", "expert", "token", ..."""
    labels: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    """Names of the places along an axis; without, they are counted from 0."""
    unit: str = ""
    """Of the values: "nats", "tokens"; empty for a pure number or a text."""
    about: str = ""
    """What they say, in one sentence."""

    def __post_init__(self):
        """Turn the values into an array, and hold axes and labels against its shape."""
        array = _array(self.values)
        object.__setattr__(self, "values", array)
        object.__setattr__(self, "axes", tuple(self.axes))
        object.__setattr__(self, "labels", {name: tuple(map(str, given)) for name, given in self.labels.items()})
        if array.ndim != len(self.axes):
            raise ConfigError(
                f"a measure of shape {array.shape} needs {array.ndim} axes, and has {list(self.axes)}: name what runs along "
                'each dimension, Measure(values, ("layer", "head")) say'
            )
        for name, given in self.labels.items():
            if name not in self.axes:
                raise ConfigError(f"a measure has labels for an axis {name!r}: its axes are {list(self.axes)}")
            size = array.shape[self.axes.index(name)]
            if len(given) != size:
                raise ConfigError(f"a measure has {len(given)} labels for {size} places along {name!r}: give one each")

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values; what is no finite number becomes None."""
        labels = {name: list(given) for name, given in self.labels.items()}
        values = _plain(self.values.tolist())
        return {"values": values, "axes": list(self.axes), "labels": labels, "unit": self.unit, "about": self.about}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Measure":
        """Return the measure that `to_dict` wrote."""
        return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls)})


def as_measure(value: Any) -> Measure:
    """Return what a probe gave for one name as a `Measure`: a plain number or text stands for itself."""
    return value if isinstance(value, Measure) else Measure(value)


def _array(values: Any) -> np.ndarray:
    """Return numbers as a numeric array (None: NaN), texts as one of objects; ConfigError for anything else."""
    try:
        array = np.asarray(values)
    except ValueError as fault:
        raise ConfigError(f"a measure's values must be a full grid, rows of one length: {fault}") from fault
    if array.dtype.kind in "US":
        return array.astype(object)
    if array.dtype == object and _all(array, str):
        return array
    if array.dtype == object and _all(array, (int, float)):
        return array.astype(np.float64)  # None becomes NaN
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise ConfigError(f"a measure holds numbers or texts, not {type(values).__name__} of {array.dtype}")
    return array.astype(np.float64) if array.dtype.kind == "V" or array.dtype.name == "bfloat16" else array


def _all(array: np.ndarray, kind: Any) -> bool:
    return all(value is None or isinstance(value, kind) for value in array.ravel())


def _plain(values: Any) -> Any:
    if isinstance(values, list):
        return [_plain(value) for value in values]
    if isinstance(values, float):
        return float(f"{values:.{DIGITS}g}") if math.isfinite(values) else None
    return values
