"""A step's time from what its compiler says of it and what its chips can do: a model, never a measurement."""

import dataclasses
import math
from typing import Any

import numpy as np

from jaxlm.experiment import Experiment
from jaxlm.hardware import Chip
from jaxlm.model import flops
from jaxlm.plan.collectives import Traffic, summary
from jaxlm.plan.compiled import Compiled
from jaxlm.plan.kernels import Work
from jaxlm.plan.topology import Topology
from jaxlm.plan.wires import Wires, wires


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wire:
    """What one kind of collective moves over the same mesh axes in a step, a device."""

    traffic: Traffic
    joined: Wires
    seconds: float | None
    """At the published bandwidth of the links; None where that is not published."""
    asynchronous_seconds: float | None
    """Those of `seconds` whose collectives are started ahead of their use."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A modelled step, in seconds, on each device."""

    cycles_seconds: float
    """The compiler's cycles over the clock; 0 where it gives none."""
    kernel_seconds: float
    """Kernels, each at the chip's peak or its memory's bandwidth, whichever takes longer."""
    other_seconds: float
    """The rest that the compiler does not cost, likewise."""
    wires: tuple[Wire, ...]
    hardware_flops: float
    """FLOPs a device executes: matrix products and those kernels of which they are known, recomputation included."""
    model_flops: float
    """FLOPs a device owes the model: `flops.train_flops_per_token`."""
    tokens: int
    """Tokens of a step, all devices together."""
    devices: int
    peak_flops: float

    @property
    def compute_seconds(self) -> float:
        """Everything but collectives."""
        return self.cycles_seconds + self.kernel_seconds + self.other_seconds

    @property
    def wire_seconds(self) -> float:
        """All collectives, one after the other; those of unknown bandwidth left out."""
        return sum(wire.seconds or 0.0 for wire in self.wires)

    @property
    def overlapped(self) -> float:
        """A step whose collectives hide behind compute as far as there is compute: the lower bound."""
        return max(self.compute_seconds, self.wire_seconds)

    @property
    def exposed(self) -> float:
        """A step whose collectives all wait their turn: the upper bound."""
        return self.compute_seconds + self.wire_seconds

    @property
    def scheduled(self) -> float:
        """Between the two: asynchronous collectives hide behind compute, the others wait their turn. Candidates rank by it."""
        beside = sum(wire.asynchronous_seconds or 0.0 for wire in self.wires)
        return max(self.compute_seconds, beside) + self.wire_seconds - beside

    def utilisation(self, seconds: float) -> float:
        """Return model FLOPs utilisation of steps that take so long."""
        return self.model_flops / (seconds * self.peak_flops) if seconds else math.nan


def estimate(experiment: Experiment, compiled: Compiled, topology: Topology) -> Estimate:
    """Return the modelled step of a program that fits."""
    costs, chip = compiled.costs, topology.chip
    model = experiment.model.for_platform("tpu" if chip.is_tpu else "cuda")
    tokens = experiment.rows * experiment.data.sequence_length
    per_token = flops.train_flops_per_token(model, experiment.data.sequence_length, experiment.trained_share)
    kernel_flops = sum((work.flops or 0.0) * work.times for work in costs.kernels)
    return Estimate(
        cycles_seconds=costs.cycles / chip.clock if chip.clock else 0.0,
        kernel_seconds=sum(roofline(work, chip) for work in costs.kernels),
        # Copies between memories run beside the rest; their bytes are small against it.
        other_seconds=sum(roofline(work, chip) for work in costs.uncosted if not work.asynchronous),
        wires=tuple(_wire(traffic, compiled.facts, topology) for traffic in summary(costs.collectives)),
        hardware_flops=costs.flops + kernel_flops,
        model_flops=per_token * tokens / topology.num_devices,
        tokens=tokens,
        devices=topology.num_devices,
        peak_flops=chip.peak_flops,
    )


def roofline(work: Work, chip: Chip) -> float:
    """Return seconds of all executions at the chip's peak or at its memory's bandwidth, whichever takes longer."""
    return work.times * max((work.flops or 0.0) / chip.peak_flops, work.bytes / chip.memory_bandwidth)


def group_of(axes: tuple[str, ...], facts: dict[str, Any]) -> list[tuple[int, ...]]:
    """Return the places of the devices that differ from the mesh's first along these axes alone."""
    sizes = tuple(facts["mesh"].values())
    places = np.array(facts["places"]).reshape(*sizes, -1)
    index = tuple(slice(None) if axis in axes else 0 for axis in facts["mesh"])
    return [tuple(map(int, place)) for place in places[index].reshape(-1, places.shape[-1])]


def _wire(traffic: Traffic, facts: dict[str, Any], topology: Topology) -> Wire:
    joined = wires(group_of(traffic.axes, facts), topology)
    speed = joined.bandwidth(topology.chip)
    if traffic.kind == "send":  # between slices, whatever the axes
        speed = topology.chip.network_bandwidth
    elif traffic.kind == "collective-permute" and joined.far == 1 and topology.chip.is_tpu:
        speed = topology.chip.link_bandwidth / topology.chip.devices_per_chip  # to one neighbour
    seconds = traffic.wire_bytes / speed if speed else None
    if "all-to-all" in traffic.kind and seconds is not None:
        seconds = joined.all_to_all_seconds(traffic.bytes, topology.chip)
    share = traffic.asynchronous_wire_bytes / traffic.wire_bytes if traffic.wire_bytes else 0.0
    return Wire(
        traffic=traffic, joined=joined, seconds=seconds,
        asynchronous_seconds=None if seconds is None else seconds * share,
    )  # fmt: skip
