"""Tokenizers of the `tokenizers` library, from a tokenizer.json: byte-exact, and deaf to special tokens spelt in a text."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.data.damage import check_unicode, damage_named
from jaxlm.data.special_tokens import SpecialTokens, check_ids
from jaxlm.data.spelling import Spelling
from jaxlm.data.storage import write_atomically
from jaxlm.errors import DataError

_HIDING = "\U0010fffd"  # the last character there is, for private use


class HuggingFaceTokenizer:
    """A tokenizer.json; see `jaxlm.data.tokenizer.Tokenizer`.

    It keeps its own normalization, so `decode(encode(text))` is the normalized text (byte-level BPE without a normalizer: the
    text itself, to the byte), and nothing is tidied up on the way back: `clean_up_tokenization_spaces` is not honoured. One
    that puts a space before every text counts it in `token_bytes` and `decode_bytes`. Raises DataError where `values` is no
    tokenizer that the library opens, or has a decoder under which tokens have no bytes of their own.
    """

    def __init__(self, values: Mapping[str, Any], special: SpecialTokens, origin: str = "tokenizer"):
        # These three would make encoding lossy, padded or random.
        self.values = {**values, "truncation": None, "padding": None, "model": {**values["model"], "dropout": None}}
        self._tokenizer = open_library_tokenizer(self.values, origin)
        self._vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(self._vocabulary.values()) + 1
        if self.vocab_size > 65_536 + 16 * len(self._vocabulary):  # tables by id would be large for nothing
            raise DataError(f"{origin} has {len(self._vocabulary):,} tokens, and one of them the id {self.vocab_size - 1:,}")
        self._spelling = Spelling(self.values, origin)
        self.special_spellings = special_spellings(self.values)
        self.special = special
        self.bos_id, self.eos_id, self.pad_id = special.bos_id, special.eos_id, special.pad_id
        self.prefix_ids, self.stop_ids = special.prefix_ids, special.stop_ids
        self.chat_template, self.special_tokens = special.chat_template, dict(special.names)
        check_ids(special, self.vocab_size, origin)
        bundle = {"jaxlm_tokenizer": "hugging_face", "special": special.to_json(), "tokenizer": self.values}
        self.content = json.dumps(bundle, sort_keys=True, ensure_ascii=False).encode("utf-8", errors="surrogatepass")
        self.digest = hashlib.sha256(self.content).hexdigest()[:16]

    @classmethod
    def from_bundle(cls, bundle: Mapping[str, Any], origin: str) -> "HuggingFaceTokenizer":
        """Open what `save` wrote."""
        values = checked_values(bundle.get("tokenizer"), origin)
        return cls(values, SpecialTokens.from_json(bundle.get("special"), origin), origin)

    @cached_property
    def _plain(self) -> Any:
        """For ordinary text: special tokens are not looked for, and cannot be reached through the vocabulary either."""
        tokenizer = open_library_tokenizer(self.values, "tokenizer")
        tokenizer.encode_special_tokens = True
        reached = (tokenizer.encode(text, add_special_tokens=False).ids for text in self.special_spellings)
        if any(i in ids for i, ids in zip(self.special_spellings.values(), reached, strict=True)):
            tokenizer = open_library_tokenizer(_without_specials(self.values, self.special_spellings), "tokenizer")
            tokenizer.encode_special_tokens = True
        return tokenizer

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        with damage_named("the tokenizer"):
            return self._encode(check_unicode(text), specials)

    def _encode(self, text: str, specials: bool) -> list[int]:
        if specials:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        # Cut around the character that hides special tokens, no text spells one of them with it.
        parts = re.split(f"({_HIDING})", text) if _HIDING in text else [text]
        return [i for part in parts if part or len(parts) == 1 for i in self._plain.encode(part, add_special_tokens=False).ids]

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(self.encode(text), np.int32) for text in texts]

    @cached_property
    def _pieces(self) -> list[bytes]:
        """The bytes of every id, also of special ones."""
        added = {token["id"] for token in self.values.get("added_tokens") or ()}
        pieces = [b""] * self.vocab_size
        for text, i in self._vocabulary.items():
            # An added token is spelt as it is, not in the alphabet of bytes; a metaspace in it is still a space.
            as_it_is = i in added and self._spelling.alphabet
            pieces[i] = text.encode() if as_it_is else self._spelling.of(text)
        return pieces

    def _bytes(self, ids: Iterable[int], specials: bool) -> bytes:
        pieces, hidden = self._pieces, () if specials else self._hidden
        return b"".join(pieces[i] for i in map(int, ids) if 0 <= i < len(pieces) and i not in hidden)

    @cached_property
    def _hidden(self) -> frozenset[int]:
        return frozenset(self.special_spellings.values())

    def decode(self, ids: Iterable[int], *, specials: bool = False) -> str:
        data = self._bytes(ids, specials)
        return data[self._spelling.strips and data[:1] == b" " :].decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return self._bytes(ids, specials=False)

    def token_bytes(self) -> np.ndarray:
        return np.array([0 if i in self._hidden else len(piece) for i, piece in enumerate(self._pieces)], np.int32)

    def save(self, path: Path | str) -> None:
        write_atomically(Path(path), self.content)


def checked_values(values: Any, origin: str) -> Mapping[str, Any]:
    """Return `values` if they have the outline of a tokenizer.json, else raise DataError."""
    good = isinstance(values, Mapping) and isinstance(values.get("model"), Mapping)
    added = (values.get("added_tokens") or []) if good else None
    if not isinstance(added, list) or not all(
        isinstance(token, Mapping) and type(token.get("id")) is int and isinstance(token.get("content"), str) for token in added
    ):
        raise DataError(f"{origin} is damaged or no SentencePiece model or tokenizer.json: save it at its home again")
    return values


def special_spellings(values: Mapping[str, Any]) -> dict[str, int]:
    """Return the special tokens of a tokenizer.json by spelling."""
    return {token["content"]: token["id"] for token in values.get("added_tokens") or () if token.get("special")}


def open_library_tokenizer(values: Mapping[str, Any], origin: str) -> Any:
    """Return the `tokenizers.Tokenizer` of a tokenizer.json; DataError where the library refuses it or is not installed."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise DataError(f"{origin} needs the package tokenizers: pip install 'jaxlm[pretrained]'") from error
    try:
        tokenizer = Tokenizer.from_str(json.dumps(values))
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    except BaseException as error:
        # The library's own panics are no Exceptions.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise DataError(f"{origin} is no tokenizer that the package tokenizers opens: {error}") from error
    if not vocabulary or max(vocabulary.values()) >= 2**24:
        raise DataError(f"{origin} has an empty vocabulary, or ids beyond 2^24: save the tokenizer at its home again")
    for token in values.get("added_tokens") or ():
        found = vocabulary.get(token["content"])
        if found != token["id"]:
            raise DataError(
                f"{origin} gives {token['content']!r:.80} the id {token['id']}, but the vocabulary makes it {found}: "
                "save the tokenizer at its home again"
            )
    return tokenizer


def _without_specials(values: Mapping[str, Any], specials: Mapping[str, int]) -> dict[str, Any]:
    """Return a tokenizer.json with the same ids in which no text spells a special token: a private prefix hides each."""

    def hidden(text: str) -> str:
        return _HIDING + text if text in specials else text

    model = dict(values["model"])
    vocabulary = model["vocab"]
    if isinstance(vocabulary, Mapping):
        model["vocab"] = {hidden(text): i for text, i in vocabulary.items()}
    else:
        model["vocab"] = [[hidden(text), score] for text, score in vocabulary]
    if "merges" in model:
        pairs = [merge.split(" ") if isinstance(merge, str) else list(merge) for merge in model["merges"]]
        model["merges"] = [pair for pair in pairs if not specials.keys() & {*pair, "".join(pair)}]
    if model.get("unk_token") is not None:
        model["unk_token"] = hidden(model["unk_token"])
    added = [{**token, "content": hidden(token["content"])} for token in values.get("added_tokens") or ()]
    return {**values, "model": model, "added_tokens": added, "post_processor": None}
