"""Which of their tensors holds which of our weights, and how: checked both ways, then read piece by piece."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxlm.errors import CheckpointError, suggest
from jaxlm.interop.axes import axes
from jaxlm.model import transformer
from jaxlm.model.config import ModelConfig
from jaxlm.param import Param, named_leaves

# Faults that one error names; the rest are counted.
NAMED = 5


@dataclasses.dataclass(frozen=True)
class Entry:
    """A weight of ours and the tensor it lies in.

    `leaf` is our name of it in one layer, without the layer's place ("embed", "blocks.attention.q",
    "blocks.moe.experts.gate"); `name` is their tensor's, with {layer} and {expert} where they number those; `axes` says how
    ours lies in theirs (`jaxlm.interop.axes`). A name with {expert} holds one expert's, so the experts' axis is left out. Where
    a table has several entries of one leaf, they are spellings of it, the first preferred.
    """

    leaf: str
    name: str
    axes: str


Table = tuple[Entry, ...]


class Tensors(Protocol):
    """Tensors by name, of a file or several."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return every tensor's shape; nothing is read."""

    def read(self, name: str) -> np.ndarray:
        """Return a tensor of any float type, a view of the file where possible."""


class Piece(NamedTuple):
    """One layer's weight of ours, or one expert's of it, and the tensor it lies in."""

    leaf: str  # with its place: "blocks.1.attention.q"
    repeat: int | None  # index along the stack of layers; None for a leaf outside of layers
    expert: int | None  # where each has a tensor of its own
    name: str
    axes: str
    shape: tuple[int, ...]  # ours: of one layer and, with `expert`, of one expert


def settle(table: Table, model: ModelConfig, shapes: Mapping[str, tuple[int, ...]], prefix: str = "") -> Table:
    """Return the table as these tensors spell it, with one entry for each leaf.

    Of several spellings of a leaf the one that is stored is taken, or else the first. `prefix` is what names go without in a
    file saved of a model without its head.
    """
    if prefix and not any(name.startswith(prefix) for name in shapes):
        table = tuple(dataclasses.replace(entry, name=entry.name.removeprefix(prefix)) for entry in table)
    settled: dict[str, Entry] = {}
    for leaf in _leaves(model):
        spellings = [entry for entry in table if entry.leaf == _without_place(leaf)]
        first_layer = leaf.split(".")[1] if leaf.startswith("blocks.") else None
        stored = [entry for entry in spellings if entry.name.format(layer=first_layer, expert=0) in shapes]
        settled |= {entry.leaf: entry for entry in (stored or spellings)[:1] if entry.leaf not in settled}
    return tuple(settled.values())


def check_tensors(
    table: Table,
    model: ModelConfig,
    shapes: Mapping[str, tuple[int, ...]],
    ignored: Callable[[str], bool] = lambda name: False,
) -> None:
    """Raise CheckpointError unless every weight has its tensor, of the right shape, and every tensor its weight.

    `ignored(name)` tells tensors that have no part in the function. `table` is a settled one.
    """
    experts = len(model.moe_layers) * model.moe.num_experts if any("{expert}" in entry.name for entry in table) else 0
    if max(model.num_layers, experts) > len(shapes):
        raise CheckpointError(
            f"there are {len(shapes)} tensors, too few for the configuration's {model.num_layers} layers"
            f"{f' and {experts} experts in them' if experts else ''}: configuration and weights are not of one model, or a "
            "file is missing"
        )
    wanted = their_tensors(table, model)
    extra = [name for name in shapes if name not in wanted and not ignored(name)]
    missing = [name for name in wanted if name not in shapes]
    faults = [
        f"{name} has shape {list(shapes[name])}, where the configuration makes it {list(shape)}"
        for name, shape in wanted.items()
        if name in shapes and tuple(shapes[name]) != shape
    ]
    hints = {name: suggest(name, extra[:1000]) for name in missing[:NAMED]}
    faults += [f"{name} {list(wanted[name])} is missing{hint and ':' + hint}" for name, hint in hints.items()]
    faults += [f"{name} {list(shapes[name])} has no place in the model that the configuration describes" for name in extra]
    if faults:
        count = len(faults) + len(missing[NAMED:])
        more = f"; and {count - NAMED} more" if count > NAMED else ""
        raise CheckpointError(
            f"weights and configuration do not agree: {'; '.join(faults[:NAMED])}{more}. Check that the configuration is of "
            "these weights, and that no file is missing"
        )


