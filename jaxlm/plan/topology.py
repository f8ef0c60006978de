"""Topologies of accelerators that are not there, by the names that people write."""

import dataclasses
import math
import re

from jaxlm.errors import ConfigError, suggest
from jaxlm.hardware import CHIPS, Chip, chip

# Largest side of a 2-D slice (a pod is 16 x 16), and chips of the largest 3-D slice on sale.
POD_SIDE = 16
LARGEST = {"v4": 4096, "v5p": 6144, "tpu7x": 9216}
_DIGITS, _LONGEST_NAME = 9, 100
_MOST_CHIPS = 1 << 16  # above every slice there is: of more, no factors are looked for
# TPUs whose product names count TensorCores, two a chip, where the others count chips.
COUNT_CORES = ("v2", "v3", "v4", "v5p", "tpu7x")


@dataclasses.dataclass(frozen=True)
class Topology:
    """Slices of chips, `dims` along each dimension of a slice's torus; of GPUs (hosts, GPUs a host)."""

    chip: Chip
    dims: tuple[int, ...]
    slices: int = 1

    @property
    def name(self) -> str:
        """As it is written: v5p:4x4x4."""
        dims = self.dims if self.chip.is_tpu or self.dims[0] > 1 else self.dims[1:]
        return f"{self.chip.name}:{'x'.join(map(str, dims))}"

    @property
    def num_devices(self) -> int:
        """Devices as JAX counts them, over all slices."""
        per_chip = self.chip.devices_per_chip if self.chip.is_tpu else 1
        return math.prod(self.dims) * per_chip * self.slices

    def __str__(self) -> str:
        slices = f"{self.slices} slices of " if self.slices > 1 else ""
        return f"{slices}{self.name} ({self.num_devices} devices)"


def parse_topology(text: str, slices: int = 1) -> tuple[Topology, str]:
    """Return the topology that a name stands for and, where the name is a product's, a sentence that says which it took.

    Names are CHIP:AxBxC, chips along each dimension of a slice (v5e:4x4, v5p:4x4x4), or h100:8, h100:4x8 (hosts x GPUs); also
    Google's product names, v5litepod-16 or v5p-128. ConfigError for what no such machine is, with the nearest that is one.
    """
    if len(text) > _LONGEST_NAME:
        raise ConfigError(
            f"--topology {text[:40]!r}... is longer than any name of a topology. Write CHIP:AxBxC, as in v5p:4x4x4"
        )
    found = re.fullmatch(r"([a-z0-9]+(?:-pcie)?)[:-]([0-9x]+)", text.strip().lower())
    named = chip(found[1]) if found else None
    if not named:
        prefix = re.split(r"[:-]", text)[0].lower()
        names = [each.name for each in CHIPS]
        if prefix in names:
            raise ConfigError(f"--topology {text!r} lacks a shape: write {prefix}:8 or, of a torus, {prefix}:AxBxC")
        raise ConfigError(
            f"--topology {text!r} names no known accelerator.{suggest('tpu7x' if prefix == 'v7x' else prefix, names)} "
            "Write CHIP:AxBxC, the chips along each dimension of a slice, for example v5e:4x4, v5p:4x4x4 or h100:8. "
            f"Known: {', '.join(names)}"
        )
    if any(len(size) > _DIGITS for size in found[2].split("x")):
        raise ConfigError(f"--topology {text}: a number of more than {_DIGITS} digits is no number of chips")
    sizes = tuple(int(size or 0) for size in found[2].split("x"))
    if slices < 1 or min(sizes) < 1:
        raise ConfigError(f"--topology {text} --slices {slices}: every number must be at least 1")
    if not named.is_tpu:
        return Topology(named, _hosts(text, named, sizes), slices), ""
    if text.strip().lower()[len(found[1])] == "-":
        return _product(text, named, sizes, slices)
    _check_dims(text, named, sizes)
    return Topology(named, sizes, slices), ""


