"""Text to token ids and back without loss: SentencePiece (BPE or unigram, with byte fallback), or plain bytes."""

import hashlib
import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, Protocol

import numpy as np
import sentencepiece

from jaxlm.config import Range, config
from jaxlm.data.storage import write_atomically
from jaxlm.errors import ConfigError, DataError

BYTE_VOCAB_SIZE = 259  # pad, bos, eos and the 256 bytes

# SentencePiece writes a space as U+2581, so this character itself, found in a text, would come back as a space.
_SPACE_MARK = "\u2581"
_UNIGRAM_BYTES = 1_250_000  # the unigram trainer is 8 times as slow as BPE and gains little from more text
_LONGEST_LINE = 4096


@config
class TokenizerConfig:
    """How text becomes tokens."""

    kind: Literal["bpe", "unigram", "byte"] = "bpe"
    """bpe and unigram are trained on a sample of the training text; byte needs no training."""
    vocab_size: Annotated[int, Range(BYTE_VOCAB_SIZE, 2**20)] = 4096
    """Number of tokens, special ones included (byte: 259)."""
    path: str = ""
    """An existing SentencePiece .model to use instead of training one; vocab_size must be its size."""
    training_bytes: Annotated[int, Range(1)] = 10_000_000
    """Bytes of text to train on, spread over all sources."""

    def check(self) -> None:
        if self.kind == "byte" and self.path:
            raise ConfigError(f"TokenizerConfig.path = {self.path!r} goes with kind='bpe' or 'unigram', not with kind='byte'")
        if self.kind == "byte" and self.vocab_size != BYTE_VOCAB_SIZE:
            raise ConfigError(
                f"TokenizerConfig.vocab_size = {self.vocab_size} does not go with kind='byte': "
                f"set vocab_size={BYTE_VOCAB_SIZE} (pad, bos, eos and the 256 bytes)"
            )