def leaf_part(
    table: Table, model: ModelConfig, leaf_name: str, index: tuple[slice, ...], read: Callable[[str], np.ndarray]
) -> np.ndarray:
    """Return a part of one of our leaves in float32, in our shape, reading no more of their tensors than it needs.

    `leaf_name` is as in `param.named_leaves`, its layers stacked in front ("blocks.1.attention.q" [repeats, D, N, H]); `index`
    has a slice for each dimension, without steps, as `jax.make_array_from_callback` gives.
    """
    whole = _leaves(model)[leaf_name].shape
    index = tuple(slice(*part.indices(size)) for part, size in zip(index, whole, strict=True))
    out = np.empty([part.stop - part.start for part in index], np.float32)
    for piece in _by_leaf(table, model)[leaf_name]:
        numbers = [number for number in (piece.repeat, piece.expert) if number is not None]
        place = tuple(number - part.start for number, part in zip(numbers, index, strict=False))
        if all(0 <= at < size for at, size in zip(place, out.shape, strict=False)):
            out[place] = axes(piece.axes).view(read(piece.name), piece.shape)[index[len(place) :]]
    return out


def their_tensors(table: Table, model: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    """Return {name: shape} of every tensor that the model is written as."""
    by_name = _by_name(table, model)
    return {name: axes(parts[0].axes).their_shape(parts[0].shape) for name, parts in by_name.items()}


def their_tensor(table: Table, model: ModelConfig, name: str, leaf: Callable[[str, int], np.ndarray]) -> np.ndarray:
    """Return one of their tensors, float32, made of ours.

    `leaf(leaf_name, repeat)` gives one layer of a leaf of ours, with all its experts; a leaf outside of layers is asked for
    with repeat 0.
    """
    out: Any = None
    for piece in _by_name(table, model)[name]:
        ours = leaf(piece.leaf, piece.repeat or 0)
        formula = axes(piece.axes)
        if out is None:
            out = np.empty(formula.their_shape(piece.shape), np.float32)
        formula.put(np.asarray(ours if piece.expert is None else ours[piece.expert], np.float32), out)
    return out


def tied_apart(model: ModelConfig, table: Table, tensors: Tensors) -> ModelConfig:
    """Return the model with a head of its own where one is stored that differs from the embedding it should be tied to.

    transformers ties two stored tensors only if they are equal. `table` is the settled one of the model without the tie.
    """
    names = {entry.leaf: entry.name for entry in table}
    embedding, head = names.get("embed"), names.get("head")
    shapes = tensors.shapes()
    if not model.tie_embeddings or embedding not in shapes or head not in shapes:
        return model
    if shapes[embedding] != shapes[head] or len(shapes[head]) != 2:
        return model  # refused when all shapes are compared
    one, other = tensors.read(embedding), tensors.read(head)
    rows = range(0, len(one), 1024)
    same = all(np.array_equal(one[row : row + 1024], other[row : row + 1024]) for row in rows)
    return model if same else dataclasses.replace(model, tie_embeddings=False)


@functools.lru_cache(maxsize=4)
def _leaves(model: ModelConfig) -> dict[str, Param]:
    return named_leaves(transformer.spec(model))


@functools.lru_cache(maxsize=4)
def _pieces(table: Table, model: ModelConfig) -> tuple[Piece, ...]:
    found = []
    for leaf, param in _leaves(model).items():
        entry = next((entry for entry in table if entry.leaf == _without_place(leaf)), None)
        if entry is None:
            raise CheckpointError(f"the model has a weight {leaf}, for which checkpoints of this family have no tensor")
        layered, each = leaf.startswith("blocks."), "{expert}" in entry.name
        shape = param.shape[1:] if layered else param.shape
        for repeat in range(param.shape[0]) if layered else (None,):
            layer = None if repeat is None else int(leaf.split(".")[1]) + repeat * model.period
            for expert in range(shape[0]) if each else (None,):
                name = entry.name.format(layer=layer, expert=expert)
                found.append(Piece(leaf, repeat, expert, name, entry.axes, shape[1:] if each else shape))
    return tuple(found)


@functools.lru_cache(maxsize=4)
def _by_leaf(table: Table, model: ModelConfig) -> dict[str, list[Piece]]:
    return _grouped(_pieces(table, model), "leaf")


@functools.lru_cache(maxsize=4)
def _by_name(table: Table, model: ModelConfig) -> dict[str, list[Piece]]:
    return _grouped(_pieces(table, model), "name")


def _grouped(pieces: tuple[Piece, ...], by: str) -> dict[str, list[Piece]]:
    groups: dict[str, list[Piece]] = {}
    for piece in pieces:
        groups.setdefault(getattr(piece, by), []).append(piece)
    return groups


def _without_place(leaf: str) -> str:
    first, *rest = leaf.split(".")
    return ".".join([first, *rest[1:]]) if first == "blocks" else leaf
