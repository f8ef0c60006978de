"""How one tensor lies in another: a formula of axes, read as numpy views."""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping

import numpy as np

TOKEN = re.compile(r"\d+/\d+|\d+|[a-z]|[()]")


@dataclasses.dataclass(frozen=True)
class Axes:
    """A formula such as "dnh -> (n 0/3 h)d": the axes of our array, then those of theirs.

    A letter is an axis of ours. Axes in parentheses lie in one dimension, the last varying fastest. A number is an axis of
    that size which only splits a dimension ("d(2r) -> (r2)d": halves of ours alternate in theirs). "0/3" takes the first of
    three parts along its place: the others belong to other arrays.
    """

    ours: tuple[tuple[str, ...], ...]
    theirs: tuple[tuple[str, ...], ...]

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Return the size of every axis, for an array of ours of this shape."""
        if len(shape) != len(self.ours):
            raise ValueError(f"an array of shape {shape} has not the axes {self.ours}")
        sizes = {name: _number(name) for group in (*self.ours, *self.theirs) for name in group if name[0].isdigit()}
        for group, size in zip(self.ours, shape, strict=True):
            unknown = [name for name in group if name not in sizes]
            known = math.prod(sizes[name] for name in group if name in sizes)
            if len(unknown) > 1 or size % known:
                raise ValueError(f"a dimension of {size} does not split into {group}")
            sizes |= dict.fromkeys(unknown, size // known)
        return sizes

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the tensor in which an array of ours of this shape lies."""
        sizes = self.sizes(shape)
        return tuple(math.prod(sizes[name] for name in group) for group in self.theirs)

    def view(self, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Return the array of ours of this shape inside their tensor: a view, unless one dimension of ours joins several."""
        sizes = self.sizes(shape)
        return self._elementary(tensor, sizes).reshape(shape)

    def put(self, array: np.ndarray, tensor: np.ndarray) -> None:
        """Write an array of ours into its place in their (contiguous) tensor."""
        sizes = self.sizes(array.shape)
        place = self._elementary(tensor, sizes)
        place[...] = array.reshape(place.shape)

    def _elementary(self, tensor: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        """Return their tensor with every axis of ours a dimension, in our order."""
        names = [name for group in self.theirs for name in group]
        split = tensor.reshape([sizes[name] for name in names])
        picked = split[tuple(int(name.split("/")[0]) if "/" in name else slice(None) for name in names)]
        names = [name for name in names if "/" not in name]
        return picked.transpose([names.index(name) for group in self.ours for name in group])


@functools.cache
def axes(formula: str) -> Axes:
    """Return the axes that a formula names."""
    ours, theirs = (_groups(side) for side in formula.split("->"))
    plain = sorted(name for group in theirs for name in group if "/" not in name)
    if sorted(name for group in ours for name in group) != plain or len(set(plain)) != len(plain):
        raise ValueError(f"{formula!r}: both sides must name the same axes, each once")
    return Axes(ours, theirs)


def _groups(side: str) -> tuple[tuple[str, ...], ...]:
    groups, inside = [], None
    for token in TOKEN.findall(side):
        if token == "(":
            inside = []
        elif token == ")":
            groups.append(tuple(inside))
            inside = None
        elif inside is None:
            groups.append((token,))
        else:
            inside.append(token)
    return tuple(groups)


def _number(name: str) -> int:
    return int(name.split("/")[-1])
