"""Slices and hosts: who forms a slice, and what a mesh over several is refused with."""

import types
from pathlib import Path

import pytest
from jax import P

from jaxlm.errors import ConfigError
from jaxlm.experiment_file import load_experiment
from jaxlm.experiment_mesh import check_devices
from jaxlm.layout import Layout, slices_of


def devices(platform, slices):
    return [types.SimpleNamespace(platform=platform, slice_index=index) for index in slices]


def test_only_tpus_form_slices():
    assert slices_of(devices("tpu", [0, 0, 1, 1])) == 2
    assert slices_of(devices("gpu", [0, 0, 1, 1])) == slices_of(devices("cpu", [0, 1, 2])) == 1  # there they are hosts


def test_a_slice_holds_whole_replicas():
    llama = load_experiment(Path(__file__).parents[1] / "experiments" / "llama_1b.py")
    with pytest.raises(
        ConfigError, match="mesh.replica = 1 does not divide over 2 slices: .*--mesh.replica 2 .*--mesh.data 32"
    ):
        check_devices(llama, 64, slices=2)


def test_what_is_split_over_data_takes_others_along_but_those_that_the_array_uses():
    layout = Layout()
    assert layout.spec("batch", "length", None) == P(("replica", "data", "expert"), "context", None)
    assert layout.spec("embed", "ffn") == P(("data", "expert", "context"), "model")
    assert layout.spec("expert", "embed", "ffn") == P("expert", ("data", "context"), "model")
