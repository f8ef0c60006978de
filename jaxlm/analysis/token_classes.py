"""What kind of text a token stands for: the classes by which probes group tokens."""

import functools

import numpy as np

from jaxlm.data.tokenizer import Tokenizer

CLASSES = ("word start", "continuation", "digit", "punctuation", "whitespace", "other", "special")
"""A word's first token and the rest of it; numbers; punctuation and symbols; spaces and line ends; bytes that make no character
on their own; tokens without text."""


def classes(tokenizer: Tokenizer) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the names of the classes, and the class of every token, int32 [vocab_size], from its bytes alone.

    A token with letters begins a word where something other than a letter or a digit stands before the first of them; so every
    letter of a byte tokenizer is a continuation. `in_context` also asks the token before.
    """
    return CLASSES, _known(tokenizer)[0].copy()


def in_context(tokenizer: Tokenizer, ids: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Return the class of every token of `ids`, int32 of its shape, where `before` are the tokens that precede them.

    A token with letters that follows no letter or digit begins a word, whatever it begins with: at the start of a line, or
    after a parenthesis. Where only several tokens make the character before, they are taken from `before` along its last axis.
    Ids of no token of the tokenizer are special.
    """
    of_token, ends_in_word, broken = _known(tokenizer)
    found = _look_up(of_token, ids, CLASSES.index("special"))
    in_word, follows = _look_up(ends_in_word, before, False), found == CLASSES.index("continuation")
    for *row, place in np.argwhere(follows & _look_up(broken, before, False)):
        in_word[*row, place] = _ends_in_word(tokenizer, before[*row, max(0, place - 3) : place + 1])
    starts = follows & ~in_word
    return np.where(starts, CLASSES.index("word start"), found).astype(np.int32)


def _ends_in_word(tokenizer: Tokenizer, tokens: np.ndarray) -> bool:
    """Return whether the character that the last few tokens make is of a word; what makes none is taken for a letter."""
    data = b""
    for token in tokens[::-1]:
        data = (_bytes_of(tokenizer, token) if 0 <= token < tokenizer.vocab_size else b"") + data
        try:
            return _is_word(data.decode()[-1:])
        except UnicodeDecodeError:
            continue
    return True


def spelled(tokenizer: Tokenizer, token: int) -> str:
    """Return a token as a person reads it: its text with spaces and line ends made visible, special ones as <id>."""
    data = _bytes_of(tokenizer, token)
    return repr(data.decode("utf-8", errors="backslashreplace"))[1:-1] if data else f"<{token}>"


def _look_up(table: np.ndarray, ids: np.ndarray, missing: int | bool) -> np.ndarray:
    inside = (ids >= 0) & (ids < len(table))
    return np.where(inside, table[np.where(inside, ids, 0)], missing)


def _bytes_of(tokenizer: Tokenizer, token: int) -> bytes:
    return tokenizer.decode_bytes([int(token)])


@functools.lru_cache(maxsize=4)
def _known(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each token's class, whether it ends in a letter or a digit, and whether it ends within a character."""
    texts = [_bytes_of(tokenizer, token) if size else b"" for token, size in enumerate(tokenizer.token_bytes())]
    found = [CLASSES.index(_class_of(text)) for text in texts]
    ends = [_is_word(text.decode("utf-8", errors="ignore")[-1:]) for text in texts]
    broken = [text.decode("utf-8", errors="replace").endswith("\ufffd") for text in texts]
    return np.array(found, np.int32), np.array(ends, bool), np.array(broken, bool)


def _class_of(data: bytes) -> str:
    if not data:
        return "special"
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return "other"
    if text.isspace():
        return "whitespace"
    letter = next((place for place, char in enumerate(text) if char.isalpha()), None)
    if letter is not None:
        return "word start" if letter and not _is_word(text[letter - 1]) else "continuation"
    return "digit" if any(char.isdigit() for char in text) else "punctuation"


def _is_word(char: str) -> bool:
    return char == "_" or char.isalnum()
