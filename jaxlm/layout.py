"""Where arrays live: logical axis names -> mesh axes, and the one mesh of a run."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import jax
from jax.sharding import AxisType, Mesh, PartitionSpec

from jaxlm.config import Range, config
from jaxlm.errors import ConfigError

MESH_AXES = ("data", "expert", "model")
MeshAxis = Literal["data", "expert", "model"] | None


@config
class Layout:
    """The mesh axis over which each logical axis of a weight or an activation is split (none: kept whole).

    Devices along `expert` hold different experts; to all else they are more of `data`: what is split over `data` is split
    over `expert` too, unless the same array is split over it already (an expert's weights).
    """

    batch: MeshAxis = "data"
    """Rows of a batch."""
    embed: MeshAxis = "data"
    """The model width of every weight: split, parameters and optimizer state are fully sharded (FSDP)."""
    heads: MeshAxis = "model"
    """Query heads (tensor parallelism)."""
    kv_heads: MeshAxis = "model"
    """Key-value heads; keep them whole where there are fewer than the model axis is wide."""
    ffn: MeshAxis = "model"
    """The hidden width of the feed-forward layer, and of every expert (tensor parallelism)."""
    expert: MeshAxis = "expert"
    """Experts of a mixture; kept whole, every device holds them all."""
    vocab: MeshAxis = "model"
    """Rows of the embedding and of the output head."""

    def spec(self, *axes: str | None) -> PartitionSpec:
        """Return the PartitionSpec of an array whose dimensions carry these logical names (None: whole)."""
        wanted = [getattr(self, axis) if axis else None for axis in axes]
        data = "data" if "expert" in wanted else ("data", "expert")
        return PartitionSpec(*(data if mesh_axis == "data" else mesh_axis for mesh_axis in wanted))

    def ways(self, axis: str, mesh_shape: Mapping[str, int]) -> int:
        """Return into how many parts a logical axis by itself is split."""
        return ways(self.spec(axis)[0], mesh_shape)


def ways(entry: str | tuple[str, ...] | None, mesh_shape: Mapping[str, int]) -> int:
    """Return into how many parts an entry of a PartitionSpec splits a dimension."""
    names = (entry,) if isinstance(entry, str) else entry or ()
    return math.prod(mesh_shape.get(name, 1) for name in names)


@config
class MeshConfig:
    """The shape of the mesh over the devices of the run."""

    data: Annotated[int, Range(0)] = 0
    """Devices along `data` (rows of the batch and FSDP); 0 takes all that the others leave."""
    expert: Annotated[int, Range(1)] = 1
    """Devices along `expert` (each holds its part of the experts; rows of the batch and FSDP as well)."""
    model: Annotated[int, Range(1)] = 1
    """Devices along `model` (tensor parallelism)."""
    cpu_devices: Annotated[int, Range(1, 256)] = 1
    """Virtual devices made of the host's processor; no effect on a GPU or TPU."""

    def shape(self, num_devices: int) -> dict[str, int]:
        """Return the size of each mesh axis for this many devices, or raise ConfigError where it does not come out even."""
        data = self.data or num_devices // (self.expert * self.model)
        if data * self.expert * self.model != num_devices:
            wanted = f"{self.data or '...'} x {self.expert} x {self.model}"
            raise ConfigError(
                f"mesh.data x mesh.expert x mesh.model = {wanted} does not make up the {num_devices} devices present: choose "
                f"factors of {num_devices}, for example --mesh.data {num_devices} --mesh.expert 1 --mesh.model 1"
            )
        return {"data": data, "expert": self.expert, "model": self.model}


def make_mesh(shape: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Make the run's mesh, every axis explicit: an array's type carries its sharding. Enter it with `jax.set_mesh`.

    Axes that `shape` leaves out have size 1.
    """
    sizes = tuple(shape.get(axis, 1) for axis in MESH_AXES)
    return jax.make_mesh(sizes, MESH_AXES, (AxisType.Explicit,) * len(sizes), devices=devices)
