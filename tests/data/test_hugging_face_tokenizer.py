"""Tokenizers of Hugging Face folders give the ids of their home, byte-exact text, and no special token that was not meant."""

import codecs
import json
import random
import unicodedata
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.data.hugging_face_export import save_hugging_face
from jaxlm.data.hugging_face_folder import tokenizer_from_hugging_face
from jaxlm.data.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from jaxlm.errors import ConfigError, DataError

STORED = json.loads((Path(__file__).parents[1] / "reference" / "tokenizers.json").read_text())
TEXTS, HOMES = STORED["texts"], STORED["homes"]
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \n\tthe\r<|im_end|>\u2581"), max_size=50)


def write_home(name, folder):
    folder.mkdir(exist_ok=True)
    for file, content in HOMES[name]["files"].items():
        (folder / file).write_text(content)
    return folder


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("homes")
    return {name: tokenizer_from_hugging_face(write_home(name, folder / name)) for name in HOMES}


@pytest.mark.parametrize("name", list(HOMES))
def test_ids_are_those_of_the_home(opened, name):
    tokenizer, home = opened[name], HOMES[name]
    assert list(tokenizer.prefix_ids) == home["prefix"]
    hidden = set(tokenizer.special_spellings.values())
    for text, plain, special in zip(TEXTS, home["plain"], home["special"], strict=True):
        assert tokenizer.encode(text, specials=True) == special
        # The library itself lets a text reach special tokens that are pieces of a unigram vocabulary.
        if not hidden & set(plain) or name != "unigram":
            assert tokenizer.encode(text) == plain
        unknown = tokenizer.special_spellings.get("<unk>")
        assert not (hidden - {unknown}) & set(tokenizer.encode(text)), text
    assert any(hidden & set(ids) for ids in home["special"])


@pytest.mark.parametrize("name", ["bytes", "fallback"])
def test_text_comes_back(opened, name):
    for text, special in zip(TEXTS, HOMES[name]["special"], strict=True):
        expected = text if name == "bytes" else text.replace("\u2581", " ")
        assert opened[name].decode(opened[name].encode(text)) == expected
        if not set(special) & set(opened[name].special_spellings.values()):
            assert opened[name].decode(special) == HOMES[name]["decoded"][TEXTS.index(text)]


@settings(max_examples=100)
@given(text=ANY_TEXT, cut=st.integers(0, 60))
def test_any_text_survives_in_bytes_cut_anywhere(opened, text, cut):
    tokenizer = opened["bytes"]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())
    assert tokenizer.decode_bytes(ids[:cut]) + tokenizer.decode_bytes(ids[cut:]) == text.encode()
    stream = codecs.getincrementaldecoder("utf-8")()
    assert "".join(stream.decode(tokenizer.decode_bytes([i])) for i in ids) + stream.decode(b"", final=True) == text
    fallback = opened["fallback"]
    assert fallback.decode(fallback.encode(text)) == text.replace("\u2581", " ")
    assert not set(fallback.encode(text)) & {0, 1, 2}
    ids = opened["unigram"].encode(text)
    assert not set(ids) & {0, 1, 3} and max([0, *ids]) < opened["unigram"].vocab_size


@settings(max_examples=50)
@given(ids=st.lists(st.integers(0, 500), max_size=30), cut=st.integers(0, 30))
def test_bytes_of_any_ids_join(opened, ids, cut):
    for tokenizer in opened.values():
        assert tokenizer.decode_bytes(ids[:cut]) + tokenizer.decode_bytes(ids[cut:]) == tokenizer.decode_bytes(ids)
        assert len(tokenizer.decode_bytes(ids)) == sum(tokenizer.token_bytes()[[i for i in ids if i < tokenizer.vocab_size]])


def test_parts_that_special_tokens_play(opened):
    tokenizer = opened["bytes"]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 2)
    assert tokenizer.stop_ids == (2,) and tokenizer.prefix_ids == () and tokenizer.chat_template
    assert tokenizer.special_tokens == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    assert tokenizer.decode([1, 2], specials=True) == "<|im_start|><|im_end|>" and tokenizer.decode([1, 2]) == ""
    # Not special, so found in any text and visible.
    assert len(tokenizer.encode("<think>")) == 1 and tokenizer.decode(tokenizer.encode("<think>")) == "<think>"
    assert opened["fallback"].prefix_ids == (1,)


