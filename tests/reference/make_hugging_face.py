"""Write the stored outputs of Hugging Face models that the tests of our own model are held to.

An independent implementation is the only check that catches a misunderstanding (a window one too wide, a norm's offset, the
order of the RoPE pairs) which our code and our tests would otherwise share. The test run needs no torch: it reads the
`.npz` files beside this script, which were made once, with

    pip install torch==2.13.0 transformers==5.23.0 --extra-index-url https://download.pytorch.org/whl/cpu
    python tests/reference/make_hugging_face.py [--only llama gemma2] [--out DIRECTORY]

One file a family, a tiny model in float32 with eager attention and no dropout:

    config      JSON text of the model's configuration as `config.json` would hold it, defaults spelled out
    w/NAME      every parameter under its Hugging Face name; a tied head is stored once, under the embedding's name
    tokens      int32 [2, 24]
    logits      float32 [2, 24, vocabulary]
    loss        float32, mean next-token cross-entropy of positions 0..22 over both rows
    g/NAME      the loss's gradient for the embedding, the first query, the last MLP output and the final norm

All parameters are random, norms and biases included, so that no path is an accidental identity; norm epsilons are large
enough (0.01) for a wrong one to show. Weights are rounded to bfloat16's eight bits, which halves the files and lets a
bfloat16 checkpoint be written from them exactly. Before a file is written it is shown to be sensitive: every parameter
has a non-zero gradient, and every `probe` (the same weights under a changed configuration) moves the logits visibly.
"""

import argparse
import dataclasses
import json
import zlib
from pathlib import Path

import numpy as np
import torch
import transformers

LENGTH = 24
ROWS = 2
VOCABULARY = 96
# The smallest change of a logit that counts as visible: a hundred times what float32 rounding leaves between two
# correct implementations of these sizes. The two forms of GELU differ least of all that is probed.
VISIBLE = 1e-3

# Configuration keys that describe the run, the tokenizer or another task, not the model's function.
NOT_THE_MODEL = {
    "_name_or_path",
    "chunk_size_feed_forward",
    "dtype",
    "id2label",
    "is_encoder_decoder",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "return_dict",
    "transformers_version",
    "use_cache",
    "initializer_range",
    "pretraining_tp",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
}


@dataclasses.dataclass(frozen=True)
class Family:
    """One fixture: the model class, its configuration, the gradients to keep, and the changes that must be noticed."""

    model: type
    config: dict
    gradients: tuple[str, ...]
    probes: tuple[dict, ...]


def rope(theta: float = 10000.0, **more) -> dict:
    """The rotary settings in the nested form that transformers 5 takes."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **more}}


# No token may be the padding token: torch drops the gradient of that embedding row.
TINY = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    tie_word_embeddings=False,
    attention_dropout=0.0,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=None,
    **rope(),
)
RMS = dict(rms_norm_eps=1e-2)


def llama_like_gradients(last_layer: int, norm: str = "model.norm.weight") -> tuple[str, ...]:
    """The four gradients to keep, in the naming that every family here but GPT-2 shares."""
    query, down = "model.layers.0.self_attn.q_proj.weight", f"model.layers.{last_layer}.mlp.down_proj.weight"
    return ("model.embed_tokens.weight", query, down, norm)


FAMILIES = {
    "llama": Family(
        transformers.LlamaForCausalLM,
        TINY | RMS | dict(head_dim=8),
        llama_like_gradients(2),
        (rope(1000.0), dict(rms_norm_eps=1e-5), dict(hidden_act="gelu")),
    ),
    "llama_bias_tied": Family(
        transformers.LlamaForCausalLM,
        TINY | RMS | dict(head_dim=8, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
        llama_like_gradients(2),
        (rope(1000.0), dict(rms_norm_eps=1e-5)),
    ),
    "gpt2": Family(
        transformers.GPT2LMHeadModel,
        dict(
            vocab_size=VOCABULARY,
            n_embd=32,
            n_layer=3,
            n_head=4,
            n_positions=32,
            activation_function="gelu_new",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            layer_norm_epsilon=1e-2,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=None,
        ),
        (
            "transformer.wte.weight",
            "transformer.h.0.attn.c_attn.weight",
            "transformer.h.2.mlp.c_proj.weight",
            "transformer.ln_f.weight",
            "transformer.ln_f.bias",
        ),
        (dict(activation_function="gelu"), dict(layer_norm_epsilon=1e-5), dict(scale_attn_weights=False)),
    ),
    "gemma2": Family(
        transformers.Gemma2ForCausalLM,
        TINY
        | RMS
        | dict(
            head_dim=8,
            num_hidden_layers=4,
            tie_word_embeddings=True,
            query_pre_attn_scalar=12,
            sliding_window=7,
            attn_logit_softcapping=5.0,
            final_logit_softcapping=3.0,
            hidden_activation="gelu_pytorch_tanh",
            layer_types=["sliding_attention", "full_attention"] * 2,
        ),
        llama_like_gradients(3),
        (
            dict(attn_logit_softcapping=None),
            dict(final_logit_softcapping=None),
            dict(query_pre_attn_scalar=8),
            dict(sliding_window=6),
            dict(sliding_window=8),
            dict(layer_types=["full_attention", "sliding_attention"] * 2),
            dict(hidden_activation="gelu"),
            dict(rms_norm_eps=1e-5),
            rope(1000.0),
        ),
    ),
    "mistral": Family(
        transformers.MistralForCausalLM,
        TINY | RMS | dict(head_dim=8, num_key_value_heads=1, sliding_window=7),
        llama_like_gradients(2),
        (dict(sliding_window=None), dict(sliding_window=6), dict(sliding_window=8)),
    ),
    "qwen3": Family(
        transformers.Qwen3ForCausalLM,
        # 4 heads of 12 are wider than the model: nothing may assume that head size is width over heads.
        TINY | RMS | dict(head_dim=12, attention_bias=False, use_sliding_window=False),
        (*llama_like_gradients(2), "model.layers.0.self_attn.q_norm.weight"),
        (rope(1000.0), dict(rms_norm_eps=1e-5)),
    ),
    "olmo2": Family(
        transformers.Olmo2ForCausalLM,
        TINY | RMS,
        (*llama_like_gradients(2), "model.layers.0.self_attn.k_norm.weight"),
        (rope(1000.0), dict(rms_norm_eps=1e-5)),
    ),
    "stablelm": Family(
        transformers.StableLmForCausalLM,
        TINY
        | rope(partial_rotary_factor=0.5)
        | dict(
            use_qkv_bias=True,
            qk_layernorm=False,
            use_parallel_residual=False,
            layer_norm_eps=1e-2,
            hidden_dropout=0.0,
        ),
        (*llama_like_gradients(2), "model.norm.bias"),
        (rope(partial_rotary_factor=1.0), rope(partial_rotary_factor=0.25), dict(layer_norm_eps=1e-5)),
    ),
}


def build(family: Family, changes: dict) -> torch.nn.Module:
    """The family's model under its configuration with `changes`, on CPU in float32."""
    config = family.model.config_class(**(family.config | changes), architectures=[family.model.__name__])
    config._attn_implementation = "eager"
    return family.model(config).to(torch.float32).eval()


