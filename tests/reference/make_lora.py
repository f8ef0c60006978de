"""Write what PEFT's low-rank adapters compute on a tiny Llama, which ours are held to.

The test run needs neither torch nor PEFT: it reads `lora.npz` beside this script, which was made once, with

    pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2 --extra-index-url https://download.pytorch.org/whl/cpu
    python tests/reference/make_lora.py [--out DIRECTORY]
    python tests/reference/make_lora.py --read-back BASE ADAPTERS MERGED

The base is the model of `llama.npz` (case "base"), in float32. Both matrices of every adapter are random, so that none is
at its neutral beginning.

    config               text of adapter_config.json
    adapters/NAME        float32, every tensor of adapter_model.safetensors, as `save_pretrained` writes it
    gradients/NAME       float32, the gradient of the loss for it
    tokens               int32 [2, L]
    logits               float32 [2, L, vocabulary]
    loss                 float32, mean next-token cross-entropy over both rows
    merged               float32, q_proj of the first layer after `merge_and_unload`

`--read-back` prints the greatest difference between the logits of base and adapters as PEFT joins them and those of the merged
model: folders of `jaxlm export`, ADAPTERS with --adapters.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file

HERE = Path(__file__).parent
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def base() -> transformers.PreTrainedModel:
    """Return the stored Llama."""
    with np.load(HERE / "llama.npz") as arrays:
        config = transformers.LlamaConfig(**json.loads(str(arrays["base/config"])))
        weights = {name[2:]: torch.tensor(arrays[name].astype(np.float32)) for name in arrays if name.startswith("w/")}
    model = transformers.LlamaForCausalLM._from_config(config, attn_implementation="eager", dtype=torch.float32)
    model.load_state_dict(weights)
    return model.eval()


def make(out: Path) -> None:
    """Write the fixture."""
    torch.manual_seed(0)
    model = get_peft_model(base(), LoraConfig(r=3, lora_alpha=6.0, target_modules=MODULES, task_type="CAUSAL_LM"))
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    with torch.no_grad():
        for weight in trained.values():
            weight.normal_(std=0.2)
    with np.load(HERE / "llama.npz") as arrays:
        tokens = arrays["base/tokens"]
    result = model(torch.tensor(tokens, dtype=torch.long), labels=torch.tensor(tokens, dtype=torch.long))
    plain = base()(torch.tensor(tokens, dtype=torch.long)).logits
    if not float((result.logits - plain).abs().max()) > 0.1:
        raise SystemExit("the adapters hardly change the model: the fixture would not notice their absence")
    result.loss.backward()
    stored = {
        "tokens": tokens.astype(np.int32),
        "logits": result.logits.detach().numpy(),
        "loss": np.float32(result.loss.item()),
    }
    for name, weight in trained.items():
        stored[f"gradients/{name.replace('.default.', '.')}"] = weight.grad.numpy().copy()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        stored["config"] = np.array((Path(folder) / "adapter_config.json").read_text())
        saved = load_file(Path(folder) / "adapter_model.safetensors")
        stored |= {f"adapters/{name}": array for name, array in saved.items()}
    stored["merged"] = model.merge_and_unload().model.layers[0].self_attn.q_proj.weight.detach().numpy()
    np.savez_compressed(out / "lora.npz", **stored)


def read_back(base_folder: Path, adapters: Path, merged: Path) -> None:
    """Compare the model that PEFT makes of a base and exported adapters with the merged one."""
    load = transformers.AutoModelForCausalLM.from_pretrained
    whole = load(merged, dtype=torch.float32).eval()
    joined = PeftModel.from_pretrained(load(base_folder, dtype=torch.float32), adapters).eval()
    tokens = torch.randint(3, whole.config.vocab_size, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = whole(tokens).logits, joined(tokens).logits
        unchanged = load(base_folder, dtype=torch.float32).eval()(tokens).logits
    print(f"logits up to {expected.abs().max():.3f}, moved by adapters up to {(expected - unchanged).abs().max():.3e}")
    print(f"greatest difference {(expected - found).abs().max():.3e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--read-back", type=Path, nargs=3, metavar=("BASE", "ADAPTERS", "MERGED"))
    arguments = parser.parse_args()
    if arguments.read_back:
        read_back(*arguments.read_back)
    else:
        make(arguments.out)
