"""Configurations check themselves and survive the trip to JSON."""

import json
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.config import Range, config, difference, digest, flatten, from_dict, to_dict
from jaxlm.errors import ConfigError


@config
class Inner:
    size: Annotated[int, Range(1, 100)] = 3
    kinds: tuple[Literal["a", "b"], ...] = ("a",)


@config
class Outer:
    name: str
    rate: Annotated[float, Range(0)] = 0.5
    limit: int | None = None
    on: bool = False
    inner: Inner = Inner()

    def check(self):
        if self.limit is not None and self.limit < self.inner.size:
            raise ConfigError("limit is below inner.size: raise it")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Outer(nme="x"), "no field 'nme'. Did you mean 'name'"),
        (lambda: Outer(), "needs a value for 'name'"),
        (lambda: Outer("x"), "by name"),
        (lambda: Outer(name=3), "must be text, not int"),
        (lambda: Outer(name="x", on=1), "True or False"),
        (lambda: Outer(name="x", rate="fast"), "must be a number"),
        (lambda: Outer(name="x", rate=float("nan")), "must be a number, not NaN"),
        (lambda: Outer(name="x", rate=-0.1), "at least 0"),
        (lambda: Outer(name="x", inner=Inner(size=101)), "between 1 and 100"),
        (lambda: Outer(name="x", inner=Inner(size=2.0)), "whole number"),
        (lambda: Outer(name="x", inner=Inner(size=True)), "whole number"),
        (lambda: Outer(name="x", inner=Inner(kinds=("a", "c"))), r"kinds\[1\] = 'c' is none of 'a', 'b'"),
        (lambda: Outer(name="x", inner=Inner(kinds="a")), "tuple"),
        (lambda: Outer(name="x", inner={"sise": 3}), "Did you mean 'size'"),
        (lambda: Outer(name="x", limit=2), "raise it"),
        (lambda: from_dict(Outer, [1]), "named fields"),
    ],
)
def test_faults_name_the_field_and_the_fix(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


experiments = st.builds(
    Outer, name=st.text(), rate=st.floats(0, allow_infinity=False), limit=st.none() | st.integers(100, 1 << 62),
    on=st.booleans(),
    inner=st.builds(Inner, size=st.integers(1, 100), kinds=st.lists(st.sampled_from("ab")).map(tuple)),
)  # fmt: skip


@given(experiments)
def test_json_and_back_is_the_identity(value):
    again = from_dict(Outer, json.loads(json.dumps(to_dict(value))))
    assert again == value and hash(again) == hash(value) and digest(again) == digest(value)


@given(experiments, experiments)
def test_the_difference_turns_one_into_the_other(left, right):
    changes = difference(left, right)
    flat = flatten(left)
    for name, before, now in changes:
        assert flat[name] == before
        flat[name] = now
    assert flat == flatten(right)
    assert bool(changes) == (digest(left) != digest(right))