def test_the_small_files_have_their_say(tmp_path):
    folder = write_home("bytes", tmp_path / "home")
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 1]}')
    config = json.loads((folder / "tokenizer_config.json").read_text())
    named = [{"name": "tool", "template": "t"}, {"name": "default", "template": "<|im_end|>{{ x }}"}]
    config |= {"eos_token": {"content": "<|endoftext|>"}, "add_bos_token": True, "chat_template": named}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").unlink()
    tokenizer = tokenizer_from_hugging_face(folder)
    assert tokenizer.eos_id == 0 and tokenizer.stop_ids == (0, 1, 2) and tokenizer.prefix_ids == (1,)
    assert tokenizer.chat_template == "<|im_end|>{{ x }}"
    (folder / "generation_config.json").unlink()
    assert tokenizer_from_hugging_face(folder).stop_ids == (0, 2)  # an end of turn that the template writes
    values = json.loads((folder / "tokenizer.json").read_text())
    values["added_tokens"] = values["added_tokens"][:-1]
    (folder / "tokenizer.json").write_text(json.dumps(values))
    size = tokenizer_from_hugging_face(folder).vocab_size
    (folder / "added_tokens.json").write_text(json.dumps({"<extra>": size}))
    tokenizer = tokenizer_from_hugging_face(folder)
    assert tokenizer.vocab_size == size + 1 and tokenizer.encode("a<extra>")[-1] == size
    assert tokenizer_from_hugging_face(tmp_path) is None


@pytest.mark.parametrize("name", list(HOMES))
def test_one_file_holds_it_all(opened, name, tmp_path):
    opened[name].save(tmp_path / "tokenizer.model")
    loaded = load_tokenizer(tmp_path / "tokenizer.model")
    facts = ("digest", "vocab_size", "prefix_ids", "stop_ids", "chat_template", "special_tokens", "special_spellings")
    assert all(getattr(loaded, fact) == getattr(opened[name], fact) for fact in facts)
    assert [loaded.encode(text) for text in TEXTS] == [opened[name].encode(text) for text in TEXTS]
    folder = write_home(name, tmp_path / "home")
    for path in (folder, folder / "tokenizer.json"):
        assert load_tokenizer(path).digest == loaded.digest
        config = TokenizerConfig(path=str(path), vocab_size=loaded.vocab_size)
        assert train_tokenizer(config, []).encode("the cat") == loaded.encode("the cat")
        with pytest.raises(ConfigError, match=f"set vocab_size={loaded.vocab_size}"):
            train_tokenizer(TokenizerConfig(path=str(path), vocab_size=5), [])


def test_home_and_back(opened, tmp_path):
    for name, tokenizer in opened.items():
        (tmp_path / name).mkdir()
        save_hugging_face(tokenizer, tmp_path / name)
        again = tokenizer_from_hugging_face(tmp_path / name)
        assert [again.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
        assert (again.prefix_ids, again.eos_id, again.chat_template) == (
            tokenizer.prefix_ids, tokenizer.eos_id, tokenizer.chat_template,
        )  # fmt: skip


WORDS = "the a cat dog bird runs sees sleeps over under big small red green house river and or".split()
DOCUMENTS = [" ".join(random.Random(i).choices(WORDS, k=12)) for i in range(300)] + ["def f(x):\n\n        return x\t+ 1\n" * 9]


@pytest.mark.parametrize(("kind", "size"), [("bpe", 330), ("unigram", 320), ("byte", 259)])
def test_trained_here_and_read_there(kind, size, tmp_path):
    trained = train_tokenizer(TokenizerConfig(kind=kind, vocab_size=size), DOCUMENTS)
    save_hugging_face(trained, tmp_path)
    assert not (tmp_path / "tokenizer.model").exists()
    there = tokenizer_from_hugging_face(tmp_path)
    assert (there.vocab_size, there.bos_id, there.eos_id, there.prefix_ids) == (size, 1, 2, (1,))
    # The library takes a space mark for a space, and lets a text reach bytes that are pieces of a unigram vocabulary.
    plain = (text for text in TEXTS if "\u2581" not in text and not (kind == "unigram" and "<0x0A>" in text))
    for text in [*DOCUMENTS[:40], *DOCUMENTS[-1:], *plain]:
        assert there.encode(text) == trained.encode(text)
        assert there.decode(trained.encode(text)) == text


@pytest.fixture(scope="module")
def llama_model(tmp_path_factory):
    """A model as Llama 2's: BPE, bytes, a space before every text."""
    prefix = tmp_path_factory.mktemp("spm") / "m"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(DOCUMENTS), model_prefix=str(prefix), model_type="bpe", vocab_size=330, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=3,
    )  # fmt: skip
    return prefix.with_suffix(".model").read_bytes()


