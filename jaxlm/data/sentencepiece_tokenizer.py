"""SentencePiece models: those trained here, and those from elsewhere with the special tokens of their home."""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from jaxlm.data.damage import check_unicode
from jaxlm.data.special_tokens import SpecialTokens, check_ids
from jaxlm.data.storage import write_atomically
from jaxlm.errors import DataError

# SentencePiece writes a space as U+2581, so this character itself, found in a text, would come back as a space.
_SPACE_MARK = "\u2581"
_UNKNOWN = " \u2047 "  # what SentencePiece itself decodes an unknown token to


class SentencePieceTokenizer:
    """A SentencePiece model; see `jaxlm.data.tokenizer.Tokenizer`.

    Models trained here are lossless. A model from elsewhere keeps its own normalization, so `decode(encode(text))` is the
    normalized text; one that puts a space before every text counts it in `token_bytes` and `decode_bytes`. Without `special`,
    one without bos uses eos in its place, and one without pad id 0, which stands only where weights are 0. `added` are special
    tokens beyond the model's own pieces, {spelling: id}; `prefix_after_special` says that the text after a special token gets
    the leading space, too, as in llama.cpp. Raises DataError where `content` is no SentencePiece model, or one without an
    end-of-sequence token.
    """

    def __init__(
        self,
        content: bytes,
        origin: str = "tokenizer",
        special: SpecialTokens | None = None,
        added: Mapping[str, int] | None = None,
        prefix_after_special: bool = True,
    ):
        self._processor = _open(content, origin)
        self._special, self.added, self.prefix_after_special = special, dict(added or {}), prefix_after_special
        pieces = len(self._processor)
        self.vocab_size = max([pieces, *(i + 1 for i in self.added.values())])
        beyond = {i for i in self.added.values() if i >= pieces}
        if len(beyond) != self.vocab_size - pieces or min(self.added.values(), default=0) < 0:
            raise DataError(f"{origin}: the tokens added to its {pieces} pieces must have the ids that follow, each once")
        if special is None:
            if self._processor.eos_id() < 0:
                raise DataError(f"{origin} has no end-of-sequence token, which separates documents: train it with eos_id >= 0")
            self.eos_id = self._processor.eos_id()
            self.bos_id = self._processor.bos_id() if self._processor.bos_id() >= 0 else self.eos_id
            self.pad_id = max(self._processor.pad_id(), 0)
            self.prefix_ids, self.stop_ids, self.chat_template, self.special_tokens = (self.bos_id,), (self.eos_id,), None, {}
        else:
            check_ids(special, self.vocab_size, origin)
            self.bos_id, self.eos_id, self.pad_id = special.bos_id, special.eos_id, special.pad_id
            self.prefix_ids, self.stop_ids = special.prefix_ids, special.stop_ids
            self.chat_template, self.special_tokens = special.chat_template, dict(special.names)
        self.model = content
        self.content = content if special is None else self._bundle()
        self.digest = hashlib.sha256(self.content).hexdigest()[:16]
        mark = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE_MARK.encode()]
        # A model from elsewhere takes the character for a space, as it does at its home.
        self._mark_ids = mark if special is None and all(map(self._processor.is_byte, mark)) else None

    @classmethod
    def from_bundle(cls, bundle: Mapping[str, Any], origin: str) -> "SentencePieceTokenizer":
        """Open what `save` wrote of a model with special tokens of its own."""
        try:
            content = base64.b64decode(bundle["model"], validate=True)
            added = {str(text): int(i) for text, i in bundle["added"].items()}
            values, after = bundle["special"], bool(bundle["prefix_after_special"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{origin} is damaged: it is no bundle of a SentencePiece model. Import the model again") from error
        return cls(content, origin, SpecialTokens.from_json(values, origin), added, after)

    def _bundle(self) -> bytes:
        values = {
            "jaxlm_tokenizer": "sentencepiece",
            "special": self._special.to_json(),
            "added": self.added,
            "prefix_after_special": self.prefix_after_special,
            "model": base64.b64encode(self.model).decode(),
        }
        return json.dumps(values, sort_keys=True).encode()

    @cached_property
    def special_spellings(self) -> dict[str, int]:
        """Every special token by its spelling."""
        own = {self._processor.id_to_piece(i): i for i in range(len(self._processor)) if self._processor.is_control(i)}
        return own | self.added

    @cached_property
    def _split(self) -> re.Pattern:
        return re.compile("(" + "|".join(map(re.escape, sorted(self.special_spellings, key=len, reverse=True))) + ")")

    @cached_property
    def _without_prefix(self) -> sentencepiece.SentencePieceProcessor:
        from sentencepiece import sentencepiece_model_pb2

        model = sentencepiece_model_pb2.ModelProto.FromString(self.model)
        model.normalizer_spec.add_dummy_prefix = False
        return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        text = check_unicode(text)
        if not specials or not self.special_spellings:
            return self._encode(text, self._processor)
        ids: list[int] = []
        for index, part in enumerate(self._split.split(text)):
            if index % 2:
                ids.append(self.special_spellings[part])
            elif part:
                later = index and not self.prefix_after_special
                ids += self._encode(part, self._without_prefix if later else self._processor)
        return ids

    def _encode(self, text: str, processor: sentencepiece.SentencePieceProcessor) -> list[int]:
        if self._mark_ids is None or _SPACE_MARK not in text:
            return processor.encode(text)
        parts = processor.encode(text.split(_SPACE_MARK))
        return parts[0] + [i for part in parts[1:] for i in (*self._mark_ids, *part)]

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(self.encode(text), np.int32) for text in texts]

    @cached_property
    def _pieces(self) -> list[bytes]:
        """The bytes of every id below the added ones; none for control and unused pieces."""

        def spelled(i: int) -> bytes:
            if self._processor.is_byte(i):
                return bytes([int(self._processor.id_to_piece(i)[3:5], 16)])
            if self._processor.is_unknown(i):
                return _UNKNOWN.encode()
            if self._processor.is_control(i) or self._processor.is_unused(i):
                return b""
            return self._processor.id_to_piece(i).replace(_SPACE_MARK, " ").encode()

        return [spelled(i) for i in range(len(self._processor))]

    @cached_property
    def _strips(self) -> bool:
        """Whether SentencePiece takes one space off the front of what it decodes."""
        marked = (i for i, piece in enumerate(self._pieces) if len(piece) > 1 and piece[:1] == b" " and piece[1:2] != b" ")
        first = next((i for i in marked if not self._processor.is_unknown(i)), None)
        return first is not None and not self._processor.decode([first]).startswith(" ")

    def decode(self, ids: Iterable[int], *, specials: bool = False) -> str:
        if specials:
            spelled = {i: text.encode() for text, i in self.special_spellings.items()}
            data = b"".join(spelled.get(i) or self.decode_bytes([i]) for i in map(int, ids))
        else:
            data = self.decode_bytes(ids)
        return data[self._strips and data[:1] == b" " :].decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        pieces = self._pieces
        return b"".join(pieces[i] for i in map(int, ids) if 0 <= i < len(pieces))

    def token_bytes(self) -> np.ndarray:
        counts = np.zeros(self.vocab_size, np.int32)
        counts[: len(self._pieces)] = [
            0 if self._processor.is_unknown(i) else len(piece) for i, piece in enumerate(self._pieces)
        ]
        return counts

    def described(self) -> dict[str, Any]:
        """Return what a tokenizer_config.json says of this model, as `tokenizer_from_hugging_face` reads it."""
        flags = ("single_word", "lstrip", "rstrip", "normalized")
        added = {str(i): {"content": text, "special": True, **dict.fromkeys(flags, False)} for text, i in self.added.items()}
        ids = {"bos_token": self.bos_id, "eos_token": self.eos_id, "unk_token": self._processor.unk_id()}
        names = {name: self._processor.id_to_piece(i) for name, i in ids.items() if i < len(self._processor)}
        return {"added_tokens_decoder": added, "legacy": self.prefix_after_special, **names, **self.special_tokens}

    def save(self, path: Path | str) -> None:
        write_atomically(Path(path), self.content)


def _open(content: bytes, origin: str) -> sentencepiece.SentencePieceProcessor:
    sentencepiece.set_min_log_level(3)
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=content) if content else None
        for i in range(len(processor or ())):
            processor.id_to_piece(i)
    except (RuntimeError, UnicodeDecodeError):  # the latter where a piece, or what the library says of it, is no text
        processor = None
    if processor is None or not len(processor):
        raise DataError(
            f"{origin} is damaged or no SentencePiece model: give the .model file that spm_train wrote, "
            "a tokenizer.json, or a folder with one"
        )
    return processor
