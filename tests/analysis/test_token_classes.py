"""Classes of tokens: from their bytes alone, and with the token before."""

import numpy as np

from jaxlm.analysis.token_classes import CLASSES, classes, in_context, spelled
from jaxlm.data.byte_tokenizer import ByteTokenizer
from jaxlm.data.tokenizer import TokenizerConfig, train_tokenizer


def test_bytes():
    tokenizer = ByteTokenizer()
    names, found = classes(tokenizer)
    text = "a Z_1.\n\u00e9"
    expected = [
        "continuation",
        "whitespace",
        "continuation",
        "punctuation",
        "digit",
        "punctuation",
        "whitespace",
        "other",
        "other",
    ]
    assert [names[found[token]] for token in tokenizer.encode(text)] == expected
    assert [names[found[token]] for token in range(3)] == ["special"] * 3
    assert len(found) == tokenizer.vocab_size


def test_a_word_starts_after_anything_but_a_letter_or_digit():
    tokenizer = ByteTokenizer()
    ids = np.array([tokenizer.encode("ab (cd e1f")])
    before = np.concatenate([[[tokenizer.bos_id]], ids[:, :-1]], axis=1)
    found = in_context(tokenizer, ids, before)
    assert "".join("S" if CLASSES[each] == "word start" else "." for each in found[0]) == "S...S..S.."
    beyond = in_context(tokenizer, np.array([400, -1]), np.array([0, 0]))
    assert [CLASSES[each] for each in beyond] == ["special"] * 2


def test_characters_of_several_bytes_are_of_words_or_not():
    tokenizer = ByteTokenizer()
    ids = np.array([tokenizer.encode("\u00e9t \u201cab\u2014cd")])
    before = np.concatenate([[[tokenizer.bos_id]], ids[:, :-1]], axis=1)
    found = in_context(tokenizer, ids, before)[0]
    starts = bytes(tokenizer.decode_bytes([int(token)])[0] for token in ids[0][found == CLASSES.index("word start")])
    assert starts == b"ac"  # not the t after an e with an accent


def test_pieces_with_their_space_start_words():
    words = "the number of words in the sentence grows with the number of words "
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=300), [words * 5])
    names, found = classes(tokenizer)
    ids = tokenizer.encode(" number")
    assert names[found[ids[0]]] == "word start"
    assert spelled(tokenizer, ids[0]).startswith(" ")
    assert names[found[tokenizer.eos_id]] == "special"
    assert spelled(tokenizer, tokenizer.eos_id) == f"<{tokenizer.eos_id}>"
    assert spelled(tokenizer, tokenizer.encode("\n")[0]) == "\\n"
