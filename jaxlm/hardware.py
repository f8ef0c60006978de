"""What accelerators can do, as published: the figures behind MFU, plans and the choice of a mesh.

TPUs: Google Cloud's "system architecture" page of each generation; a link's one-way bandwidth is the chip's bidirectional
figure over twice its links. GPUs: NVIDIA's data sheets (SXM forms unless named), one NIC of the reference system a GPU.
Peaks are dense bfloat16. Memory of a TPU is what its compiler lets a program have (libtpu 0.0.42: it keeps the rest).
"""

import dataclasses
import re
from collections.abc import Sequence

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of accelerator. Figures are of a device as JAX counts them (of a v2, v3 or tpu7x: half a chip)."""

    name: str
    """As a topology is called: "v5p", "h100"."""
    kinds: tuple[str, ...]
    """How JAX and the vendor name the kind; looked for in a device's `device_kind`."""
    peak_flops: float
    """bfloat16 FLOP/s."""
    memory_bytes: float
    """Bytes of device memory that a program may use."""
    memory_bandwidth: float
    """Bytes/s of it."""
    clock: float | None = None
    """Hz of the cycles that the TPU compiler estimates; None: it estimates none."""
    dimensions: int = 0
    """Of the torus: 2 or 3; 0 for devices on a switch."""
    link_bandwidth: float | None = None
    """Bytes/s one way: of one link between neighbouring chips of a torus; of all a GPU's NVLinks together."""
    network_bandwidth: float | None = None
    """Bytes/s one way that a device has to other slices or hosts; None where it is not published."""
    devices_per_chip: int = 1
    """Devices that share a chip's links."""
    host_devices: int = 4
    """Devices of one host in a slice of several hosts."""

    @property
    def is_tpu(self) -> bool:
        """Whether it is a TPU."""
        return self.dimensions > 0

    def wraps(self, dims: Sequence[int]) -> tuple[bool, ...]:
        """Return along which dimensions of a slice (in chips) the links close to rings.

        3-D slices made of whole cubes of 4 x 4 x 4 chips do in all three (optical switches join opposite faces); 2-D
        slices only along a whole side of the 16 x 16 pod.
        """
        if self.dimensions == 3:
            return (all(size % 4 == 0 for size in dims),) * len(dims)
        return tuple(size == 16 for size in dims)


def _tpu(
    name: str,
    kinds: Sequence[str],
    peak: float,
    memory: float,
    bandwidth: float,
    clock: float,
    dimensions: int,
    link: float,
    network: float | None,
    **counts: int,
) -> Chip:
    return Chip(
        name=name, kinds=tuple(kinds), peak_flops=peak, memory_bytes=memory * GIB, memory_bandwidth=bandwidth, clock=clock,
        dimensions=dimensions, link_bandwidth=link, network_bandwidth=network, **counts,
    )  # fmt: skip


def _gpu(
    name: str, peak: float, memory: float, bandwidth: float, link: float | None = None, network: float | None = None
) -> Chip:
    return Chip(
        name=name.lower().replace(" ", "-"), kinds=(name,), peak_flops=peak, memory_bytes=memory, memory_bandwidth=bandwidth,
        link_bandwidth=link, network_bandwidth=network, host_devices=8,
    )  # fmt: skip


CHIPS = (
    _tpu("v2", ["TPU v2"], 22.5e12, 7.48, 350e9, 0.7e9, 2, 62e9, None, devices_per_chip=2, host_devices=8),
    _tpu("v3", ["TPU v3"], 61.5e12, 15.48, 450e9, 0.94e9, 2, 82e9, None, devices_per_chip=2, host_devices=8),
    _tpu("v4", ["TPU v4"], 275e12, 30.75, 1228e9, 1.05e9, 3, 50e9, None),
    _tpu("v5e", ["v5litepod", "TPU v5e", "TPU v5 lite"], 197e12, 15.75, 819e9, 1.5e9, 2, 50e9, 25e9 / 8),
    _tpu("v5p", ["TPU v5p", "TPU v5"], 459e12, 95.74, 2765e9, 1.75e9, 3, 100e9, 50e9 / 8),
    _tpu("v6e", ["TPU v6e", "TPU v6 lite"], 918e12, 31.25, 1638e9, 1.75e9, 2, 100e9, 100e9 / 8),
    _tpu("tpu7x", ["TPU7x"], 1153.5e12, 94.75, 3690e9, 1.9e9, 3, 100e9, 50e9 / 8, devices_per_chip=2, host_devices=8),
    _gpu("V100", 125e12, 32e9, 900e9, 150e9, 12.5e9),
    _gpu("A100", 312e12, 80e9, 2039e9, 300e9, 25e9),
    _gpu("A10", 125e12, 24e9, 600e9),
    _gpu("L4", 121e12, 24e9, 300e9),
    _gpu("H100 PCIe", 756e12, 80e9, 2000e9),
    _gpu("H100", 989e12, 80e9, 3350e9, 450e9, 50e9),
    _gpu("H200", 989e12, 141e9, 4800e9, 450e9, 50e9),
    _gpu("B200", 2250e12, 180e9, 8000e9, 900e9, 50e9),
)


def chip(name: str) -> Chip | None:
    """Return the chip of a topology's prefix ("v5p") or a device's `device_kind` ("TPU v5"), or None where it is not known."""
    text = name.lower()
    found = [
        (len(known), each)
        for each in CHIPS
        for known in (each.name, *each.kinds)
        if known.lower() == text or re.search(rf"\b{re.escape(known.lower())}\b", text)
    ]
    return max(found, key=lambda pair: pair[0])[1] if found else None
