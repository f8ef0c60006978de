"""Tokenizer files with any value changed are opened or refused by a DataError, whatever the value."""

import copy
import json
import random
from pathlib import Path

import pytest

from jaxlm.data.gguf_tokenizer import tokenizer_from_gguf
from jaxlm.data.hugging_face_folder import tokenizer_from_hugging_face
from jaxlm.data.tokenizer import load_tokenizer
from jaxlm.errors import DataError

HOMES = json.loads((Path(__file__).parents[1] / "reference" / "tokenizers.json").read_text())["homes"]
ODD = [None, True, -1, 3, 2**63, 10**30, 1.5, float("nan"), "", "<s>", [], {}, [1], ["a", "b"], {"a": 1}, {"type": "ByteLevel"}]


def changed(values, chance):
    """Return a copy in which one value, of an object or among the first of a list, is missing or odd."""
    values, places = copy.deepcopy(values), []

    def walk(inside):
        keys = list(inside)[:40] if isinstance(inside, dict) else range(min(len(inside), 6))
        for key in keys:
            places.append((inside, key))
            if isinstance(inside[key], dict | list):
                walk(inside[key])

    walk(values)
    inside, key = chance.choice(places)
    if isinstance(inside, dict) and chance.random() < 0.3:
        del inside[key]
    else:
        inside[key] = copy.deepcopy(chance.choice(ODD))
    return values


def used(open_it, *arguments):
    """Return whether it was refused; one that is opened must work."""
    try:
        tokenizer = open_it(*arguments)
    except DataError:
        return True
    if tokenizer is not None:
        ids = tokenizer.encode("the <s> cat<|im_end|>\U0001f600", specials=True) + tokenizer.encode("<s>")
        assert isinstance(tokenizer.decode(ids, specials=True), str) and tokenizer.token_bytes().shape == (
            tokenizer.vocab_size,
        )
    return False


@pytest.mark.parametrize("name", list(HOMES))
def test_a_folder_with_one_odd_value(name, tmp_path):
    chance, refused = random.Random(name), 0
    files = {file: json.loads(text) for file, text in HOMES[name]["files"].items() if file.endswith(".json")}
    files["generation_config.json"] = {"eos_token_id": [1, 2]}
    files["tokenizer_config.json"]["added_tokens_decoder"] = {"2": {"content": "</s>", "special": True}}
    for _ in range(80):
        odd = chance.choice(list(files))
        for file, values in files.items():
            (tmp_path / file).write_text(json.dumps(changed(values, chance) if file == odd else values))
        refused += used(tokenizer_from_hugging_face, tmp_path)
    assert 10 < refused < 80


def test_a_bundle_and_a_vocabulary_with_one_odd_value(tmp_path):
    chance, refused = random.Random(0), 0
    for file, text in HOMES["bytes"]["files"].items():
        (tmp_path / file).write_text(text)
    tokenizer_from_hugging_face(tmp_path).save(tmp_path / "t.model")
    bundle = json.loads((tmp_path / "t.model").read_text())
    model = bundle["tokenizer"]["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    metadata = {"model": "gpt2", "pre": "qwen2", "tokens": tokens, "merges": [" ".join(pair) for pair in model["merges"]]}
    metadata |= {"token_type": [1] * len(tokens), "eos_token_id": 2, "bos_token_id": 1, "add_bos_token": True}
    metadata = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    for _ in range(80):
        (tmp_path / "t.model").write_text(json.dumps(changed(bundle, chance)))
        refused += used(load_tokenizer, tmp_path / "t.model")
        refused += used(tokenizer_from_gguf, changed(metadata, chance))
    assert 20 < refused < 160
