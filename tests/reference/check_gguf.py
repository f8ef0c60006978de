"""Check that transformers' own reader of GGUF takes the files of `tests/gguf_files.py` for the models they were made of.

Our tests write such files as llama.cpp's converter does, by hand; this shows that the hand is right. Run it beside the stored
fixtures, in the environment that made them:

    pip install torch==2.13.0 transformers==5.23.0 gguf --extra-index-url https://download.pytorch.org/whl/cpu
    PYTHONPATH=. python tests/reference/check_gguf.py

It prints the largest difference of a logit from the stored one, by the largest logit, and fails above 1e-6. Only the tensors
are checked so: transformers does not read every key of the header. The stored qwen3_moe has a dense layer, which llama.cpp's
has not, and is left out, as are architectures that transformers does not read from GGUF (OLMo-2, Gemma) or only as another.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from gguf_files import write_model  # noqa: E402

ARCHITECTURES = {
    "llama": "llama", "llama_bias_tied": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2", "gemma3": "gemma3",
    "gpt2": "gpt2",
}  # fmt: skip


def main() -> None:
    transformers.logging.set_verbosity_error()
    for name, architecture in ARCHITECTURES.items():
        stored = np.load(HERE / f"{name}.npz")
        fields = json.loads(str(stored["base/config"]))
        weights = {key[2:]: stored[key] for key in stored.files if key.startswith("w/")}
        config = transformers.AutoConfig.for_model(**fields)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            write_model(path, architecture, fields, weights)
            tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
        left = model.load_state_dict({key: value.float() for key, value in tensors.items()}, strict=False)
        assert not left.unexpected_keys and set(left.missing_keys) <= {"lm_head.weight"}, (name, left)
        model.tie_weights()
        with torch.no_grad():
            logits = model(torch.tensor(stored["base/tokens"].astype(np.int64))).logits.numpy()
        expected = stored["base/logits"]
        difference = np.abs(logits - expected).max() / np.abs(expected).max()
        print(f"{name:16} {difference:.1e}")
        assert difference < 1e-6, name


if __name__ == "__main__":
    main()
