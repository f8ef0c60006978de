"""How the devices of a group are joined, and how fast they can exchange."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from jaxlm.hardware import Chip
from jaxlm.plan.topology import Topology

# Between the two devices of a TPU7x chip, in links of its torus (Google Cloud's TPU7x page); of v2 and v3 not published.
ON_CHIP_LINKS = 6


@dataclasses.dataclass(frozen=True)
class Wires:
    """How the devices of one group, those that differ along some mesh axes, are joined.

    `sides` has (devices, spacing, whether it is a ring) for each dimension of the torus along which they differ; `near` is how
    many of the group share a slice (of GPUs: a host), `far` over how many slices (hosts) it spreads.
    """

    sides: tuple[tuple[int, int, bool], ...]
    near: int
    far: int

    def bandwidth(self, named: Chip) -> float | None:
        """Return bytes/s that each device can send around the group, one way, or None where it is not published.

        Rings use both directions of a side at once and all sides together; groups that interleave share the links.
        """
        if self.far > 1:
            return named.network_bandwidth * self.near if named.network_bandwidth else None
        if named.link_bandwidth is None or not named.is_tpu:
            return named.link_bandwidth
        per_device = named.link_bandwidth / named.devices_per_chip
        links = sum((2 if ring else 1) / spacing for _, spacing, ring in self.sides)
        return per_device * links if links else named.link_bandwidth * ON_CHIP_LINKS

    def all_to_all_seconds(self, payload: float, named: Chip) -> float | None:
        """Return seconds in which each device sends `payload` bytes, evenly to all of the group: the narrowest cut decides."""
        speed = self.bandwidth(named)
        if speed is None:
            return None
        if self.far > 1 or not self.sides:
            return payload / speed
        per_device = named.link_bandwidth / named.devices_per_chip
        return max(payload * size * spacing / ((8 if ring else 4) * per_device) for size, spacing, ring in self.sides)


def wires(coordinates: Iterable[Sequence[int]], topology: Topology) -> Wires:
    """Return how a group is joined, from its devices' (slice, *torus coordinates, core), of GPUs (host, GPU)."""
    places = [tuple(place) for place in coordinates]
    far = len({place[0] for place in places})
    near = len(places) // far
    if not topology.chip.is_tpu:
        return Wires((), near, far)
    sides, rings = [], topology.chip.wraps(topology.dims)
    for dimension, ring in enumerate(rings):
        values = sorted({place[1 + dimension] for place in places})
        if len(values) > 1:
            spacing = min(b - a for a, b in itertools.pairwise(values))
            sides.append((len(values), spacing, ring and len(values) * spacing == topology.dims[dimension]))
    return Wires(tuple(sides), near, far)


def place(device: Any, topology: Topology) -> tuple[int, ...]:
    """Return a device's (slice, *torus coordinates, core), of a GPU (host, GPU)."""
    if topology.chip.is_tpu:
        return (getattr(device, "slice_index", None) or 0, *device.coords, device.core_on_chip)
    return divmod(device.id, topology.dims[1])