class Tokenizer(Protocol):
    """What the rest of jaxlm asks of a tokenizer; ids of specials never come out of `encode`."""

    vocab_size: int
    pad_id: int
    bos_id: int
    eos_id: int
    digest: str
    """16 hexadecimal digits that change when, and only when, the tokenizer does."""

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, without bos and eos."""

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of each text as an int32 array."""

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`: specials are invisible, bytes that are not UTF-8 become U+FFFD."""

    def token_bytes(self) -> np.ndarray:
        """Return int32 [vocab_size]: the UTF-8 bytes of text each token stands for (specials: 0), to report bits per byte."""

    def save(self, path: Path | str) -> None:
        """Write a file that `load_tokenizer` opens."""


class ByteTokenizer:
    """One token a byte; see `Tokenizer`."""

    vocab_size, pad_id, bos_id, eos_id = BYTE_VOCAB_SIZE, 0, 1, 2
    _content = json.dumps({"jaxlm_tokenizer": "byte", "vocab_size": BYTE_VOCAB_SIZE}).encode()
    digest = hashlib.sha256(_content).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        return self.encode_many([text])[0].tolist()

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) + 3 for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i - 3 for i in map(int, ids) if i >= 3).decode("utf-8", errors="replace")

    def token_bytes(self) -> np.ndarray:
        return (np.arange(self.vocab_size) >= 3).astype(np.int32)

    def save(self, path: Path | str) -> None:
        write_atomically(Path(path), self._content)


class SentencePieceTokenizer:
    """A SentencePiece model; see `Tokenizer`.

    Models trained here are lossless. A model from elsewhere keeps its own normalization, so `decode(encode(text))` is the
    normalized text. One without bos uses eos in its place; one without pad uses id 0, which stands only where weights are 0.
    Raises DataError where `content` is no SentencePiece model, or one without an end-of-sequence token.
    """

    def __init__(self, content: bytes, origin: str = "tokenizer"):
        sentencepiece.set_min_log_level(3)
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=content) if content else None
        except RuntimeError:
            self._processor = None
        if self._processor is None or not len(self._processor):
            raise DataError(f"{origin} is damaged or no SentencePiece model: give the .model file that spm_train wrote")
        if self._processor.eos_id() < 0:
            raise DataError(f"{origin} has no end-of-sequence token, which separates documents: train it with eos_id >= 0")
        self._content = content
        self.vocab_size = len(self._processor)
        self.eos_id = self._processor.eos_id()
        self.bos_id = self._processor.bos_id() if self._processor.bos_id() >= 0 else self.eos_id
        self.pad_id = max(self._processor.pad_id(), 0)
        self.digest = hashlib.sha256(content).hexdigest()[:16]
        mark = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE_MARK.encode()]
        self._mark_ids = mark if all(map(self._processor.is_byte, mark)) else None

    def encode(self, text: str) -> list[int]:
        if self._mark_ids is None or _SPACE_MARK not in text:
            return self._processor.encode(text)
        parts = self._processor.encode(text.split(_SPACE_MARK))
        return parts[0] + [i for part in parts[1:] for i in (*self._mark_ids, *part)]

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(self.encode(text), np.int32) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return self._processor.decode([int(i) for i in ids])

    def token_bytes(self) -> np.ndarray:
        def length(i: int) -> int:
            if self._processor.is_byte(i):
                return 1
            if self._processor.is_control(i) or self._processor.is_unknown(i) or self._processor.is_unused(i):
                return 0
            return len(self._processor.id_to_piece(i).replace(_SPACE_MARK, " ").encode())

        return np.array([length(i) for i in range(self.vocab_size)], np.int32)

    def save(self, path: Path | str) -> None:
        write_atomically(Path(path), self._content)


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Open a tokenizer that `save` wrote, or any SentencePiece .model; DataError where that cannot be done."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the tokenizer {path}: {error.strerror}") from error
    return ByteTokenizer() if content == ByteTokenizer._content else SentencePieceTokenizer(content, str(path))


def train_tokenizer(config: TokenizerConfig, documents: Iterable[str]) -> Tokenizer:
    """Return the tokenizer that `config` asks for, trained where needed on the first `training_bytes` of `documents`.

    The same documents give the same tokenizer, to the byte. Raises ConfigError where `config.path` has another vocabulary size,
    and DataError where the text is too small for `vocab_size`.
    """
    if config.kind == "byte":
        return ByteTokenizer()
    if config.path:
        return _load_checked(config)
    lines = list(_training_lines(documents, config.training_bytes))
    if config.kind == "unigram":
        lines = lines[:: 1 + sum(map(len, lines)) // _UNIGRAM_BYTES]
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type=config.kind,
            vocab_size=config.vocab_size,
            # Lossless: no rewriting, every space kept, and what has no piece is spelt in bytes.
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            split_digits=True,
            user_defined_symbols=["\n", "\t"],  # the trainer never sees the one and leaves out the other
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            max_sentence_length=4 * _LONGEST_LINE,
            num_threads=4,  # fixed: the order of unigram's sums, and a field of the model file
            minloglevel=3,
        )
    except RuntimeError as error:
        raise _training_error(config, error) from error
    return SentencePieceTokenizer(model.getvalue())


def _load_checked(config: TokenizerConfig) -> Tokenizer:
    tokenizer = load_tokenizer(config.path)
    if tokenizer.vocab_size != config.vocab_size:
        raise ConfigError(
            f"TokenizerConfig.vocab_size = {config.vocab_size}, but {config.path} has {tokenizer.vocab_size} tokens: "
            f"set vocab_size={tokenizer.vocab_size}"
        )
    return tokenizer


def _training_lines(documents: Iterable[str], training_bytes: int) -> Iterator[str]:
    taken = 0
    for line in itertools.chain.from_iterable(document.split("\n") for document in documents):
        for start in range(0, len(line), _LONGEST_LINE):
            part = line[start : start + _LONGEST_LINE]
            taken += len(part.encode())
            if taken > training_bytes:
                return
            yield part


def _training_error(config: TokenizerConfig, error: RuntimeError) -> DataError:
    # SentencePiece puts the nearest size that works into its message, and nowhere else.
    most = re.search(r"too high.*<= (\d+)", str(error))
    least = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error))
    if most:
        return DataError(
            f"the training text is too small for vocab_size={config.vocab_size}: "
            f"set tokenizer.vocab_size={most[1]} or less, or give more text"
        )
    if least:
        return DataError(
            f"vocab_size={config.vocab_size} is too small for the characters of the training text: "
            f"set tokenizer.vocab_size={least[1]} or more"
        )
    if "sentences_.empty" in str(error):
        return DataError("there is no text to train a tokenizer on: give other sources, or tokenizer.kind='byte'")
    return DataError(f"SentencePiece cannot train this tokenizer: {error}")