def _hosts(text: str, named: Chip, sizes: tuple[int, ...]) -> tuple[int, int]:
    sizes = sizes if len(sizes) == 2 else divmod_hosts(sizes[0], named.host_devices) if len(sizes) == 1 else ()
    if len(sizes) != 2 or sizes[1] > named.host_devices:
        raise ConfigError(
            f"--topology {text}: GPUs are written {named.name}:HOSTSxGPUS with at most {named.host_devices} GPUs a host, for "
            f"example {named.name}:8 (one host) or {named.name}:4x8"
        )
    return sizes


def divmod_hosts(devices: int, per_host: int) -> tuple[int, ...]:
    """Return (hosts, devices a host) for whole hosts or a part of one, () where it does not come out even."""
    if devices <= per_host:
        return 1, devices
    return (devices // per_host, per_host) if devices % per_host == 0 else ()


def _product(text: str, named: Chip, sizes: tuple[int, ...], slices: int) -> tuple[Topology, str]:
    counts_cores = named.name in COUNT_CORES
    chips = sizes[0] / 2 if counts_cores else sizes[0]
    dims = standard_dims(named, int(chips)) if len(sizes) == 1 and chips == int(chips) else None
    if dims is None:
        example = Topology(named, (4,) * named.dimensions).name
        raise ConfigError(
            f"--topology {text} is no product: {named.name}-N counts {'TensorCores, two a chip' if counts_cores else 'chips'}. "
            f"Write the shape of the slice instead, for example {example}"
        )
    found = Topology(named, dims, slices)
    unit = f"{sizes[0]} TensorCores, two a chip" if counts_cores else f"{sizes[0]} chips"
    return found, f"{text} ({unit}) is taken as {found.name}"


def standard_dims(named: Chip, chips: int) -> tuple[int, ...] | None:
    """Return the shape in which this many chips are usually sold as a slice, or None where they are not."""
    if chips > _MOST_CHIPS:
        return None
    if named.dimensions == 2:
        fits = [(a, chips // a) for a in range(1, math.isqrt(chips) + 1) if chips % a == 0]
        return fits[-1] if fits and chips & (chips - 1) == 0 and chips != 2 else None
    small = {4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4)}
    if chips < 64:
        return small.get(chips)
    cubes, rest = divmod(chips, 64)
    if rest or chips > LARGEST[named.name]:
        return None
    fits = [
        (a, b, cubes // a // b)
        for a in range(1, cubes + 1)
        for b in range(a, cubes + 1)
        if cubes % (a * b) == 0 and cubes // a // b >= b
    ]
    a, b, c = min(fits, key=sum)
    return 4 * a, 4 * b, 4 * c


def _check_dims(text: str, named: Chip, dims: tuple[int, ...]) -> None:
    if len(dims) != named.dimensions:
        wanted = "A x B" if named.dimensions == 2 else "A x B x C"
        near = standard_dims(named, math.prod(dims)) or (4,) * named.dimensions
        raise ConfigError(
            f"--topology {text}: a slice of {named.name} is {named.dimensions}-dimensional, {wanted} chips: did you mean "
            f"{Topology(named, near).name} ({math.prod(near)} chips)?"
        )
    if named.dimensions == 2 and named.name != "v3" and max(dims) > POD_SIDE:
        raise ConfigError(
            f"--topology {text}: a {named.name} pod has {POD_SIDE} x {POD_SIDE} chips: take --topology {named.name}:16x16 and "
            f"--slices {math.ceil(math.prod(dims) / POD_SIDE**2)}"
        )
    if math.prod(dims) > LARGEST.get(named.name, math.inf):
        raise ConfigError(
            f"--topology {text}: the largest slice of {named.name} has {LARGEST[named.name]} chips, this one "
            f"{math.prod(dims)}: take a smaller one and --slices"
        )
    if named.dimensions == 3 and math.prod(dims) > 64 and any(size % 4 for size in dims):
        near = "x".join(str(max(4, 4 * round(size / 4))) for size in dims)
        raise ConfigError(
            f"--topology {text}: slices of more than 64 {named.name} chips are made of cubes of 4 x 4 x 4, with sides that are "
            f"multiples of 4: did you mean {named.name}:{near}?"
        )
