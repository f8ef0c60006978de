"""The bytes of tokens as text that shows them all, and where two ways to cut one text agree."""

import itertools
import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import Literal, NamedTuple

MARKS = {" ": "·", "\n": "↵", "\t": "→"}
_BYTES = {mark: char.encode() for char, mark in MARKS.items()}
_SPELT = re.compile(r"\\x([0-9a-f]{2})|\\u([0-9a-f]{4})|\\U([0-9a-f]{8})|\\(\\)|(.)", re.DOTALL)

Kind = Literal["text", "space", "newline", "tab", "escape", "byte", "cut", "rest"]


class Piece(NamedTuple):
    """A part of a token to be shown."""

    kind: Kind
    """What it is: plain text; one of the characters that have a mark; a character that cannot be seen, or a byte of none, by
    its escape; a character whose bytes begin in this token and end in a later one; the rest of such a one."""
    text: str
    """As it is shown; of "rest" empty."""


def visible(content: bytes) -> str:
    """Return bytes as text in which all can be seen, and which `hidden` turns back into them.

    A space, a line's end and a tab have marks (· ↵ →); a backslash is doubled; a byte that is part of no character of these is
    \\xNN; a character that is not printable, or one of the marks itself, is \\uNNNN or \\UNNNNNNNN.
    """
    return "".join(MARKS.get(c) or _spelling(c) for c in content.decode("utf-8", errors="surrogateescape"))


def hidden(spelt: str) -> bytes:
    """Return the bytes of which `visible` made this text."""

    def content(match: re.Match) -> bytes:
        byte, short, long, backslash, char = match.groups()
        if byte:
            return bytes([int(byte, 16)])
        if short or long:
            return chr(int(short or long, 16)).encode()
        return b"\\" if backslash else _BYTES.get(char) or char.encode()

    return b"".join(map(content, _SPELT.finditer(spelt)))


def _spelling(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # so does surrogateescape keep a byte
        return f"\\x{code - 0xDC00:02x}"
    if char == "\\":
        return "\\\\"
    if char.isprintable() and char not in _BYTES:
        return char
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def pieces(contents: Sequence[bytes]) -> list[list[Piece]]:
    """Return how the tokens of a text are shown: a character that several have a part of is whole in the first of them."""
    ends = list(itertools.accumulate(map(len, contents)))
    shown: list[list[Piece]] = [[] for _ in contents]
    offset = 0
    for char in b"".join(contents).decode("utf-8", errors="surrogateescape"):
        size = len(char.encode("utf-8", errors="surrogateescape"))
        first, last = bisect_right(ends, offset), bisect_right(ends, offset + size - 1)
        offset += size
        if first == last:
            _add(shown[first], char)
            continue
        shown[first].append(Piece("cut", char if char.isprintable() else _spelling(char)))
        for later in range(first + 1, last + 1):
            if contents[later]:
                shown[later].append(Piece("rest", ""))
    return shown


def _add(shown: list[Piece], char: str) -> None:
    """Add a character to the pieces of a token, plain ones to the text before them."""
    kinds: dict[str, Kind] = {" ": "space", "\n": "newline", "\t": "tab"}
    kind = kinds.get(char) or ("text" if char.isprintable() else "byte" if 0xDC80 <= ord(char) <= 0xDCFF else "escape")
    if kind == "text" and shown and shown[-1].kind == "text":
        shown[-1] = Piece("text", shown[-1].text + char)
    else:
        shown.append(Piece(kind, _spelling(char) if kind in ("byte", "escape") else char))


def spans(left: Sequence[bytes], right: Sequence[bytes]) -> list[tuple[range, range]]:
    """Return the shortest stretches, as numbers of tokens, that two ways to cut the same bytes have in common.

    Tokens of no bytes go with those before them. Raises ValueError where the bytes differ.
    """
    if b"".join(left) != b"".join(right):
        raise ValueError("the two are not of the same bytes")
    ends = [list(itertools.accumulate(map(len, contents))) for contents in (left, right)]
    common = sorted(set(ends[0]) & set(ends[1]) - {0})
    cuts = [(0, 0), *((bisect_right(ends[0], end), bisect_right(ends[1], end)) for end in common)]
    return [(range(a, b), range(c, d)) for (a, c), (b, d) in itertools.pairwise(cuts)]