def random_weight(label: str, shape: tuple[int, ...], offset_norm: bool) -> np.ndarray:
    """A tensor drawn from its own name, so that adding a family or a parameter changes no other fixture."""
    name = label.split("/")[1]
    draw = np.random.default_rng(zlib.crc32(label.encode())).standard_normal(shape)
    is_embedding = "embed_tokens" in name or ".wte." in name or ".wpe." in name
    if name.endswith("bias"):
        value = 0.2 * draw
    elif len(shape) == 1:
        value = 0.1 * draw + (0.0 if offset_norm else 1.0)
    elif is_embedding:
        value = 0.5 * draw
    else:
        # Fan-in is the second axis of a linear layer but the first of GPT-2's Conv1D, whose matrices are transposed.
        fan_in = shape[0] if ".c_" in name else shape[1]
        value = 1.3 * draw / np.sqrt(fan_in)
    return torch.from_numpy(value.astype(np.float32)).to(torch.bfloat16).to(torch.float32).numpy()


def run(model: torch.nn.Module, weights: dict[str, np.ndarray], tokens: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and mean next-token loss of the model holding `weights`."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(weights[name]))
    ids = torch.from_numpy(tokens).long()
    # The mask is left to the model: an all-ones one could take another path.
    logits = model(input_ids=ids, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
    return logits, loss


def described(config: transformers.PretrainedConfig) -> str:
    """The configuration's JSON with the values that decide the model's function."""
    kept = {key: value for key, value in config.to_dict().items() if key not in NOT_THE_MODEL}
    return json.dumps(kept, indent=1, sort_keys=True)


def make(name: str, family: Family) -> dict[str, np.ndarray]:
    """The arrays of one fixture, after showing that it notices each of the family's probes."""
    model = build(family, {})
    offset_norm = family.model is transformers.Gemma2ForCausalLM
    weights = {
        key: random_weight(f"{name}/{key}", tuple(parameter.shape), offset_norm) for key, parameter in model.named_parameters()
    }
    stored_once = set(model.state_dict()) - set(weights)
    if stored_once - {"lm_head.weight"}:
        raise AssertionError(f"{name}: state that is neither a parameter nor the tied head: {sorted(stored_once)}")
    tokens = np.random.default_rng(zlib.crc32(name.encode())).integers(0, VOCABULARY, (ROWS, LENGTH), dtype=np.int32)
    logits, loss = run(model, weights, tokens)
    loss.backward()
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    for key, gradient in gradients.items():
        if gradient is None or not gradient.abs().max() > 1e-5:
            raise AssertionError(f"{name}: {key} has no influence on the loss, so the fixture would not test it")
    for probe in family.probes:
        with torch.no_grad():
            moved = (run(build(family, probe), weights, tokens)[0] - logits).abs().max().item()
        print(f"  {name}: {probe} moves a logit by {moved:.4f}")
        if not moved > VISIBLE:
            raise AssertionError(f"{name}: {probe} moves no logit by more than {VISIBLE}, so the fixture would not notice it")
    return {
        "config": np.array(described(model.config)),
        "tokens": tokens,
        "logits": logits.detach().numpy(),
        "loss": loss.detach().numpy(),
        **{f"w/{key}": weight for key, weight in weights.items()},
        **{f"g/{key}": gradients[key].numpy() for key in family.gradients},
    }


def main() -> None:
    """Write the chosen fixtures and print what they hold."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where the .npz files go")
    parser.add_argument("--only", nargs="*", choices=list(FAMILIES), default=list(FAMILIES), help="families to make")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.only:
        arrays = make(name, FAMILIES[name])
        path = arguments.out / f"{name}.npz"
        np.savez_compressed(path, **arrays)
        spread = arrays["logits"].std()
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} kB, loss {arrays['loss']:.4f}, logits' spread {spread:.2f}")


if __name__ == "__main__":
    main()
