"""A mesh that is chosen: what it counts, what it keeps, and that it says why."""

import dataclasses
import math
import re

import pytest

from jaxlm.config import from_dict, to_dict
from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.errors import ConfigError
from jaxlm.experiment import Experiment
from jaxlm.experiment_mesh import check_devices, settle_mesh, work_of
from jaxlm.hardware import chip
from jaxlm.layout import MeshConfig
from jaxlm.model.presets import PRESETS
from jaxlm.train.arrange import estimate


def of(preset, rows, length, **fields):
    data = DataConfig(sequence_length=length, tokenizer=TokenizerConfig(kind="byte", vocab_size=259))
    return Experiment(name="x", steps=10, batch_size=rows, model=PRESETS[preset](), data=data, **({"mesh": "auto"} | fields))


def test_auto_is_a_word_for_a_mesh_and_survives_json():
    experiment = of("1b", 16, 1024)
    assert experiment.mesh == MeshConfig(auto=True)
    assert from_dict(Experiment, to_dict(experiment)) == experiment
    with pytest.raises(ConfigError, match="mesh = 'best' is no mesh: write \"auto\""):
        of("1b", 16, 1024, mesh="best")


@pytest.mark.parametrize(
    ("experiment", "devices", "kind", "slices", "sizes", "reason"),
    [
        (of("1b", 256, 4096, remat="full"), 16, "v5e", 1, {"data": 16}, "data 16: rows and fully sharded weights"),
        (
            of("8b", 16, 8192, remat="full"),
            256,
            "v5p",
            1,
            {"data": 16},
            "rows or weights do not divide over the devices without",
        ),
        (of("switch-base", 256, 512), 16, "v5e", 1, {}, r"expert \d+: modelled step .* s without it"),
        (of("8b", 256, 8192, remat="full"), 128, "v5p", 2, {"replica": 2, "data": 64}, "replica 2: one replica a slice"),
        (of("70b", 32, 8192, remat="full"), 16, "v5e", 1, {}, "no arrangement fits: this one needs about .* --remat full"),
        (of("nano", 8, 256, mesh=MeshConfig(auto=True, model=2)), 8, None, 1, {"data": 4, "model": 2}, "model 2: as given"),
    ],
)
def test_choices_and_their_reasons(experiment, devices, kind, slices, sizes, reason):
    choice = settle_mesh(experiment, devices, kind and chip(kind), slices)
    assert math.prod(choice.shape.values()) == devices
    assert sizes.items() <= choice.shape.items()
    check_devices(dataclasses.replace(experiment, mesh=MeshConfig(**choice.shape)), devices)
    assert len(choice.reasons) >= sum(size > 1 for size in choice.shape.values())
    assert re.search(reason, "\n".join(choice.reasons)), choice.reasons


def test_memory_decides_before_time():
    # Eight devices with memory for the model fully sharded, but not for the logits and activations of more rows.
    experiment = of("8b", 32, 8192, remat="full")
    work, v5p = work_of(experiment, chip("v5p")), chip("v5p")
    one = dict(replica=1, data=1, expert=1, context=1, model=1)
    whole = estimate(work, one, v5p)
    parts = estimate(work, one | {"data": 8}, v5p)
    for kind in ("parameters", "optimizer", "activations"):
        assert whole.memory[kind] == pytest.approx(8 * parts.memory[kind], rel=1e-3)
    assert whole.wire["weights"] == 0
    # Gathered twice and scattered once, 7/8 of it, in bfloat16; norms, which are whole everywhere, are next to nothing.
    assert parts.wire["weights"] == pytest.approx(3 * 7 / 8 * 2 * 8.03e9, rel=1e-3)
    tensor = estimate(work, one | {"data": 4, "model": 2}, v5p)
    tokens = 8 * 8192
    assert tensor.wire["model"] == 3 * 32 * 2 * tokens * 4096 * 2  # three passes, two sums a layer, half of 2 x 2 bytes


def test_nothing_divides():
    with pytest.raises(
        ConfigError,
        match=r"no arrangement of 7 devices works.*model.hidden_size = 128 cannot be split evenly over mesh.data = 7",
    ):
        settle_mesh(of("nano", 8, 256), 7)
    with pytest.raises(ConfigError, match=r"mesh.data = 4, as given, is no part of 6 devices: .*--mesh.data 0"):
        settle_mesh(of("nano", 8, 256, mesh=MeshConfig(auto=True, data=4)), 6)


@pytest.mark.parametrize(
    ("mesh", "length", "devices", "message"),
    [
        (MeshConfig(context=8), 36, 8, r"data.sequence_length = 36 cannot .* mesh.context = 8.*such as 1, 2, 4, .*-length 32"),
        (
            MeshConfig(replica=2, data=2, expert=2),
            32,
            8,
            r"= 12 rows do not divide over mesh.replica x mesh.data x mesh.expert = 8",
        ),
        (MeshConfig(model=8), 32, 8, r"model.num_heads = 4 .* mesh.model = 8 .*--mesh.model to a divisor such as 1, 2, 4"),
        (
            MeshConfig(replica=3),
            32,
            8,
            r"3 x ... x 1 x 1 x 1 does not make up 8 devices: .*--mesh.replica 1, or --mesh.auto",
        ),
    ],
)
def test_uneven_meshes_are_refused_in_words(mesh, length, devices, message):
    experiment = dataclasses.replace(of("nano", 12, length), mesh=mesh)
    with pytest.raises(ConfigError, match=message):
        check_devices(experiment, devices)


def test_experts_that_do_not_divide_name_the_sizes_that_work():
    with pytest.raises(ConfigError, match=r"model.moe.num_experts = 8 .* mesh.expert = 16 .*a divisor such as 2, 4, 8"):
        check_devices(of("mixtral-8x7b", 64, 512, mesh=MeshConfig(expert=16)), 16)
