"""Store what the official implementation of Self-Extend computes, for tests/ops/test_self_extend.py and the model's.

The implementation is github.com/datamllab/LongLM: self_extend_patch/Llama.py (called "current" here) and
legacy_patch_before_4_38/llama_self_extend_patch.py ("legacy"). Download both, and

    pip install torch==2.13.0 transformers==5.23.0 --extra-index-url https://download.pytorch.org/whl/cpu
    python tests/reference/make_self_extend.py Llama.py llama_self_extend_patch.py

Its functions are executed as they are, with stand-ins for what they import and do not need here: FlashAttention is a plain
softmax, `self` an object with the few attributes that they read, projections that pick features. self_extend.npz:

    q, k, v              float32 [LENGTH, heads, size], before rotation; a case of a shorter length takes the first of them
    prefill/G,w,B,n      float32 [n, heads x size], current, n tokens at once; B is scale_base (0: none)
    decode/G,w,B,n       float32 [2, heads x size], current, the last of n tokens with a cache: eager and flash path
    legacy/G,w,B,n       float32 [n, heads x size], legacy, where G does not divide w
    tokens               int32 [2, LENGTH]
    logits/G,w,B         float32 [2, LENGTH, vocabulary] of the model of llama.npz with every attention replaced by current

Where G divides w, both files give the same to the bit. Where it does not, "current" divides a query's shift without rounding,
and disagrees with "legacy" and with its own decoding; such cases are stored to show it.
"""

import argparse
import importlib.util
import json
import math
import sys
import types
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.gpt_neox import modeling_gpt_neox  # noqa: F401 (before FlashAttention has a stand-in)
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

LENGTH, HEADS, GROUPS, SIZE = 64, 4, 2, 8
# (group size, window, scale_base, tokens)
CASES = [(4, 8, 0, 64), (4, 8, 0, 9), (3, 6, 0, 50), (8, 8, 0, 64), (2, 32, 0, 64), (4, 8, 16, 64), (2, 32, 24, 64)]
UNEVEN = [(3, 4, 0, 64)]
WHOLE_MODELS = [(4, 8, 0), (2, 16, 24)]


