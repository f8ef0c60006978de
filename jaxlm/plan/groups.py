"""Which devices take part in a collective together, and along which axes of the mesh they differ."""

import functools
import math
import re
from collections.abc import Mapping

import numpy as np

# Sends between slices number a device as (slice + 1) * this + its place in the slice.
MEGASCALE_SLICE = 100_000
Axes = tuple[tuple[str, int], ...]


def split(mesh_shape: Mapping[str, int], num_partitions: int) -> tuple[Axes, Axes]:
    """Return the axes between slices and those within one; both hold all names, so that the sizes multiply to the mesh's."""
    slices, rest = divmod(math.prod(mesh_shape.values()), num_partitions)
    if rest or not slices:
        return (), (("devices", num_partitions),)
    across, within = [], []
    for axis, size in mesh_shape.items():
        outer = math.gcd(size, slices)
        slices //= outer
        across.append((axis, outer))
        within.append((axis, size // outer))
    return tuple(across), tuple(within)


def varying(group: tuple[int, ...], axes: Axes) -> tuple[str, ...]:
    """Return the axes along which places in a row-major mesh differ."""
    places = np.asarray(group)
    found = []
    for axis, size in reversed(axes):
        if len(set((places % size).tolist())) > 1:
            found.append(axis)
        places = places // size
    return tuple(reversed(found))


@functools.lru_cache(maxsize=1024)
def replica_group(text: str, num_partitions: int) -> tuple[int, ...]:
    """Return the largest of the groups that `replica_groups` lists or describes; all devices where it names none."""
    mesh = re.match(r"mesh\[([^\]]*)\](?:, device_ids=\((.*)\))? *\{([^}]*)\}", text)
    if mesh:
        return _mesh_group(*mesh.groups())
    if text.startswith("["):
        groups = _iota(text).tolist()
    else:
        groups = [[int(number) for number in group.split(",")] for group in re.findall(r"\{([\d, ]+)\}", text)]
    return tuple(max(groups, key=len)) if groups else tuple(range(num_partitions))


def _mesh_group(axes: str, device_ids: str | None, chosen: str) -> tuple[int, ...]:
    """Return the group of the first device along the chosen axes of `mesh['a'=4,'b'=4]`."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", axes)}
    places = np.arange(math.prod(sizes.values()))
    rest = places
    # An axis may be cut: 'a':(2)4 is a part of size 4 inside of a part of size 2.
    for name, outer, size in re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", chosen):
        names = list(sizes)
        stride = math.prod(sizes[inner] for inner in names[names.index(name) + 1 :])
        if size:
            stride *= sizes[name] // int(outer) // int(size)
        rest = rest - places // stride % int(size or sizes[name]) * stride
    if device_ids:
        listed = [int(number) for number in re.findall(r"\d+", device_ids)]
        places = _iota(device_ids).reshape(-1) if device_ids.startswith("[") else np.asarray(listed)
    return tuple(places[rest == 0].tolist())


def _iota(text: str) -> np.ndarray:
    """Return the array that `[4,4]<=[4,4]T(1,0)` stands for: 0, 1, ... in the second shape, transposed, in the first."""
    result, source, order = re.match(r"(\[[\d,]*\](?=<=))?(?:<=)?(\[[\d,]*\])(T\([\d,]*\))?", text).groups(default="")
    result, source, order = (tuple(map(int, re.findall(r"\d+", numbers))) for numbers in (result, source, order))
    array = np.arange(math.prod(source)).reshape(source)
    array = array.transpose(order) if order else array
    return array.reshape(result) if result else array


def permuted(text: str) -> tuple[int, ...]:
    """Return the devices that the longest chain of pairs links, those that keep what they have left out."""
    after = {int(source): int(target) for source, target in re.findall(r"\{(\d+),(\d+)\}", text) if source != target}
    targets = set(after.values())
    longest: list[int] = []
    seen: set[int] = set()
    # Begin with those that nothing is sent to: what is left are rings.
    for start in sorted(after, key=lambda device: device in targets):
        chain = []
        place: int | None = start
        while place is not None and place not in seen:
            seen.add(place)
            chain.append(place)
            place = after.get(place)
        longest = max(longest, chain, key=len)
    return tuple(longest)


def slices(target: str, number: int) -> tuple[int, ...]:
    """Return the slices, from 0, that `{1,2}x{0:3}` or `{{100000,200000},...}` sends between; all where it does not tell."""
    product = re.match(r'"?\{([\d,:]+)\}x', target)
    if product:
        found: list[int] = []
        for part in product[1].split(","):
            first, _, last = part.partition(":")
            found += range(int(first), int(last or first) + 1)
    else:
        first = re.search(r"\{([\d,]+)\}", target)
        found = [int(device) // MEGASCALE_SLICE for device in first[1].split(",")] if first else []
    return tuple(place - 1 for place in found) or tuple(range(number))