def test_a_folder_with_a_sentencepiece_model_alone(llama_model, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(llama_model)
    added = {"330": {"content": "<|im_end|>", "special": True}}
    config = {"bos_token": "<s>", "eos_token": {"content": "<|im_end|>"}, "added_tokens_decoder": added, "legacy": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = tokenizer_from_hugging_face(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.bos_id, tokenizer.prefix_ids) == (331, 330, 1, (1,))
    processor = sentencepiece.SentencePieceProcessor(model_proto=llama_model)
    for text in (*TEXTS, "the cat sees"):
        assert tokenizer.encode(text) == processor.encode(text)
        assert tokenizer.decode(processor.encode(text)) == text.replace("\u2581", " ")
    ids = tokenizer.encode("the cat")
    assert tokenizer.decode_bytes(ids) == b" the cat" and tokenizer.decode(ids) == "the cat"
    assert tokenizer.encode("cat<|im_end|>cat</s>", specials=True)[-1] == processor.eos_id()
    (tmp_path / "folder").mkdir()
    save_hugging_face(tokenizer, tmp_path / "folder")
    tokenizer.save(tmp_path / "one.model")
    for loaded in map(load_tokenizer, (tmp_path / "one.model", tmp_path / "folder")):
        for text in TEXTS:
            assert loaded.encode(text, specials=True) == tokenizer.encode(text, specials=True)
        assert (loaded.vocab_size, loaded.stop_ids, loaded.prefix_ids) == (331, (330,), (1,))
        assert loaded.eos_id == 330
    bundle = json.loads((tmp_path / "one.model").read_bytes())
    (tmp_path / "below.model").write_text(json.dumps(bundle | {"added": bundle["added"] | {"<|more|>": -420}}))
    with pytest.raises(DataError, match="must have the ids that follow"):
        load_tokenizer(tmp_path / "below.model")


@pytest.mark.parametrize("after", [True, False])
def test_a_space_after_special_tokens_is_the_homes_choice(llama_model, tmp_path, after):
    (tmp_path / "tokenizer.model").write_bytes(llama_model)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"legacy": after}))
    tokenizer = tokenizer_from_hugging_face(tmp_path)
    data = tokenizer.decode_bytes(tokenizer.encode("a</s>the", specials=True))
    assert data == (b" a the" if after else b" athe")


def test_normalization_is_the_homes(tmp_path):
    folder = write_home("bytes", tmp_path / "home")
    values = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(values | {"normalizer": {"type": "NFC"}}))
    tokenizer = tokenizer_from_hugging_face(folder)
    assert tokenizer.decode(tokenizer.encode("e\u0301")) == unicodedata.normalize("NFC", "e\u0301") != "e\u0301"


def _damaged(values, change):
    values = json.loads(json.dumps(values))
    change(values)
    return json.dumps(values)


DAMAGES = {
    "no JSON": (lambda v: None, "cut"),
    "another decoder": (lambda v: v.update(decoder={"type": "BPEDecoder", "suffix": "x"}), "decodes by BPEDecoder"),
    "no decoder": (lambda v: v.update(decoder=None), "joining tokens with spaces"),
    "odd added token": (lambda v: v["added_tokens"].append({"id": "x", "content": 3}), "no SentencePiece model"),
    "added token elsewhere": (lambda v: v["added_tokens"][0].update(id=99), "the vocabulary makes it"),
    "an id far away": (lambda v: v["model"]["vocab"].update(q=14_000_000), "one of them the id 14,000,000"),
    "merge of nothing": (lambda v: v["model"]["merges"].append(["zzz", "qqq"]), "no tokenizer that the package"),
    "no model": (lambda v: v.pop("model"), "no SentencePiece model or tokenizer.json"),
    "empty": (lambda v: v["model"].update(vocab={}, merges=[]) or v.update(added_tokens=[]), "empty vocabulary"),
    "no eos": (lambda v: v.update(added_tokens=[]) or v["model"]["vocab"].pop("<|im_end|>"), "end-of-sequence|no tok"),
}


@pytest.mark.parametrize("fault", list(DAMAGES))
def test_damage_is_named(tmp_path, fault):
    folder = write_home("bytes", tmp_path / "home")
    change, words = DAMAGES[fault]
    text = _damaged(json.loads((folder / "tokenizer.json").read_text()), change)
    (folder / "tokenizer.json").write_text(text[:-40] if words == "cut" else text)
    with pytest.raises(DataError, match="is not JSON" if words == "cut" else words):
        tokenizer_from_hugging_face(folder)


def test_damaged_bundles_are_named(opened, tmp_path):
    opened["bytes"].save(tmp_path / "t.model")
    bundle = json.loads((tmp_path / "t.model").read_text())
    for change in (
        lambda b: b["special"].update(eos_id=10**9),
        lambda b: b["special"].update(eos_id="2"),
        lambda b: b["special"].pop("names"),
        lambda b: b.pop("tokenizer"),
        lambda b: b.update(jaxlm_tokenizer="sentencepiece"),
        lambda b: b.update(special=None),
        lambda b: b["special"].update(stop_ids=7),
    ):
        (tmp_path / "bad.model").write_text(_damaged(bundle, change))
        with pytest.raises(DataError, match=r"bad\.model"):
            load_tokenizer(tmp_path / "bad.model")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(DataError, match=r"pip install 'jaxlm\[pretrained\]'"):
        tokenizer_from_hugging_face(write_home("bytes", tmp_path / "home"))


def test_no_tokenizer_is_a_kind():
    with pytest.raises(ConfigError, match="has no tokenizer"):
        train_tokenizer(TokenizerConfig(kind="none", vocab_size=1), [])
    with pytest.raises(ConfigError, match="set vocab_size=1"):
        TokenizerConfig(kind="none")
    with pytest.raises(ConfigError, match="at least 259"):
        TokenizerConfig(vocab_size=5)
