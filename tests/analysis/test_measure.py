"""Measures hold their axes against their values, and come back from JSON as they were."""

import json

import numpy as np
import pytest

from jaxlm.analysis.measure import Measure, as_measure
from jaxlm.errors import ConfigError


def test_numbers_and_texts_survive_json():
    kept = Measure(np.float32([[1 / 3, np.nan], [np.inf, 2]]), ("layer", "head"), {"head": ["a", "b"]}, "nats", "what it is")
    values = json.loads(json.dumps(kept.to_dict(), allow_nan=False))
    assert values["values"] == [[0.3333333, None], [None, 2.0]]
    again = Measure.from_dict(values)
    assert again.to_dict() == kept.to_dict() and np.isnan(again.values[0, 1])
    assert Measure(["x", "y"], ("class",)).to_dict()["values"] == ["x", "y"]
    assert as_measure(3).to_dict()["values"] == 3 and as_measure(True).to_dict()["values"] is True
    assert as_measure(np.float64("nan")).to_dict()["values"] is None and as_measure("text").to_dict()["values"] == "text"
    assert Measure([None, 1.5], ("layer",)).to_dict()["values"] == [None, 1.5]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (([1.0, 2.0],), r"shape \(2,\) needs 1 axes, and has \[\]"),
        (([1.0], ("layer",), {"head": ["a"]}), r"labels for an axis 'head': its axes are \['layer'\]"),
        (([1.0], ("layer",), {"layer": ["a", "b"]}), "2 labels for 1 places along 'layer'"),
        (([[1.0], [1.0, 2.0]], ("layer", "head")), "rows of one length"),
        (({"a": 1},), "numbers or texts, not dict"),
        ((["a", 1.0, object()], ("layer",)), "numbers or texts"),
    ],
)
def test_what_does_not_fit(given, said):
    with pytest.raises(ConfigError, match=said):
        Measure(*given)
