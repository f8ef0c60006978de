"""Any tokenizer as the files of a Hugging Face folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlm.data.byte_tokenizer import ByteTokenizer
from jaxlm.data.hugging_face_tokenizer import HuggingFaceTokenizer
from jaxlm.data.sentencepiece_tokenizer import SentencePieceTokenizer
from jaxlm.data.spelling import byte_alphabet
from jaxlm.data.storage import write_atomically
from jaxlm.data.tokenizer import Tokenizer

_FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)


def save_hugging_face(tokenizer: Tokenizer, folder: Path | str) -> None:
    """Write the files from which transformers' AutoTokenizer opens `tokenizer`: what it encodes here, it encodes there.

    A tokenizer.json, or tokenizer.model for a SentencePiece model that normalizes; tokenizer_config.json; the chat template.
    """
    folder = Path(folder)
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= {"add_bos_token": bool(tokenizer.prefix_ids), "add_eos_token": False, **tokenizer.special_tokens}
    if isinstance(tokenizer, HuggingFaceTokenizer):
        values: Mapping[str, Any] | None = tokenizer.values
    elif isinstance(tokenizer, ByteTokenizer):
        values, config = byte_level_json(), config | {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    else:
        values, config = sentencepiece_json(tokenizer), config | tokenizer.described()
    if values is None:
        write_atomically(folder / "tokenizer.model", tokenizer.model)
        config["tokenizer_class"] = "LlamaTokenizer"
    else:
        if (values.get("post_processor") or {}).get("type") in (None, "ByteLevel"):
            values = {**values, "post_processor": _beginning(tokenizer.prefix_ids, values)}
        write_atomically(folder / "tokenizer.json", json.dumps(values, ensure_ascii=False).encode())
    if tokenizer.chat_template is not None:
        config["chat_template"] = tokenizer.chat_template
        write_atomically(folder / "chat_template.jinja", tokenizer.chat_template.encode())
    write_atomically(folder / "tokenizer_config.json", json.dumps(config, indent=2, ensure_ascii=False).encode())


def _beginning(prefix_ids: tuple[int, ...], values: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what puts `prefix_ids` before a text in a tokenizer.json."""
    spelled = {token["id"]: token["content"] for token in values["added_tokens"]}
    names = [spelled[i] for i in prefix_ids if i in spelled]
    if not names:
        return None
    first = [{"SpecialToken": {"id": name, "type_id": 0}} for name in names]
    texts = [{"Sequence": {"id": name, "type_id": 0}} for name in ("A", "B")]
    tokens = {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in zip(names, prefix_ids, strict=True)}
    return {"type": "TemplateProcessing", "single": [*first, texts[0]], "pair": [*first, *texts], "special_tokens": tokens}


def byte_level_json() -> dict[str, Any]:
    """Return the byte tokenizer as byte-level BPE without a merge."""
    vocabulary = {name: i for i, name in enumerate(("<pad>", "<bos>", "<eos>"))}
    vocabulary |= {text: byte + 3 for text, byte in byte_alphabet().items()}
    cut = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    added = [{"id": i, "content": name, "special": True, **_FLAGS} for name, i in vocabulary.items() if i < 3]
    assert ByteTokenizer.vocab_size == len(vocabulary)
    model = {"type": "BPE", "ignore_merges": False, "byte_fallback": False, "fuse_unk": False, "unk_token": None}
    return _document(added, None, cut, cut, {**model, "vocab": vocabulary, "merges": []})


def sentencepiece_json(tokenizer: SentencePieceTokenizer) -> Mapping[str, Any] | None:
    """Return a model that changes no text as a tokenizer.json; None for others, which keep their .model.

    A space before every text is no change, if special tokens are followed by one, too (the library puts it after them). BPE
    merges are every way in which two pieces make a third, by its score. There a U+2581 in a text is a space, "<unk>" a special
    token, and a unigram model takes the text "<0x0A>" for the piece of that name, a line feed.
    """
    from sentencepiece import sentencepiece_model_pb2 as pb2

    model = pb2.ModelProto.FromString(tokenizer.model)
    rules, kinds = model.normalizer_spec, pb2.ModelProto.SentencePiece
    pieces = [(piece.piece, piece.score, piece.type) for piece in model.pieces]
    prefix = rules.add_dummy_prefix
    plain = not (rules.precompiled_charsmap or rules.remove_extra_whitespaces) and model.trainer_spec.byte_fallback
    if prefix and (not tokenizer.prefix_after_special or kinds.USER_DEFINED in [kind for _, _, kind in pieces]):
        plain = False
    if not plain or model.trainer_spec.model_type not in (1, 2):
        return None
    added = [
        {"id": i, "content": text, "special": kind != kinds.USER_DEFINED, **_FLAGS}
        for i, (text, _, kind) in enumerate(pieces)
        if kind in (kinds.CONTROL, kinds.UNKNOWN, kinds.USER_DEFINED)
    ]
    added += [{"id": i, "content": text, "special": True, **_FLAGS} for text, i in tokenizer.added.items()]
    spaces = [{"type": "Prepend", "prepend": "\u2581"}] if prefix else []
    spaces.append({"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"})
    steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}]
    steps += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    steps += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    unknown = [kind for _, _, kind in pieces].index(kinds.UNKNOWN)
    if model.trainer_spec.model_type == 1:
        scored = [[text, score] for text, score, _ in pieces]
        trained: dict[str, Any] = {"type": "Unigram", "unk_id": unknown, "vocab": scored, "byte_fallback": True}
    else:
        vocabulary = {text: i for i, (text, _, _) in enumerate(pieces)}
        ranked = sorted((-score, text) for text, score, kind in pieces if kind == kinds.NORMAL and len(text) > 1)
        splits = ((text[:cut], text[cut:]) for _, text in ranked for cut in range(1, len(text)))
        merges = [list(pair) for pair in splits if vocabulary.keys() >= set(pair)]
        trained = {"type": "BPE", "unk_token": pieces[unknown][0], "fuse_unk": True, "byte_fallback": True}
        trained |= {"ignore_merges": False, "vocab": vocabulary, "merges": merges}
    normalizer = {"type": "Sequence", "normalizers": spaces}
    return _document(added, normalizer, None, {"type": "Sequence", "decoders": steps}, trained)


def _document(added: list, normalizer: Any, pre_tokenizer: Any, decoder: Any, model: Mapping[str, Any]) -> dict[str, Any]:
    outline = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": normalizer}
    return {**outline, "pre_tokenizer": pre_tokenizer, "post_processor": None, "decoder": decoder, "model": dict(model)}
