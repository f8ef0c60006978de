"""The vocabulary inside a GGUF file, as a tokenizer that gives the ids of the model's home."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlm.data.damage import damage_named
from jaxlm.data.hugging_face_tokenizer import HuggingFaceTokenizer
from jaxlm.data.sentencepiece_tokenizer import SentencePieceTokenizer
from jaxlm.data.special_tokens import make_special_tokens
from jaxlm.data.spelling import byte_alphabet
from jaxlm.errors import DataError, suggest

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_WHERE = "the GGUF's vocabulary"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ENGLISH_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = _ENGLISH_ENDINGS + (r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What a file with an unnamed pre-tokenizer, or "default", is cut by in llama.cpp.
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")
_DIGITS = (r"\p{N}", _GPT2)
# Each pre-tokenizer: patterns that cut a text one after the other, whether a whole word that is a token is taken without
# merging, and whether bos goes first where the file does not say.
_PRE_TOKENIZERS: dict[str, tuple[tuple[str, ...], bool, bool]] = {
    "default": (_DEFAULT, False, False),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "exaone4"), ((_GPT2,), False, False)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "exaone", "minerva-7b"), (_DIGITS, False, False)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"), ((_LLAMA3,), True, True)),
    **dict.fromkeys(("dbrx", "smaug-bpe"), ((_LLAMA3,), False, False)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2"), ((_QWEN2,), False, False)),
    "tekken": ((_TEKKEN,), True, True),
}


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> HuggingFaceTokenizer | SentencePieceTokenizer | None:
    """Return the tokenizer that a GGUF's metadata (plain values by key) describes; None where there is none.

    Kinds: "gpt2" (byte-level BPE, cut by the pre-tokenizer that the file names) and "llama" (SentencePiece BPE). Raises
    DataError for others, for a pre-tokenizer that jaxlm does not know, and for lists or ids that contradict one another.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind in (None, "no_vocab", "none"):
        return None
    with damage_named(_WHERE):
        return _opened(kind, metadata)


def _opened(kind: Any, metadata: Mapping[str, Any]) -> HuggingFaceTokenizer | SentencePieceTokenizer:
    if kind not in ("gpt2", "llama"):
        raise DataError(f"{_WHERE} is of kind {kind!r:.80}; jaxlm reads 'gpt2' (byte-level BPE) and 'llama' (SentencePiece)")
    tokens = _strings(metadata, "tokens")
    if not tokens or len(set(tokens)) != len(tokens):
        seen: set[str] = set()
        twice = next((text for text in tokens if text in seen or seen.add(text)), None)
        raise DataError(f"{_WHERE} is empty" if not tokens else f"{_WHERE} has the token {twice!r:.80} twice")
    types = metadata.get("tokenizer.ggml.token_type")
    types = [_NORMAL] * len(tokens) if types is None else list(types)
    if len(types) != len(tokens) or not set(types) <= set(range(1, 7)):
        raise DataError(f"{_WHERE} has {len(tokens)} tokens but {len(types)} types, or types other than 1 to 6")
    for key in ("bos", "eos", "eot"):  # some files call them normal
        i = _id(metadata, key, len(tokens))
        if i is not None and types[i] == _NORMAL:
            types[i] = _CONTROL
    return (_byte_level if kind == "gpt2" else _sentencepiece)(metadata, tokens, types)


