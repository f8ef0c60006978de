"""The tensors of a GGUF file under their Hugging Face names and in their Hugging Face form."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxlm.errors import CheckpointError
from jaxlm.interop.gguf import Gguf, package
from jaxlm.interop.gguf_config import ROPE_FACTORS
from jaxlm.interop.table import Entry

_LAYER = re.compile(r"blk\.(\d{1,6})\.(.+)")
_MOST_EXPERTS = 1 << 12
_GPT2_TRANSPOSED = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")


class Place(NamedTuple):
    """Where a Hugging Face tensor lies in the file."""

    name: str
    expert: int | None


class GgufTensors:
    """`Tensors` (see `jaxlm.interop.table`) over a GGUF file.

    What conversion changed is changed back: llama's order of the rows of queries and keys, the 1 added to Gemma's norms,
    GPT-2's transposed matrices, experts stacked into one tensor. Tensors that the table has no name for keep their own, so that
    checking finds them.
    """

    def __init__(self, file: Gguf, table: Iterable[Entry], fields: Mapping[str, Any]):
        """Take names from a family's `table`, and numbers of heads from the configuration's `fields`."""
        self.file = file
        self._architecture = file.metadata["general.architecture"]
        self._heads = {
            "attn_q": fields.get("num_attention_heads", 0),
            "attn_k": fields.get("num_key_value_heads", 0),
        }
        self.places = _places(file, _names(self._architecture, table))

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return every tensor's shape in its Hugging Face form; nothing is read."""
        shapes = {}
        for name, place in self.places.items():
            shape = self.file.tensors[place.name].shape
            shape = shape if place.expert is None else shape[1:]
            shapes[name] = shape[::-1] if self._is_transposed(place.name) else shape
        return shapes

    def read(self, name: str) -> np.ndarray:
        """Return a tensor in its Hugging Face form: a view of the file, or float32 decoded now, that tensor alone."""
        place = self.places[name]
        values = self.file.read(place.name, place.expert)
        if self._architecture == "llama":
            kind = place.name.split(".")[-2]
            return _unpermuted(values, self._heads[kind]) if kind in self._heads else values
        if self._architecture.startswith("gemma") and place.name.endswith("norm.weight"):
            return np.asarray(values, np.float32) - np.float32(1)
        return values.T if self._is_transposed(place.name) else values

    def _is_transposed(self, name: str) -> bool:
        return self._architecture == "gpt2" and name.endswith(_GPT2_TRANSPOSED)


def _unpermuted(values: np.ndarray, heads: int) -> np.ndarray:
    """Return queries' or keys' rows in halves, as rotate-half wants them; llama.cpp's rotation takes neighbours in pairs."""
    if not heads or values.shape[0] % (2 * heads):
        raise CheckpointError(f"{values.shape[0]} rows of queries or keys do not divide into {heads} heads of even size")
    pairs = values.reshape(heads, -1, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def _names(architecture: str, table: Iterable[Entry]) -> dict[str, str]:
    """Return {GGUF name: Hugging Face name} with {layer} in both; stacked experts stand for their {expert}s."""
    gguf = package()
    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    known = gguf.get_tensor_name_map(number, 1)
    names: dict[str, str] = {}
    for entry in table:
        base, dot, suffix = entry.name.rpartition(".")
        found = known.get_name(base.replace(".{expert}", "").format(layer=0))
        if found is not None:
            names.setdefault(re.sub(r"^blk\.0\.", "blk.{layer}.", found) + dot + suffix, entry.name)
    return names


def _places(file: Gguf, names: Mapping[str, str]) -> dict[str, Place]:
    places: dict[str, Place] = {}
    for name, tensor in file.tensors.items():
        if name == ROPE_FACTORS:
            continue  # part of the configuration
        match = _LAYER.fullmatch(name)
        pattern, layer = (f"blk.{{layer}}.{match[2]}", int(match[1])) if match else (name, 0)
        theirs = names.get(pattern, name)
        stacked = "{expert}" in theirs
        if stacked and (len(tensor.shape) != 3 or tensor.shape[0] > _MOST_EXPERTS):
            raise CheckpointError(f"{file.path} holds {name} {list(tensor.shape)}: it is no stack of experts")
        for expert in range(tensor.shape[0]) if stacked else (None,):
            each = theirs.format(layer=layer, expert=expert) if pattern in names else name
            if each in places:
                raise CheckpointError(f"{file.path} holds {name} twice, under names that mean the same")
            places[each] = Place(name, expert)
    return places
