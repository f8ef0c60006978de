"""The vocabulary inside a GGUF gives the ids of its home, and metadata that contradicts itself is refused."""

import json
import random
from pathlib import Path

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as pb2

from jaxlm.data.gguf_tokenizer import tokenizer_from_gguf
from jaxlm.data.hugging_face_export import save_hugging_face
from jaxlm.data.tokenizer import load_tokenizer
from jaxlm.errors import DataError

STORED = json.loads((Path(__file__).parents[1] / "reference" / "tokenizers.json").read_text())
TEXTS = STORED["texts"]
WORDS = "the a cat dog bird runs sees sleeps over under big small red green house river and or".split()


def byte_level(**changes):
    values = json.loads(STORED["homes"]["bytes"]["files"]["tokenizer.json"])
    tokens = sorted(values["model"]["vocab"], key=values["model"]["vocab"].get)
    metadata = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": [*tokens, "<think>"],
        "token_type": [3 if i < 3 else 1 for i in range(len(tokens))] + [4],
        "merges": [" ".join(pair) for pair in values["model"]["merges"]],
        "bos_token_id": 1,
        "eos_token_id": 0,
        "eot_token_id": 2,
    }
    metadata = {f"tokenizer.ggml.{key}": value for key, value in (metadata | changes).items() if value is not None}
    return metadata | {"tokenizer.chat_template": "{{ messages }}"}


@pytest.mark.parametrize("pre", list(STORED["cuts"]))
def test_byte_level_ids_are_those_of_the_home(pre, tmp_path):
    tokenizer = tokenizer_from_gguf(byte_level(pre=pre))
    # The stored home does not know of <think> as a token of its own where it is not trained.
    for text, ids in zip(TEXTS, STORED["cuts"][pre], strict=True):
        assert tokenizer.encode(text) == ids and tokenizer.decode(ids) == text
    assert tokenizer.prefix_ids == ((1,) if pre in ("llama-bpe", "tekken") else ())
    assert tokenizer.stop_ids == (0, 2) and tokenizer.chat_template == "{{ messages }}"
    assert tokenizer.encode("<|im_end|>", specials=True) == [2] and len(tokenizer.encode("a<think>b")) == 3
    tokenizer.save(tmp_path / "t.model")
    assert load_tokenizer(tmp_path / "t.model").digest == tokenizer.digest


@pytest.mark.parametrize(("pre", "whole"), [("llama-bpe", True), ("tekken", True), ("qwen2", False), ("dbrx", False)])
def test_whole_words_are_taken_unmerged_where_the_home_does(pre, whole):
    tokens = [*byte_level()["tokenizer.ggml.tokens"], "qzqz"]
    tokenizer = tokenizer_from_gguf(byte_level(pre=pre, tokens=tokens, token_type=None, eot_token_id=None))
    assert (tokenizer.encode("qzqz") == [len(tokens) - 1]) == whole


def test_cuts_differ():
    assert len({json.dumps(ids) for ids in STORED["cuts"].values()}) >= 4


def test_the_default_cut_takes_digits_and_punctuation_apart():
    tokenizer = tokenizer_from_gguf(byte_level(pre=None))
    assert [tokenizer.decode([i]) for i in tokenizer.encode("+=")] in (["+="], ["+", "="])
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def sentencepiece_model(space_prefix, user_defined=("<think>", "\u2581\u2581")):
    lines = (" ".join(random.Random(i).choices(WORDS, k=12)) for i in range(300))
    folder = {}

    class Writer:
        def write(self, content):
            folder["model"] = content

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=Writer(), model_type="bpe", vocab_size=330, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=space_prefix,
        user_defined_symbols=list(user_defined), minloglevel=3,
    )  # fmt: skip
    return folder["model"]


def as_gguf(content, **changes):
    model = pb2.ModelProto.FromString(content)
    metadata = {
        "model": "llama",
        # Some files hold runs of spaces as they are read.
        "tokens": [p.piece if p.piece.strip("\u2581") else p.piece.replace("\u2581", " ") for p in model.pieces],
        "scores": [piece.score for piece in model.pieces],
        "token_type": [piece.type for piece in model.pieces],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "add_space_prefix": model.normalizer_spec.add_dummy_prefix,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (metadata | changes).items() if value is not None}


