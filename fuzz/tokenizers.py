"""Tokenizers: SentencePiece, tokenizer.json with the small files beside it, a run's own file, a GGUF's vocabulary."""

import json
from pathlib import Path
from random import Random
from typing import Any

from fuzz.mutate import Files, by_name, changed, dump, mutated, one_of
from fuzz.target import Target
from jaxlm.data.byte_tokenizer import ByteTokenizer
from jaxlm.data.gguf_tokenizer import tokenizer_from_gguf
from jaxlm.data.hugging_face_folder import tokenizer_from_hugging_face
from jaxlm.data.tokenizer import Tokenizer, TokenizerConfig, load_tokenizer, train_tokenizer
from jaxlm.errors import DataError

REFERENCE = Path(__file__).parents[1] / "tests" / "reference" / "tokenizers.json"
_TEXT = "The <s> cat, 12 mats\n\n</s><|im_end|> \U0001f600\u00e9\u2581 x"


def used(tokenizer: Tokenizer, folder: Path) -> None:
    """Hold an opened tokenizer to its promises: ids that exist, bytes that join, and the same once saved and opened again."""
    size = tokenizer.vocab_size
    assert 0 < size <= 1 << 24
    assert all(0 <= i < size for i in (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, *tokenizer.stop_ids))
    ids = tokenizer.encode(_TEXT)
    assert all(0 <= i < size for i in (*ids, *tokenizer.encode(_TEXT, specials=True))), "an id beyond the vocabulary"
    joined = b"".join(tokenizer.decode_bytes([i]) for i in ids)
    assert tokenizer.decode_bytes(ids) == joined, "bytes of ids joined are not those of the ids"
    assert isinstance(tokenizer.decode(ids, specials=True), str)
    counts = tokenizer.token_bytes()
    assert counts.shape == (size,) and counts.min() >= 0
    path = folder.parent / "saved.model"
    tokenizer.save(path)
    again = load_tokenizer(path)
    assert (again.digest, again.vocab_size, again.encode(_TEXT)) == (tokenizer.digest, size, ids), "another once saved"


def _sentencepiece_seeds(folder: Path) -> list[Files]:
    text = (REFERENCE.read_text()[:20_000] + " the cat sat on the mat. " * 200).split(" ")
    lines = [" ".join(text[start : start + 12]) for start in range(0, len(text), 12)]
    made = []
    for kind in ("bpe", "unigram"):
        tokenizer = train_tokenizer(TokenizerConfig(kind=kind, vocab_size=400 if kind == "bpe" else 420), lines)
        made.append({"tokenizer.model": tokenizer.content})
    small = {"eos_token": "</s>", "bos_token": "<s>", "add_bos_token": True, "legacy": False, "chat_template": "{{ messages }}"}
    small["added_tokens_decoder"] = {
        "2": {"content": "</s>", "special": True},
        "420": {"content": "<|im_end|>", "special": True},
    }
    return [*made, made[1] | {"tokenizer_config.json": json.dumps(small).encode()}]


def _read_model_file(folder: Path) -> None:
    """Open the model by itself and, with small files beside it, as a folder."""
    if (folder / "tokenizer_config.json").exists():
        tokenizer = tokenizer_from_hugging_face(folder)
        if tokenizer is None:
            raise DataError("no tokenizer")
    else:
        tokenizer = load_tokenizer(folder / "tokenizer.model")
    used(tokenizer, folder)


def _homes() -> dict[str, Files]:
    homes = json.loads(REFERENCE.read_text())["homes"]
    return {name: {file: text.encode() for file, text in home["files"].items()} for name, home in homes.items()}


def _folder_seeds(folder: Path) -> list[Files]:
    extra = {
        "generation_config.json": b'{"eos_token_id": [1, 2]}', "added_tokens.json": b"{}",
        "config.json": b'{"eos_token_id": 2}',
        "special_tokens_map.json": b'{"eos_token": {"content": "</s>"}, "additional_special_tokens": ["<s>"]}',
    }  # fmt: skip
    return [files | (extra if name == "bytes" else {}) for name, files in _homes().items()]


def _folder(rng: Random, seeds: list[Files]) -> Files:
    return one_of(rng, seeds, by_name)


def _read_folder(folder: Path) -> None:
    tokenizer = tokenizer_from_hugging_face(folder)
    if tokenizer is None:
        raise DataError("no tokenizer")
    used(tokenizer, folder)


def _bundle_seeds(folder: Path) -> list[Files]:
    made: list[Files] = [{"tokenizer.json": ByteTokenizer.content}]
    for files in (*_homes().values(), _sentencepiece_seeds(folder)[2]):
        home = folder / str(len(made))
        home.mkdir()
        for name, content in files.items():
            (home / name).write_bytes(content)
        tokenizer_from_hugging_face(home).save(folder / "bundle")
        made.append({"tokenizer.json": (folder / "bundle").read_bytes()})
    return made


def _read_bundle(folder: Path) -> None:
    used(load_tokenizer(folder / "tokenizer.json"), folder)


def _vocabulary_seeds(folder: Path) -> list[dict[str, Any]]:
    model = json.loads(_homes()["bytes"]["tokenizer.json"])["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    bpe = {"model": "gpt2", "pre": "qwen2", "tokens": tokens, "merges": merges, "token_type": [1] * len(tokens)}
    bpe |= {"eos_token_id": 2, "bos_token_id": 1, "add_bos_token": True, "padding_token_id": 0, "eot_token_id": 3}
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"abcdefg", "\u2581a", "ab"]
    types = [2, 3, 3, *[6] * 256, *[1] * 9]
    spm = {"model": "llama", "tokens": pieces, "scores": [-float(i) for i in range(len(pieces))], "token_type": types}
    spm |= {"eos_token_id": 2, "bos_token_id": 1, "unknown_token_id": 0, "add_space_prefix": True}
    return [{f"tokenizer.ggml.{key}": value for key, value in each.items()} for each in (bpe, spm)]


def _vocabulary(rng: Random, seeds: list[dict[str, Any]]) -> Files:
    metadata = {key: list(value) if isinstance(value, list) else value for key, value in rng.choice(seeds).items()}
    for _ in range(rng.choice((1, 1, 2))):
        metadata = changed(rng, metadata)
    return {"metadata.json": dump(metadata)}


def _read_vocabulary(folder: Path) -> None:
    """Give the metadata as it is to the reader: what the header's own check lets through, and what it does not."""
    try:
        metadata = json.loads((folder / "metadata.json").read_bytes())
    except (ValueError, RecursionError):
        raise DataError("no metadata") from None
    tokenizer = tokenizer_from_gguf(metadata) if isinstance(metadata, dict) else None
    if tokenizer is None:
        raise DataError("no tokenizer")
    used(tokenizer, folder)


TARGETS = (
    Target(
        "sentencepiece", "a SentencePiece .model, alone and beside tokenizer_config.json", _sentencepiece_seeds,
        lambda rng, seeds: one_of(rng, seeds, lambda r, n, c: mutated(r, c, head=2000) if n.endswith(".model") else by_name(r,
        n, c)),
        _read_model_file,
    ),
    Target("tokenizer-json", "tokenizer.json, tokenizer_config.json, generation_config.json ...", _folder_seeds, _folder,
    _read_folder),
    Target("tokenizer-bundle", "tokenizer.model of a run", _bundle_seeds, _folder, _read_bundle),
    Target("gguf-vocabulary", "the vocabulary in a GGUF's metadata", _vocabulary_seeds, _vocabulary, _read_vocabulary),
)  # fmt: skip
