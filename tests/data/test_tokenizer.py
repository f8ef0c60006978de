"""Tokenizers lose nothing, count bytes exactly, and say what is wrong with a model or a size."""

import random

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.data import encoding
from jaxlm.data.tokenizer import ByteTokenizer, TokenizerConfig, load_tokenizer, train_tokenizer
from jaxlm.errors import ConfigError, DataError

WORDS = "the a cat dog bird runs sees sleeps over under big small red green house river and or".split()
DOCUMENTS = [
    *("\n".join(" ".join(random.Random(9 * a + b).choices(WORDS, k=12)) for b in range(9)) for a in range(60)),
    "def f(x):\n\n        return x\t+ 1  # \u00e9\u00e8\r\n" * 20,
]


@pytest.fixture(scope="module", params=["bpe", "unigram", "byte"])
def tokenizer(request):
    sizes = {"bpe": 330, "unigram": 320, "byte": 259}
    return train_tokenizer(TokenizerConfig(kind=request.param, vocab_size=sizes[request.param]), DOCUMENTS)


AWKWARD = [
    "",
    "\u2581",
    "a\u2581 b \u2581\u2581c\u2581",
    "  two  spaces\t\ttabs \n\n\n    indented\r\nwindows\r",
    "\U0001f600 e\u0301 \u00a0\u3000 \ufeff \ufffd \u2028 \x85",
    "".join(map(chr, range(1, 32))),
    "<s></s><unk><pad><0x0A> \u2047 \u2585",
    "1234567 12 345",
]


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_survives(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=150)
@given(text=st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\u2581 \n\tthe\r"), max_size=60))
def test_any_text_survives_with_its_bytes_counted(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())
    assert not set(ids) & {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id}


def test_encode_many_is_encode(tokenizer):
    many = tokenizer.encode_many(AWKWARD)
    assert [array.tolist() for array in many] == [tokenizer.encode(text) for text in AWKWARD]
    assert all(array.dtype == np.int32 for array in many)


def test_long_documents_are_encoded_in_sections_without_a_trace(tokenizer, monkeypatch):
    text = "\n\n    ".join(DOCUMENTS[:9])
    monkeypatch.setattr(encoding, "_SECTION", 300)
    assert encoding.encode_document(tokenizer, text).tolist() == tokenizer.encode(text)
    unbroken = "the cat " * 100
    assert tokenizer.decode(encoding.encode_document(tokenizer, unbroken)) == unbroken


def test_specials_are_invisible_and_stand_for_no_bytes(tokenizer):
    ids = [tokenizer.bos_id, *tokenizer.encode("the cat"), tokenizer.eos_id, tokenizer.pad_id]
    assert tokenizer.decode(ids) == "the cat"
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert not tokenizer.token_bytes()[:3].any()
    assert tokenizer.token_bytes().shape == (tokenizer.vocab_size,)


def test_bytes_that_are_not_text_become_the_replacement_character(tokenizer):
    halved = tokenizer.encode("\U0001f600")[:-1]
    assert set(tokenizer.decode(halved)) == {"\ufffd"}


def test_saved_and_loaded_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "t.model")
    loaded = load_tokenizer(tmp_path / "t.model")
    assert (loaded.digest, loaded.vocab_size) == (tokenizer.digest, tokenizer.vocab_size)
    assert loaded.encode(DOCUMENTS[-1]) == tokenizer.encode(DOCUMENTS[-1])
    assert [path.name for path in tmp_path.iterdir()] == ["t.model"]


def test_training_is_deterministic_and_quiet(capfd):
    for kind, size in (("bpe", 330), ("unigram", 320)):
        config = TokenizerConfig(kind=kind, vocab_size=size)
        assert train_tokenizer(config, DOCUMENTS).digest == train_tokenizer(config, iter(DOCUMENTS)).digest
    assert capfd.readouterr() == ("", "")


def test_training_stops_at_training_bytes():
    config = TokenizerConfig(vocab_size=300, training_bytes=4000)
    first, second = (train_tokenizer(config, [DOCUMENTS[0] * 20, text * 100]) for text in ("xyzzy ", "plugh "))
    assert first.digest == second.digest


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_too_little_text_names_a_size_that_works(kind):
    with pytest.raises(DataError, match=r"too small for vocab_size=4096: set tokenizer.vocab_size=(\d+) or less") as caught:
        train_tokenizer(TokenizerConfig(kind=kind), DOCUMENTS[:3])
    size = int(str(caught.value).split("tokenizer.vocab_size=")[1].split()[0])
    assert train_tokenizer(TokenizerConfig(kind=kind, vocab_size=size), DOCUMENTS[:3]).vocab_size == size


def test_too_small_a_vocabulary_and_no_text_at_all():
    with pytest.raises(DataError, match=r"set tokenizer.vocab_size=\d+ or more"):
        train_tokenizer(TokenizerConfig(vocab_size=260), DOCUMENTS)
    with pytest.raises(DataError, match="no text to train"):
        train_tokenizer(TokenizerConfig(), [])


def test_byte_size_is_checked():
    with pytest.raises(ConfigError, match="set vocab_size=259"):
        TokenizerConfig(kind="byte")
    with pytest.raises(ConfigError, match="kind='bpe'"):
        TokenizerConfig(kind="byte", vocab_size=259, path="x.model")


def test_given_model_must_have_the_configured_size(tmp_path):
    train_tokenizer(TokenizerConfig(vocab_size=330), DOCUMENTS).save(tmp_path / "t.model")
    with pytest.raises(ConfigError, match=r"has 330 tokens: set vocab_size=330"):
        train_tokenizer(TokenizerConfig(path=str(tmp_path / "t.model")), [])
    assert train_tokenizer(TokenizerConfig(path=str(tmp_path / "t.model"), vocab_size=330), []).vocab_size == 330


@pytest.mark.parametrize("content", [b"", b"hello", b"\0" * 100, b"{}"])
def test_foreign_or_broken_model(tmp_path, capfd, content):
    (tmp_path / "t.model").write_bytes(content)
    with pytest.raises(DataError, match=r"t\.model is damaged or no SentencePiece model"):
        load_tokenizer(tmp_path / "t.model")
    with pytest.raises(DataError, match="cannot read the tokenizer"):
        load_tokenizer(tmp_path / "missing.model")
    assert capfd.readouterr().err == ""


def test_model_from_elsewhere_without_bos_pad_or_byte_fallback(tmp_path):
    prefix = str(tmp_path / "foreign")
    lines = iter("\n".join(DOCUMENTS).splitlines())
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_prefix=prefix, vocab_size=60, bos_id=-1, hard_vocab_limit=False, minloglevel=3
    )
    foreign = load_tokenizer(prefix + ".model")
    assert foreign.bos_id == foreign.eos_id and 0 <= foreign.pad_id < foreign.vocab_size
    assert foreign.decode(foreign.encode("the  cat\u2581")) == "the cat"


def test_byte_tokenizer_is_its_bytes():
    assert ByteTokenizer().encode("\u00e9") == [0xC3 + 3, 0xA9 + 3]
