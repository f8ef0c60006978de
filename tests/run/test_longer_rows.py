"""A run goes on at longer rows: it begins from another one's weights with other positions."""

import dataclasses

import numpy as np
import pytest

from jaxlm.errors import ConfigError
from jaxlm.model.rope_config import RopeScaling
from jaxlm.run.directory import load_config
from jaxlm.run.loop import train


def test_a_run_goes_on_at_longer_rows(finished, tmp_path, capsys):
    base = load_config(finished)

    def longer(scaling):
        return dataclasses.replace(
            base, steps=4, init_from=str(finished), batch_size=8,
            model=dataclasses.replace(base.model, max_length=256, rope_scaling=scaling),
            data=dataclasses.replace(base.data, sequence_length=256),
            evaluation=dataclasses.replace(base.evaluation, every=0),
            sample=dataclasses.replace(base.sample, tokens=0),
        )  # fmt: skip

    scaled = longer(RopeScaling(kind="yarn", factor=4.0, original_length=64))
    rows = train(scaled, tmp_path / "yarn")
    said = capsys.readouterr().err
    assert "model.rope_scaling.kind = yarn, there none" in said and "model.max_length = 256, there 64" in said
    assert np.isfinite(rows[0]["loss"])
    with pytest.raises(ConfigError, match=r"trained at 64 tokens: set --model.rope-scaling.original-length 64"):
        train(longer(RopeScaling(kind="yarn", factor=4.0)), tmp_path / "unsaid")
