"""One token a byte: needs no training, loses nothing."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from jaxlm.data.damage import check_unicode
from jaxlm.data.storage import write_atomically

BYTE_VOCAB_SIZE = 259  # pad, bos, eos and the 256 bytes


class ByteTokenizer:
    """One token a byte; see `jaxlm.data.tokenizer.Tokenizer`. There are no spellings of its three special tokens."""

    vocab_size, pad_id, bos_id, eos_id = BYTE_VOCAB_SIZE, 0, 1, 2
    prefix_ids, stop_ids = (1,), (2,)
    chat_template: str | None = None
    special_tokens: Mapping[str, str] = MappingProxyType({})
    special_spellings: Mapping[str, int] = MappingProxyType({})
    content = json.dumps({"jaxlm_tokenizer": "byte", "vocab_size": BYTE_VOCAB_SIZE}).encode()
    digest = hashlib.sha256(content).hexdigest()[:16]

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        return self.encode_many([check_unicode(text)])[0].tolist()

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) + 3 for text in texts]

    def decode(self, ids: Iterable[int], *, specials: bool = False) -> str:
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return bytes(i - 3 for i in map(int, ids) if 3 <= i < BYTE_VOCAB_SIZE)

    def token_bytes(self) -> np.ndarray:
        return (np.arange(self.vocab_size) >= 3).astype(np.int32)

    def save(self, path: Path | str) -> None:
        write_atomically(Path(path), self.content)
