"""Where arrays live: logical axis names -> mesh axes, and the one mesh of a run."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import jax
from jax.sharding import AxisType, Mesh, PartitionSpec

from jaxlm.config import Range, config
from jaxlm.errors import ConfigError

MESH_AXES = ("data", "model")
MeshAxis = Literal["data", "model"] | None


@config
class Layout:
    """The mesh axis over which each logical axis of a weight or an activation is split (none: kept whole)."""

    batch: MeshAxis = "data"
    """Rows of a batch."""
    embed: MeshAxis = "data"
    """The model width of every weight: split, parameters and optimizer state are fully sharded (FSDP)."""
    heads: MeshAxis = "model"
    """Query heads (tensor parallelism)."""
    kv_heads: MeshAxis = "model"
    """Key-value heads; keep them whole where there are fewer than the model axis is wide."""
    ffn: MeshAxis = "model"
    """The hidden width of the feed-forward layer (tensor parallelism)."""
    vocab: MeshAxis = "model"
    """Rows of the embedding and of the output head."""

    def spec(self, *axes: str | None) -> PartitionSpec:
        """Return the PartitionSpec of an array whose dimensions carry these logical names (None: whole)."""
        return PartitionSpec(*(getattr(self, axis) if axis else None for axis in axes))


@config
class MeshConfig:
    """The shape of the mesh over the devices of the run."""

    data: Annotated[int, Range(0)] = 0
    """Devices along `data` (rows of the batch and FSDP); 0 takes all that `model` leaves."""
    model: Annotated[int, Range(1)] = 1
    """Devices along `model` (tensor parallelism)."""
    cpu_devices: Annotated[int, Range(1, 256)] = 1
    """Virtual devices made of the host's processor; no effect on a GPU or TPU."""

    def shape(self, num_devices: int) -> dict[str, int]:
        """Return {"data": ..., "model": ...} for this many devices, or raise ConfigError where it does not come out even."""
        data = self.data or num_devices // self.model
        if data * self.model != num_devices:
            wanted = f"{self.data or '...'} x {self.model}"
            raise ConfigError(
                f"mesh.data x mesh.model = {wanted} does not make up the {num_devices} devices present: "
                f"choose factors of {num_devices}, for example --mesh.data {num_devices} --mesh.model 1"
            )
        return {"data": data, "model": self.model}


def make_mesh(shape: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Make the run's mesh, every axis explicit: an array's type carries its sharding. Enter it with `jax.set_mesh`."""
    return jax.make_mesh(tuple(shape.values()), tuple(shape), (AxisType.Explicit,) * len(shape), devices=devices)
