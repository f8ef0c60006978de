"""Where arrays live: logical axis names -> mesh axes, and the one mesh of a run."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, PartitionSpec

from jaxlm.config import Range, config
from jaxlm.errors import ConfigError

MESH_AXES = ("replica", "data", "expert", "context", "model")
MeshAxis = Literal["replica", "data", "expert", "context", "model"] | None

# What is split over `data` takes these axes along, wherever the same array does not use them already: rows of a batch go to
# every device that computes different ones, the width of weights to every device that can quickly gather them (not across
# replicas, whose network is slow).
ROWS_OVER = ("replica", "data", "expert")
WEIGHTS_OVER = ("data", "expert", "context")


@config
class Layout:
    """The mesh axis over which each logical axis of a weight or an activation is split (none: kept whole).

    Devices along `expert` hold different experts, along `context` different parts of a row, along `replica` the same weights
    as their neighbours. To all else they are more of `data`: rows are split over `replica`, `data` and `expert`, weights over
    `data`, `expert` and `context`, less what the same array is split over already (an expert's weights over `expert`).
    """

    batch: MeshAxis = "data"
    """Rows of a batch."""
    length: MeshAxis = "context"
    """Tokens of a row: each device holds a stretch of every row, and attention gathers the keys of the others."""
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

        def entry(axis: str | None, mesh_axis: MeshAxis) -> str | tuple[str, ...] | None:
            if mesh_axis != "data":
                return mesh_axis
            over = ROWS_OVER if axis == "batch" else WEIGHTS_OVER
            return tuple(name for name in over if name == "data" or name not in wanted)

        return PartitionSpec(*(entry(axis, mesh_axis) for axis, mesh_axis in zip(axes, wanted, strict=True)))

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

    auto: bool = False
    """Choose the sizes below from model, batch and devices, and say why (`mesh="auto"` in a file); those set to other than
    their default are kept."""
    replica: Annotated[int, Range(1)] = 1
    """Copies of all weights, each with rows of its own: one a slice, for then gradients alone cross between slices."""
    data: Annotated[int, Range(0)] = 0
    """Devices along `data` (rows of the batch and FSDP); 0 takes all that the others leave."""
    expert: Annotated[int, Range(1)] = 1
    """Devices along `expert` (each holds its part of the experts; rows of the batch and FSDP as well)."""
    context: Annotated[int, Range(1)] = 1
    """Devices along `context` (each holds a stretch of every row; FSDP as well): for rows too long for one device."""
    model: Annotated[int, Range(1)] = 1
    """Devices along `model` (tensor parallelism)."""
    cpu_devices: Annotated[int, Range(1, 256)] = 1
    """Virtual devices made of the host's processor, for each process; no effect on a GPU or TPU."""

    @classmethod
    def from_text(cls, text: str) -> "MeshConfig":
        """Return the mesh that a word stands for: there is only "auto"."""
        if text != "auto":
            raise ConfigError(f'mesh = {text!r} is no mesh: write "auto" or MeshConfig(data=..., model=...)')
        return cls(auto=True)

    def shape(self, num_devices: int) -> dict[str, int]:
        """Return the size of each mesh axis for this many devices, or raise ConfigError where it does not come out even."""
        sizes = {axis: getattr(self, axis) for axis in MESH_AXES}
        fixed = math.prod(size for axis, size in sizes.items() if axis != "data")
        data = self.data or num_devices // fixed
        if data * fixed != num_devices:
            product = " x ".join(f"mesh.{axis}" for axis in MESH_AXES)
            wanted = " x ".join(str(size or "...") for size in sizes.values())
            flags = " ".join(f"--mesh.{axis} 1" for axis, size in sizes.items() if axis != "data" and size > 1)
            raise ConfigError(
                f"{product} = {wanted} does not make up {num_devices} devices: choose factors of {num_devices}, "
                f"for example --mesh.data {num_devices}{f' {flags}' if flags else ''}, or --mesh.auto"
            )
        return sizes | {"data": data}


def of_slices(replica: int, slices: int, num_devices: int) -> str:
    """Return what to say where every slice does not hold whole replicas."""
    return (
        f"mesh.replica = {replica} does not divide over {slices} slices: set --mesh.replica {slices} and other sizes whose "
        f"product is {num_devices // slices}, for example --mesh.data {num_devices // slices}"
    )


def slices_of(devices: Sequence[jax.Device]) -> int:
    """Return how many slices these devices form: of TPUs what they say; elsewhere "slices" would be hosts, and there is one."""
    if devices[0].platform != "tpu":
        return 1
    return len({getattr(device, "slice_index", 0) for device in devices})


def make_mesh(shape: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Make the run's mesh, every axis explicit: an array's type carries its sharding. Enter it with `jax.set_mesh`.

    Axes that `shape` leaves out have size 1. Neighbours on the mesh are neighbours on the network where the devices say how
    they are wired; of several slices, `replica` must take a multiple, so that a slice's devices lie within one replica
    (ConfigError otherwise).
    """
    devices = jax.devices() if devices is None else devices
    sizes = [shape.get(axis, 1) for axis in MESH_AXES]
    explicit = (AxisType.Explicit,) * len(sizes)
    slices = slices_of(devices)
    if sizes[0] % slices:
        raise ConfigError(of_slices(sizes[0], slices, len(devices)))
    # An axis may take a part of a torus dimension: a size need not be a product of whole sides.
    if slices == 1:
        places = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    else:
        within, between = [sizes[0] // slices, *sizes[1:]], [slices, *(1 for _ in sizes[1:])]
        places = mesh_utils.create_hybrid_device_mesh(within, between, devices, allow_split_physical_axes=True)
    return Mesh(places, MESH_AXES, axis_types=explicit)