@pytest.mark.parametrize("space_prefix", [True, False])
def test_sentencepiece_ids_are_those_of_the_home(space_prefix, tmp_path):
    content = sentencepiece_model(space_prefix)
    home = sentencepiece.SentencePieceProcessor(model_proto=content)
    tokenizer = tokenizer_from_gguf(as_gguf(content))
    for text in (*TEXTS, "the cat  sees <think> a dog"):
        assert tokenizer.encode(text) == home.encode(text)
        assert tokenizer.decode(home.encode(text)) == text.replace("\u2581", " ")
    assert tokenizer.decode_bytes(tokenizer.encode("the")) == (b" the" if space_prefix else b"the")
    assert tokenizer.prefix_ids == (1,) and tokenizer.stop_ids == (2,)
    assert tokenizer_from_gguf(as_gguf(content, add_bos_token=False)).prefix_ids == ()
    assert 2 not in tokenizer.encode("</s>") and tokenizer.encode("</s>", specials=True) == [2]
    assert tokenizer.token_bytes()[tokenizer.encode("the cat")].sum() == len("the cat") + space_prefix
    tokenizer.save(tmp_path / "t.model")
    assert load_tokenizer(tmp_path / "t.model").encode("the cat") == home.encode("the cat")
    # Without pieces that are found in any text, it goes out as a tokenizer.json.
    save_hugging_face(plain := tokenizer_from_gguf(as_gguf(sentencepiece_model(space_prefix, ()))), tmp_path)
    again = load_tokenizer(tmp_path / "tokenizer.json")
    for text in (text for text in TEXTS if "<unk>" not in text):
        assert again.encode(text, specials=True) == plain.encode(text, specials=True)
    assert again.prefix_ids == (1,) and again.decode(again.encode(" the")) == " the"
    # Files that call everything normal still hide what ends a text.
    normal = [1 if kind == 3 else kind for kind in as_gguf(content)["tokenizer.ggml.token_type"]]
    assert tokenizer_from_gguf(as_gguf(content, token_type=normal)).encode("</s>", specials=True) == [2]


FAULTS = [
    (byte_level, {"pre": "smolm"}, r"pre-tokenizer 'smolm', which jaxlm does not know\. Did you mean 'smollm'\?"),
    (byte_level, {"model": "bert"}, "of kind 'bert'; jaxlm reads 'gpt2'"),
    (byte_level, {"tokens": None}, "no list of texts under tokenizer.ggml.tokens"),
    (byte_level, {"tokens": []}, "is empty"),
    (byte_level, {"tokens": ["a", "b", "a"]}, "the token 'a' twice"),
    (byte_level, {"tokens": ["a", 5]}, "no list of texts"),
    (byte_level, {"token_type": [1, 2]}, "tokens but 2 types"),
    (byte_level, {"token_type": [9] * 423}, "types"),
    (byte_level, {"tokens": ["a", "b"], "token_type": None, "merges": [], "eos_token_id": 0, "eot_token_id": 0}, "most bytes"),
    (byte_level, {"merges": ["t h e"]}, "merges 't h e'"),
    (byte_level, {"merges": ["zzz qqq"]}, "merges 'zzz qqq'"),
    (byte_level, {"merges": None}, "tokenizer.ggml.merges"),
    (byte_level, {"eos_token_id": 10**9}, "names 1000000000 as its eos token"),
    (byte_level, {"bos_token_id": -5}, "names -5 as its bos token"),
    (byte_level, {"eos_token_id": "2"}, "as its eos token"),
    (byte_level, {"eos_token_id": None}, "names no end-of-sequence token"),
    (byte_level, {"eos_token_id": 2**32 - 1}, "names no end-of-sequence token"),
    (lambda **c: as_gguf(sentencepiece_model(True), **c), {"scores": [0.0]}, "tokens but 1 scores"),
    (lambda **c: as_gguf(sentencepiece_model(True), **c), {"scores": None}, "tokens but 0 scores"),
    (lambda **c: as_gguf(sentencepiece_model(True), **c), {"scores": ["x"] * 330}, "scores"),
]


@pytest.mark.parametrize(("make", "changes", "words"), FAULTS)
def test_faults_are_named(make, changes, words):
    with pytest.raises(DataError, match=words):
        tokenizer_from_gguf(make(**changes))


def test_no_vocabulary_is_none():
    assert tokenizer_from_gguf({}) is None and tokenizer_from_gguf({"tokenizer.ggml.model": "no_vocab"}) is None
