"""Over which devices an experiment is spread: the mesh it names, or one that is chosen; and what does not divide over it."""

import math
from collections.abc import Mapping

from jaxlm.errors import ConfigError
from jaxlm.experiment import Experiment
from jaxlm.hardware import Chip
from jaxlm.layout import of_slices
from jaxlm.model import transformer
from jaxlm.param import check_layout, name_axes
from jaxlm.train import arrange


def check_devices(experiment: Experiment, num_devices: int, chip: Chip | None = None, slices: int = 1) -> dict[str, int]:
    """Return the mesh's shape over this many devices, or raise ConfigError where model or batch do not divide over it."""
    return settle_mesh(experiment, num_devices, chip, slices).shape


def settle_mesh(experiment: Experiment, num_devices: int, chip: Chip | None = None, slices: int = 1) -> arrange.Choice:
    """Return the mesh's shape and, where it was left to be chosen (`mesh.auto`), the reasons.

    `chip` is what the devices are, None where that is not known or they are a processor's; `slices` how many slices they form.
    Raises ConfigError where model or batch do not divide over the mesh.
    """
    if not experiment.mesh.auto:
        shape = experiment.mesh.shape(num_devices)
        if shape["replica"] % slices:
            raise ConfigError(of_slices(shape["replica"], slices, num_devices))
        check_shape(experiment, shape)
        return arrange.Choice(shape, ())
    work = work_of(experiment, chip)
    return arrange.choose(work, experiment.mesh, num_devices, lambda shape: check_shape(experiment, shape), chip, slices)


def work_of(experiment: Experiment, chip: Chip | None) -> arrange.Work:
    """Return what a step of the experiment computes on devices of this kind (None: a processor's)."""
    platform = "cpu" if chip is None else "tpu" if chip.is_tpu else "gpu"
    return arrange.Work(
        model=experiment.model.for_platform(platform), layout=experiment.layout,
        rows=experiment.rows // experiment.accumulate, length=experiment.data.sequence_length,
        accumulate=experiment.accumulate, optimizer=experiment.optimizer.kind, remat=experiment.remat,
        trained=experiment.trained_share, reference=experiment.reference_beside,
        reference_forward=experiment.reference_beside or experiment.reference_is_base,
    )  # fmt: skip


def check_shape(experiment: Experiment, shape: Mapping[str, int]) -> None:
    """Raise ConfigError where the model or a batch does not divide over a mesh of this shape."""
    check_layout(transformer.spec(experiment.model), experiment.layout, shape)
    ways, parts = experiment.layout.ways("batch", shape), experiment.layout.ways("length", shape)
    length = experiment.data.sequence_length
    if length % parts:
        fits = [n for n in range(1, parts + 1) if math.gcd(length, parts) % n == 0][-3:]
        raise ConfigError(
            f"data.sequence_length = {length} cannot be split evenly over mesh.context = {parts}: set --mesh.context to a "
            f"divisor such as {', '.join(map(str, fits))}, or --data.sequence-length {max(1, round(length / parts)) * parts}"
        )
    each = experiment.rows // experiment.batch_size
    unit = ways * math.lcm(experiment.model.moe.rows_per_group, each)
    rows = experiment.rows // experiment.accumulate
    if rows % unit:
        over = name_axes(experiment.layout.spec("batch")[0], shape) or "mesh.data"
        groups = f" in groups of {experiment.model.moe.rows_per_group}" if experiment.model.moe.rows_per_group > 1 else ""
        fits = max(unit, round(rows / unit) * unit) * experiment.accumulate // each
        raise ConfigError(
            f"batch_size / accumulate = {rows // each} {'pairs of rows' if each > 1 else 'rows'}{groups} do not divide over "
            f"{over} = {ways}: set --batch-size {fits}"
        )
