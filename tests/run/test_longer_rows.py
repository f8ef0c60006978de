"""A run goes on at longer rows: it begins from another one's weights with other positions."""

import dataclasses
import math

import pytest

from jaxlm.errors import ConfigError
from jaxlm.model.rope_config import RopeScaling
from jaxlm.run.directory import load_config
from jaxlm.run.loop import train


def test_a_run_goes_on_at_longer_rows(finished, tmp_path, capsys):
    base = load_config(finished)

    def longer(scaling, length=256, **changes):
        return dataclasses.replace(
            base, steps=4, init_from=str(finished), batch_size=8,
            model=dataclasses.replace(base.model, max_length=length, rope_scaling=scaling, **changes),
            data=dataclasses.replace(base.data, sequence_length=length),
            evaluation=dataclasses.replace(base.evaluation, every=0),
            sample=dataclasses.replace(base.sample, tokens=0),
        )  # fmt: skip

    rows = train(longer(RopeScaling(kind="yarn", factor=4.0, original_length=64)), tmp_path / "yarn")
    said = capsys.readouterr().err
    assert "model.rope_scaling.kind = yarn, there none" in said and "model.max_length = 256, there 64" in said
    # It begins from what was learnt (a fresh model gives every byte the same chance), but for what longer rows cost.
    learnt = next(row["loss"] for row in reversed(rows_of(finished)) if row["split"] == "validation")
    assert rows[0]["loss"] < min(learnt + 0.35, math.log(259) - 1.5)
    for wrong, message in [
        (longer(RopeScaling(kind="yarn", factor=4.0)), r"original length is 64 tokens: set .*original-length 64"),
        (
            longer(RopeScaling(), 64, rope_theta=5e5),
            r"rope_theta = 500000.0, .* has 10000.0: .*--model.max-length above 64",
        ),
        (longer(RopeScaling(kind="linear", factor=2.0), 64), "it has learnt those positions"),
    ]:
        with pytest.raises(ConfigError, match=message):
            train(wrong, tmp_path / "wrong")


def rows_of(folder):
    from jaxlm.run.metrics import read_rows

    return read_rows(folder / "metrics.jsonl")
