"""Text to token ids and back: the one interface, its configuration, and which kind a file holds."""

import io
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Protocol

import numpy as np
import sentencepiece

from jaxlm.config import Range, config, read_json
from jaxlm.data.byte_tokenizer import BYTE_VOCAB_SIZE, ByteTokenizer
from jaxlm.data.damage import damage_named
from jaxlm.data.hugging_face_folder import tokenizer_from_hugging_face, tokenizer_from_json
from jaxlm.data.hugging_face_tokenizer import HuggingFaceTokenizer
from jaxlm.data.sentencepiece_tokenizer import SentencePieceTokenizer
from jaxlm.errors import ConfigError, DataError

_UNIGRAM_BYTES = 1_250_000  # the unigram trainer is 8 times as slow as BPE and gains little from more text
_LONGEST_LINE = 4096


@config
class TokenizerConfig:
    """How text becomes tokens."""

    kind: Literal["bpe", "unigram", "byte", "none"] = "bpe"
    """bpe and unigram are trained on a sample of the training text; byte needs no training; none is for a model that came
    without a tokenizer."""
    vocab_size: Annotated[int, Range(1, 2**20)] = 4096
    """Number of tokens, special ones included (byte: 259, none: 1)."""
    path: str = ""
    """An existing tokenizer to use instead of training one: a SentencePiece .model, a tokenizer.json, a Hugging Face folder or
    a run's tokenizer.model. vocab_size must be its size; kind is then of no account."""
    training_bytes: Annotated[int, Range(1)] = 10_000_000
    """Bytes of text to train on, spread over all sources."""

    def check(self) -> None:
        if self.kind in ("byte", "none") and self.path:
            raise ConfigError(
                f"TokenizerConfig.path = {self.path!r} goes with kind='bpe' or 'unigram', not with kind={self.kind!r}"
            )
        if self.kind == "none" and self.vocab_size != 1:
            raise ConfigError(f"TokenizerConfig.vocab_size = {self.vocab_size} does not go with kind='none': set vocab_size=1")
        if not self.path and self.kind in ("bpe", "unigram") and self.vocab_size < BYTE_VOCAB_SIZE:
            raise ConfigError(
                f"TokenizerConfig.vocab_size = {self.vocab_size} is out of range: a tokenizer that is trained has at least "
                f"{BYTE_VOCAB_SIZE} tokens (3 special ones and the 256 bytes)"
            )
        if self.kind == "byte" and self.vocab_size != BYTE_VOCAB_SIZE:
            raise ConfigError(
                f"TokenizerConfig.vocab_size = {self.vocab_size} does not go with kind='byte': "
                f"set vocab_size={BYTE_VOCAB_SIZE} (pad, bos, eos and the 256 bytes)"
            )


class Tokenizer(Protocol):
    """What the rest of jaxlm asks of a tokenizer."""

    vocab_size: int
    """The largest id and one: added and special tokens are counted."""
    pad_id: int
    bos_id: int
    eos_id: int
    prefix_ids: tuple[int, ...]
    """What goes before a text that a model is to continue, as at the tokenizer's home: bos, or nothing."""
    stop_ids: tuple[int, ...]
    """Ids that end a generation: eos, and what ends a turn of a chat."""
    chat_template: str | None
    """The Jinja template of its home, for `jaxlm.data.chat`."""
    special_tokens: Mapping[str, str]
    """Spellings by the names that chat templates use: {"bos_token": "<s>", ...}."""
    special_spellings: Mapping[str, int]
    """The id of every special token that has a spelling."""
    digest: str
    """16 hexadecimal digits that change when, and only when, the tokenizer does."""

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        """Return the token ids of `text` alone: nothing is put before or after it.

        Spellings of special tokens in `text` are text like any other, unless `specials`: only for text whose author may give
        the model orders, such as a rendered chat template.
        """

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of each text, without specials, as an int32 array."""

    def decode(self, ids: Iterable[int], *, specials: bool = False) -> str:
        """Return the text of `ids`; bytes that are not UTF-8 become U+FFFD, special tokens are invisible unless `specials`.

        `ids` are a whole text: where the tokenizer puts a space before every text, it is taken off again.
        """

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes that `ids` stand for anywhere in a text: those of two lists joined are theirs joined.

        So a text can be streamed: bytes that do not yet make a character wait for the next. A continuation keeps its leading
        space. Specials are invisible, and so are ids of no token (a model's vocabulary may be padded).
        """

    def token_bytes(self) -> np.ndarray:
        """Return int32 [vocab_size]: the UTF-8 bytes of text each token stands for (specials: 0), to report bits per byte."""

    def save(self, path: Path | str) -> None:
        """Write one file that `load_tokenizer` opens."""


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Open a tokenizer that `save` wrote, any SentencePiece .model, a tokenizer.json or a Hugging Face folder, by content.

    Raises DataError where that cannot be done.
    """
    path = Path(path)
    if path.is_dir():
        return _load_folder(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the tokenizer {path}: {error.strerror}") from error
    if content == ByteTokenizer.content:
        return ByteTokenizer()
    if content[:1] != b"{":
        return SentencePieceTokenizer(content, str(path))
    try:
        values = read_json(content)
    except ValueError as error:
        raise DataError(f"{path} is damaged or no SentencePiece model or tokenizer.json: it {error}") from error
    kind = values.get("jaxlm_tokenizer")
    with damage_named(str(path)):
        if kind == "sentencepiece":
            return SentencePieceTokenizer.from_bundle(values, str(path))
        if kind == "hugging_face":
            return HuggingFaceTokenizer.from_bundle(values, str(path))
    return tokenizer_from_json(path)


def _load_folder(folder: Path) -> Tokenizer:
    tokenizer = tokenizer_from_hugging_face(folder)
    if tokenizer is None:
        raise DataError(f"{folder} holds no tokenizer.json and no tokenizer.model: name a tokenizer file, or a folder with one")
    return tokenizer


def train_tokenizer(config: TokenizerConfig, documents: Iterable[str]) -> Tokenizer:
    """Return the tokenizer that `config` asks for, trained where needed on the first `training_bytes` of `documents`.

    The same documents give the same tokenizer, to the byte. Raises ConfigError where `config.path` has another vocabulary size,
    and DataError where the text is too small for `vocab_size`.
    """
    if config.kind == "none":
        raise ConfigError(
            "the run has no tokenizer: name one by --data.tokenizer.path, its size by --data.tokenizer.vocab-size, "
            "and --data.tokenizer.kind bpe"
        )
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