def loaded(path: Path, name: str) -> types.ModuleType:
    """Import a file of the implementation with stand-ins for FlashAttention and for its own kernels."""
    flash = types.ModuleType("flash_attn")
    flash.flash_attn_func, flash.flash_attn_varlen_func = one_query, None
    sys.modules["flash_attn"] = flash
    package = types.ModuleType("official")
    package.__path__ = []
    sys.modules["official"] = package
    for module, function in (
        ("selfextend_flash_attn", "self_extend_flash_forward"),
        ("selfextend_flash_attn_triton", "self_extend_flash_forward_triton"),
    ):
        sys.modules[f"official.{module}"] = types.ModuleType(f"official.{module}")
        setattr(sys.modules[f"official.{module}"], function, None)
    spec = importlib.util.spec_from_file_location(f"official.{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def one_query(q, k, v, dropout, softmax_scale=None, causal=True):
    """What FlashAttention gives for one query [B, 1, N, H] that sees all keys."""
    weights = torch.softmax(torch.einsum("bqnh,bsnh->bnqs", q, k) / math.sqrt(q.shape[-1]), dim=-1)
    return torch.einsum("bnqs,bsnh->bqnh", weights, v)


class Cache:
    """Keys and values, one token after another."""

    def __init__(self, k: torch.Tensor, v: torch.Tensor):
        self.k, self.v = k, v

    def update(self, k, v, layer, settings):
        return torch.cat([self.k, k], dim=2), torch.cat([self.v, v], dim=2)


def attention(config: LlamaConfig, **projections) -> types.SimpleNamespace:
    """The attributes of an attention layer that the implementation reads."""
    rotary, size = LlamaRotaryEmbedding(config), config.head_dim

    def rotation(values, positions=None, seq_len=None):
        if positions is not None:
            return rotary(values, positions)
        return tuple(x[:, None] for x in rotary(values, torch.arange(seq_len)[None]))

    return types.SimpleNamespace(
        config=types.SimpleNamespace(pretraining_tp=1, attention_dropout=0.0), num_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads, head_dim=size, hidden_size=config.num_attention_heads * size,
        num_key_value_groups=config.num_attention_heads // config.num_key_value_heads, attention_dropout=0.0, training=False,
        layer_idx=0, rotary_emb=rotation, **projections,
    )  # fmt: skip


def causal(length: int) -> torch.Tensor:
    """A mask to add, [1, 1, length, length]."""
    return torch.triu(torch.full((length, length), torch.finfo(torch.float32).min), 1)[None, None]


def outputs(current, legacy, qkv: list[np.ndarray], case: tuple[int, int, int, int]) -> dict[str, np.ndarray]:
    """All forms of one case."""
    group, window, base, length = case
    config = LlamaConfig(hidden_size=HEADS * SIZE, num_attention_heads=HEADS, num_key_value_heads=GROUPS, head_dim=SIZE)
    ends = np.cumsum([HEADS * SIZE, GROUPS * SIZE, GROUPS * SIZE])
    picks = {
        f"{name}_proj": lambda x, start=end - size, stop=end: x[..., start:stop]
        for name, end, size in zip("qkv", ends, (HEADS * SIZE, GROUPS * SIZE, GROUPS * SIZE), strict=True)
    }
    layer = attention(config, **picks, o_proj=lambda x: x)
    hidden = torch.from_numpy(np.concatenate([x[:length].reshape(length, -1) for x in qkv], axis=1))[None]
    at = torch.arange(length)[None]
    settings = {"group_size_1": group, "group_size_2": window, "scale_base": base or -1}
    found = {"prefill": current.self_extend_forward(layer, hidden, causal(length), at, **settings)[0][0]}
    past = [torch.from_numpy(x[: length - 1]).transpose(0, 1)[None] for x in qkv[1:]]
    steps = [
        forward(layer, hidden[:, -1:], None, at[:, -1:], Cache(*past), **settings)[0][0, 0]
        for forward in (current.self_extend_forward, current.flash_self_extend_forward)
    ]
    found["decode"] = torch.stack(steps)
    if not base:
        options = {"group_size_1": group, "group_size_2": window}
        found["legacy"] = legacy.self_extend_forward(layer, hidden, causal(length), at, **options)[0][0]
    name = ",".join(map(str, case))
    return {f"{key}/{name}": value.numpy() for key, value in found.items()}


def whole_model(current, settings: tuple[int, int, int], tokens: np.ndarray) -> np.ndarray:
    """Logits of the model of llama.npz, every attention replaced."""
    with np.load(Path(__file__).with_name("llama.npz")) as stored:
        config = LlamaConfig(**json.loads(str(stored["base/config"])))
        weights = {key[2:]: torch.from_numpy(stored[key]) for key in stored.files if key.startswith("w/")}
    config._attn_implementation = "eager"
    model = LlamaForCausalLM(config).to(torch.float32).eval()
    model.load_state_dict(weights)
    group, window, base = settings
    length = tokens.shape[1]
    for layer in model.model.layers:
        own = layer.self_attn
        tiny = attention(config, q_proj=own.q_proj, k_proj=own.k_proj, v_proj=own.v_proj, o_proj=own.o_proj)

        def forward(hidden_states, tiny=tiny, **_):
            at = torch.arange(length)[None].expand(len(hidden_states), -1)
            return current.self_extend_forward(
                tiny, hidden_states, causal(length), at, group_size_1=group, group_size_2=window, scale_base=base or -1
            )[:2]

        own.forward = forward
    return model(input_ids=torch.from_numpy(tokens).long(), use_cache=False).logits.numpy()


def main() -> None:
    """Write self_extend.npz and print how far the forms are from one another."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("current", type=Path, help="self_extend_patch/Llama.py")
    parser.add_argument("legacy", type=Path, help="legacy_patch_before_4_38/llama_self_extend_patch.py")
    arguments = parser.parse_args()
    current, legacy = loaded(arguments.current, "current"), loaded(arguments.legacy, "legacy")
    rng = np.random.default_rng(0)
    # Large products: a wrong position must show.
    qkv = [2 * rng.standard_normal((LENGTH, heads, SIZE)).astype(np.float32) for heads in (HEADS, GROUPS, GROUPS)]
    tokens = rng.integers(3, 64, (2, LENGTH), dtype=np.int32)
    arrays = dict(zip("qkv", qkv, strict=True)) | {"tokens": tokens}
    with torch.no_grad():
        for case in CASES + UNEVEN:
            found = outputs(current, legacy, qkv, case)
            name = ",".join(map(str, case))
            prefill, decode = found[f"prefill/{name}"], found[f"decode/{name}"]
            old = found.get(f"legacy/{name}", prefill)
            print(
                f"{name}: prefill - legacy {np.abs(prefill - old).max()}, - decode {np.abs(decode - prefill[-1]).max(axis=1)}"
            )
            if case in CASES:
                assert np.array_equal(prefill, old)
                found.pop(f"legacy/{name}", None)
            arrays |= found
        for settings in WHOLE_MODELS:
            arrays["logits/" + ",".join(map(str, settings))] = whole_model(current, settings, tokens)
    path = Path(__file__).with_name("self_extend.npz")
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {path.stat().st_size / 1024:.0f} kB")


if __name__ == "__main__":
    main()