def _byte_level(metadata: Mapping[str, Any], tokens: list[str], types: list[int]) -> HuggingFaceTokenizer:
    name = metadata.get("tokenizer.ggml.pre", "default")
    if name not in _PRE_TOKENIZERS:
        near = suggest(str(name), _PRE_TOKENIZERS)
        raise DataError(
            f"{_WHERE} is cut by the pre-tokenizer {name!r:.80}, which jaxlm does not know.{near} Known: "
            f"{', '.join(_PRE_TOKENIZERS)}. Import the model's Hugging Face folder instead: its tokenizer.json spells it out"
        )
    patterns, whole_words, begins = _PRE_TOKENIZERS[name]
    vocabulary = {text: i for i, text in enumerate(tokens)}
    merges = [merge.split(" ") for merge in _strings(metadata, "merges")]
    for pair in merges:
        if len(pair) != 2 or not {*pair, "".join(pair)} <= vocabulary.keys():
            raise DataError(f"{_WHERE} merges {' '.join(pair)!r:.80}, whose two parts and whole are not all tokens")
    # Some leave out bytes that no text in use has; a vocabulary without most of them is of another kind.
    if sum(text in vocabulary for text in byte_alphabet()) < 128:
        raise DataError(f"{_WHERE} says that it is byte-level BPE, but has no tokens for most bytes")
    added = [
        {"id": i, "content": text, "special": kind == _CONTROL}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for i, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    cuts = [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False} for pattern in patterns]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    options = dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"))
    options |= {"fuse_unk": False, "byte_fallback": False, "ignore_merges": whole_words}
    special = _special(metadata, tokens, types, begins)
    values = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*cuts, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", **options, "vocab": vocabulary, "merges": merges},
    }
    return HuggingFaceTokenizer(values, special, _WHERE)


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str], types: list[int]) -> SentencePieceTokenizer:
    from sentencepiece import sentencepiece_model_pb2 as pb2

    scores = metadata.get("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(tokens):
        raise DataError(f"{_WHERE} has {len(tokens)} tokens but {0 if scores is None else len(scores)} scores")
    if not all(isinstance(score, float | int | np.number) for score in scores):
        raise DataError(f"{_WHERE} has scores that are no numbers")
    model = pb2.ModelProto()
    for text, score, kind in zip(tokens, scores, types, strict=True):
        # Some files hold runs of spaces as they are read, not as SentencePiece writes them.
        model.pieces.add(piece=text.replace(" ", "\u2581") or "\u2581", score=float(score), type=int(kind))
    unknown = _id(metadata, "unknown", len(tokens))
    if _UNKNOWN not in types:
        model.pieces[unknown or 0].type = _UNKNOWN
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type, trainer.vocab_size = pb2.TrainerSpec.BPE, len(tokens)
    trainer.byte_fallback = _BYTE in types
    trainer.unk_id = [piece.type for piece in model.pieces].index(_UNKNOWN)
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        i = _id(metadata, key, len(tokens))
        setattr(trainer, f"{name}_id", -1 if i is None else i)
        if i is not None:
            setattr(trainer, f"{name}_piece", tokens[i])
    trainer.unk_piece = tokens[trainer.unk_id]
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    normalizer.remove_extra_whitespaces = bool(metadata.get("tokenizer.ggml.remove_extra_whitespaces", False))
    normalizer.escape_whitespaces = True
    special = _special(metadata, tokens, types, begins=True)
    return SentencePieceTokenizer(model.SerializeToString(), _WHERE, special)


def _special(metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], begins: bool):
    keys = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "sep_token": "seperator", "pad_token": "padding"}
    ids = {name: _id(metadata, key, len(tokens)) for name, key in keys.items()}
    stops = [i for key in ("eot", "eom") if (i := _id(metadata, key, len(tokens))) is not None]
    begins = bool(metadata.get("tokenizer.ggml.add_bos_token", begins)) and ids["bos_token"] is not None
    template = metadata.get("tokenizer.chat_template")
    if not isinstance(template, str | None):
        raise DataError(f"{_WHERE} has a chat template that is no text")
    spellings = {i: text for i, text in enumerate(tokens) if types[i] == _CONTROL}
    spellings |= {i: tokens[i] for i in ids.values() if i is not None}
    return make_special_tokens(spellings, ids, (ids["bos_token"],) if begins else (), stops, template, _WHERE)


def _id(metadata: Mapping[str, Any], key: str, size: int) -> int | None:
    i = metadata.get(f"tokenizer.ggml.{key}_token_id")
    # 2^32 - 1 is how some files write that there is none.
    if i is None or i in (-1, 2**32 - 1):
        return None
    if not isinstance(i, int | np.integer) or not 0 <= i < size:
        raise DataError(f"{_WHERE} names {i!r:.80} as its {key} token, but its ids go from 0 to {size - 1}")
    return int(i)


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    values = metadata.get(f"tokenizer.ggml.{key}")
    if values is None or isinstance(values, str) or not all(isinstance(text, str) for text in values):
        raise DataError(f"{_WHERE} has no list of texts under tokenizer.ggml.{key}")
    return list(values)
