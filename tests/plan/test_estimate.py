"""Step times from costs that were written down by hand."""

import itertools

import pytest

from jaxlm.data.prepare import DataConfig
from jaxlm.experiment import Experiment
from jaxlm.layout import MESH_AXES
from jaxlm.model.presets import llama_125m
from jaxlm.plan.collectives import Collective
from jaxlm.plan.compiled import Compiled
from jaxlm.plan.costs import ProgramCosts
from jaxlm.plan.estimate import estimate
from jaxlm.plan.kernels import Work
from jaxlm.plan.topology import parse_topology


def collective(kind, axes, wire, times=1, asynchronous=False):
    return Collective(
        kind=kind, bytes=2 * wire, wire_bytes=wire, dtype="bf16", group_size=4, axes=axes, times=times,
        asynchronous=asynchronous, cycles_beside=0, op_name="step", source="a.py:1",
    )  # fmt: skip


def work(flops, size, times, asynchronous=False):
    return Work(
        name="splash_mha_fwd", operands=(), results=(), bytes=size, flops=flops, times=times, asynchronous=asynchronous,
        op_name="attention", source="a.py:2",
    )  # fmt: skip


def test_cycles_kernels_and_wires_add_up_to_both_bounds():
    topology, _ = parse_topology("v5e:4x4")
    chip = topology.chip
    experiment = Experiment(
        name="t", steps=10, batch_size=16, model=llama_125m(), data=DataConfig(sequence_length=2048)
    )  # fmt: skip
    mesh = dict.fromkeys(MESH_AXES, 1) | {"data": 4, "model": 4}
    facts = {"mesh": mesh, "places": [(0, x, y, 0, 0) for x, y in itertools.product(range(4), range(4))], "fits": True}
    costs = ProgramCosts(
        cycles=int(0.010 * chip.clock), flops=2e12, cycles_by_source=(), unknown_loops=(),
        kernels=(work(0.001 * chip.peak_flops, 1, 2), work(None, int(0.003 * chip.memory_bandwidth), 1)),
        uncosted=(work(None, int(0.001 * chip.memory_bandwidth), 1), work(None, 10**12, 1, asynchronous=True)),
        collectives=(
            collective("all-gather", ("data",), int(0.002 * chip.link_bandwidth), times=3, asynchronous=True),
            collective("all-reduce", ("data", "model"), int(0.008 * chip.link_bandwidth)),
        ),
    )  # fmt: skip
    found = estimate(experiment, Compiled(facts, costs, "code", False), topology)
    assert found.compute_seconds == pytest.approx(0.010 + 0.002 + 0.003 + 0.001, rel=1e-4)
    # Lines of four use one link; both sides of the slice together two.
    assert {wire.traffic.kind: round(wire.seconds, 6) for wire in found.wires} == {"all-gather": 0.006, "all-reduce": 0.004}
    assert found.overlapped == pytest.approx(0.016, rel=1e-4)
    assert found.exposed == pytest.approx(0.026, rel=1e-4)
    assert found.scheduled == pytest.approx(0.020, rel=1e-4)  # what is started ahead hides behind compute
    assert found.hardware_flops == pytest.approx(2e12 + 0.002 * chip.peak_flops)
    assert found.utilisation(found.scheduled) == pytest.approx(found.model_flops / (found.scheduled * 197e12))
    # 6 FLOPs a parameter and token, and attention; a sixteenth on each device.
    assert 6 * 124e6 * 16 * 2048 / 16 < found.model_flops < 9 * 124e6 * 16 * 2048 / 16
