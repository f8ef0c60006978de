"""The bytes that a token of a tokenizer.json stands for, wherever in a text it is."""

import re
from collections.abc import Mapping
from typing import Any

from jaxlm.errors import DataError

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")


def byte_alphabet() -> dict[str, int]:
    """Return what byte-level BPE writes bytes as: printable characters of Latin-1 as themselves, others from U+0100 on.

    Of Radford et al. 2019, "Language Models are Unsupervised Multitask Learners" (GPT-2).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}


class Spelling:
    """How the decoder of a tokenizer.json spells a token, as bytes; `strips` where it takes a leading space off a whole
    text, `alphabet` where tokens are written in that of byte-level BPE.

    The library's own `decode` gives a string, in which half a character is lost; bytes can be joined. Raises DataError for a
    decoder under which the bytes of a token depend on its neighbours.
    """

    def __init__(self, values: Mapping[str, Any], origin: str):
        decoder = values.get("decoder")
        steps = decoder.get("decoders") if isinstance(decoder, Mapping) and decoder.get("type") == "Sequence" else [decoder]
        self._replacements: list[tuple[str, str]] = []
        self._byte_fallback, self.alphabet, self.strips = False, {}, False
        for step in steps or [None]:
            try:
                self._add(step or {}, origin)
            except (KeyError, TypeError) as error:
                raise DataError(f"{origin} has a decoder that cannot be read: {step}") from error

    def _add(self, step: Mapping[str, Any], origin: str) -> None:
        kind = step.get("type")
        if kind == "ByteLevel":
            self.alphabet = byte_alphabet()
        elif kind == "ByteFallback":
            self._byte_fallback = True
        elif kind == "Replace" and isinstance(step["pattern"], Mapping) and "String" in step["pattern"]:
            self._replacements.append((step["pattern"]["String"], step["content"]))
        elif kind == "Metaspace":
            self._replacements.append((step["replacement"], " "))
            self.strips |= step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never") != "never"
        elif kind == "Strip" and step["content"] == " " and step["start"] <= 1 and not step["stop"]:
            self.strips |= step["start"] == 1
        elif kind != "Fuse":
            raise DataError(
                f"{origin} decodes by {kind or 'joining tokens with spaces'}, under which tokens have no bytes of their own; "
                "jaxlm reads tokenizers that decode by ByteLevel, Metaspace, ByteFallback, Replace, Fuse and Strip"
            )

    def of(self, token: str) -> bytes:
        """Return the bytes of `token`."""
        if self._byte_fallback and (byte := _BYTE.match(token)):
            return bytes([int(byte[1], 16)])
        for old, new in self._replacements:
            token = token.replace(old, new)
        if self.alphabet and all(character in self.alphabet for character in token):
            return bytes(self.alphabet[character] for character in token)
        return token.encode("utf-8", errors="replace")
