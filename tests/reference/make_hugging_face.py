"""Write the stored outputs of Hugging Face models that the import of every family is held to.

An independent implementation is the only check that catches a misunderstanding (a window one too wide, a norm's offset, the
order of the RoPE pairs) which our code and our tests would otherwise share. The test run needs no torch: it reads the
`.npz` files beside this script, which were made once, with

    pip install torch==2.13.0 transformers==5.23.0 --extra-index-url https://download.pytorch.org/whl/cpu
    python tests/reference/make_hugging_face.py [--only llama gemma2] [--out DIRECTORY]

One file a family, a tiny model in float32 with eager attention and no dropout. Weights are as `save_pretrained` writes them;
several cases, with a configuration each, share them ("base" is the first; others change what needs no other weights, such as
the kind of RoPE):

    w/NAME               every tensor of the saved model
    CASE/config          text of the saved config.json
    CASE/tokens          int32 [2, L]
    CASE/logits          float32 [2, L, vocabulary]
    CASE/loss            float32, mean next-token cross-entropy over both rows
    CASE/gradients       float32, the norm of the loss's gradient for each saved tensor, in the order of their sorted names
    CASE/left, right     float32 [13, vocabulary]: logits of the second row's first 13 tokens, padded to L on that side,
                         with the attention mask and positions that `generate` makes (not for cases whose frequencies
                         depend on a batch's longest row)

All parameters are random, norms and biases included, so that no path is an accidental identity; norm epsilons are large
enough (0.01) for a wrong one to show. Weights are rounded to bfloat16's eight bits, which halves the files and lets a
bfloat16 checkpoint be written from them exactly. Before a file is written it is shown to be sensitive: every parameter
has a non-zero gradient, and every `probe` (the same weights under a changed configuration) moves the logits visibly.
"""

import argparse
import dataclasses
import tempfile
import zlib
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

LENGTH = 20
SHORT = 13
ROWS = 2
VOCABULARY = 64
# The smallest change of a logit that counts as visible: a hundred times what float32 rounding leaves between two
# correct implementations of these sizes. The two forms of GELU differ least of all that is probed.
VISIBLE = 1e-3


@dataclasses.dataclass(frozen=True)
class Family:
    """One fixture: the model class, its configuration, further cases of the same weights, and changes that must be noticed."""

    model: type
    config: dict
    probes: tuple[dict, ...] = ()
    cases: dict[str, dict] = dataclasses.field(default_factory=dict)


def rope(kind: str = "default", theta: float = 10000.0, **more) -> dict:
    """The rotary settings in the nested form that transformers 5 takes."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


# No token may be the padding token: torch drops the gradient of that embedding row.
IDS = dict(bos_token_id=1, eos_token_id=2, pad_token_id=None)
TINY = IDS | dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    tie_word_embeddings=False,
    attention_dropout=0.0,
    rms_norm_eps=1e-2,
    **rope(),
)
# Heads that together are wider than the model: nothing may assume that head size is width over heads.
NARROW = TINY | dict(hidden_size=16, intermediate_size=24, head_dim=8)
NEOX = IDS | dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=64,
    layer_norm_eps=1e-2,
    hidden_act="gelu",
    tie_word_embeddings=False,
    **rope(partial_rotary_factor=0.5),
)
MOE = NARROW | dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8, norm_topk_prob=True, num_hidden_layers=4)
YARN = dict(factor=4.0, original_max_position_embeddings=64)
LONG = dict(
    factor=4.0, original_max_position_embeddings=16, short_factor=[1.0, 1.1, 1.3, 1.6], long_factor=[1.0, 1.5, 2.5, 4.0]
)

FAMILIES = {
    "llama": Family(
        transformers.LlamaForCausalLM,
        TINY | dict(head_dim=8),
        (rope(theta=1000.0), dict(rms_norm_eps=1e-5), dict(hidden_act="gelu"), dict(hidden_act="relu")),
        {
            "gelu": dict(hidden_act="gelu"),
            "relu": dict(hidden_act="relu"),
            "linear": rope("linear", factor=4.0),
            "dynamic": rope("dynamic", factor=4.0) | dict(max_position_embeddings=8),
            "yarn": rope("yarn", **YARN),
            "yarn_deepseek": rope(
                "yarn",
                factor=8.0,
                original_max_position_embeddings=512,
                beta_fast=4.0,
                beta_slow=0.25,
                mscale=0.8,
                mscale_all_dim=0.5,
                truncate=False,
            ),
            "longrope": rope("longrope", **LONG),
            "longrope_short": rope("longrope", **LONG),
            "llama3": rope(
                "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=128
            ),
            "proportional": rope("proportional", factor=2.0, partial_rotary_factor=0.5),
        },
    ),
    "llama_bias_tied": Family(
        transformers.LlamaForCausalLM,
        TINY | dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True, num_key_value_heads=4),
        (rope(theta=1000.0), dict(rms_norm_eps=1e-5)),
    ),
    "mistral": Family(
        transformers.MistralForCausalLM,
        NARROW | dict(sliding_window=7),
        (dict(sliding_window=None), dict(sliding_window=6), dict(sliding_window=8)),
    ),
    "qwen2": Family(
        transformers.Qwen2ForCausalLM,
        NARROW
        | dict(num_hidden_layers=3, use_sliding_window=True, sliding_window=5, max_window_layers=1, tie_word_embeddings=True),
        (dict(sliding_window=6), dict(max_window_layers=2)),
        {"global": dict(use_sliding_window=False)},
    ),
    "qwen3": Family(
        transformers.Qwen3ForCausalLM,
        NARROW | dict(head_dim=12, attention_bias=True, use_sliding_window=False),
        (rope(theta=1000.0), dict(rms_norm_eps=1e-5)),
    ),
    "olmo2": Family(transformers.Olmo2ForCausalLM, TINY, (rope(theta=1000.0), dict(rms_norm_eps=1e-5))),
    "stablelm": Family(
        transformers.StableLmForCausalLM,
        {name: value for name, value in TINY.items() if name != "rms_norm_eps"}
        | rope(partial_rotary_factor=0.5)
        | dict(use_qkv_bias=True, layer_norm_eps=1e-2, hidden_dropout=0.0),
        (rope(partial_rotary_factor=1.0), rope(partial_rotary_factor=0.25), dict(layer_norm_eps=1e-5)),
    ),
    "gpt2": Family(
        transformers.GPT2LMHeadModel,
        IDS
        | dict(
            vocab_size=VOCABULARY,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_inner=48,
            n_positions=24,
            activation_function="gelu_new",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            layer_norm_epsilon=1e-2,
        ),
        (dict(activation_function="gelu"), dict(layer_norm_epsilon=1e-5), dict(scale_attn_weights=False)),
        {"unscaled": dict(scale_attn_weights=False)},
    ),
    "gpt_neox": Family(
        transformers.GPTNeoXForCausalLM,
        NEOX,
        (rope(partial_rotary_factor=1.0), dict(use_parallel_residual=False), dict(layer_norm_eps=1e-5)),
        {"sequential": dict(use_parallel_residual=False)},
    ),
    "gpt_neox_tied": Family(
        transformers.GPTNeoXForCausalLM,
        NEOX | dict(attention_bias=False, tie_word_embeddings=True, hidden_act="gelu_fast"),
        (dict(hidden_act="gelu"),),
    ),
    # Heads that are no power of two: slopes of two powers.
    "mpt": Family(
        transformers.MptForCausalLM,
        IDS
        | dict(
            vocab_size=VOCABULARY,
            d_model=24,
            n_heads=6,
            n_layers=2,
            max_seq_len=64,
            layer_norm_epsilon=1e-2,
        ),
        (dict(layer_norm_epsilon=1e-5), dict(n_heads=8), dict(attn_config={"softmax_scale": 0.7})),
        {"scaled": dict(attn_config={"softmax_scale": 0.7})},
    ),
    "gemma": Family(
        transformers.GemmaForCausalLM,
        NARROW | dict(num_key_value_heads=1, tie_word_embeddings=True, hidden_act="gelu_pytorch_tanh"),
        (rope(theta=1000.0), dict(rms_norm_eps=1e-5), dict(hidden_act="silu")),
    ),
    "gemma2": Family(
        transformers.Gemma2ForCausalLM,
        NARROW
        | dict(
            num_hidden_layers=3,
            tie_word_embeddings=True,
            query_pre_attn_scalar=12,
            sliding_window=7,
            attn_logit_softcapping=5.0,
            final_logit_softcapping=3.0,
        ),
        (
            dict(attn_logit_softcapping=None),
            dict(final_logit_softcapping=None),
            dict(query_pre_attn_scalar=8),
            dict(sliding_window=6),
            dict(sliding_window=8),
            dict(layer_types=["full_attention", "sliding_attention", "full_attention"]),
            dict(hidden_activation="gelu"),
            dict(rms_norm_eps=1e-5),
            rope(theta=1000.0),
        ),
        {"uncapped": dict(attn_logit_softcapping=None, final_logit_softcapping=None)},
    ),
    "gemma3": Family(
        transformers.Gemma3ForCausalLM,
        NARROW
        | dict(
            num_hidden_layers=7,
            tie_word_embeddings=True,
            query_pre_attn_scalar=12,
            sliding_window=5,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        ),
        (
            dict(sliding_window=6),
            dict(query_pre_attn_scalar=8),
            dict(layer_types=["sliding_attention"] * 7),
            dict(final_logit_softcapping=3.0),
        ),
    ),
    "mixtral": Family(
        transformers.MixtralForCausalLM,
        NARROW | dict(num_local_experts=4, num_experts_per_tok=2, sliding_window=7, intermediate_size=16),
        (dict(num_experts_per_tok=1), dict(num_experts_per_tok=3), dict(sliding_window=6)),
        {"one": dict(num_experts_per_tok=1), "global": dict(sliding_window=None)},
    ),
    "qwen3_moe": Family(
        transformers.Qwen3MoeForCausalLM,
        MOE | dict(mlp_only_layers=[1]),
        (dict(norm_topk_prob=False), dict(num_experts_per_tok=1)),
        {"raw": dict(norm_topk_prob=False)},
    ),
    "qwen3_moe_step": Family(
        transformers.Qwen3MoeForCausalLM,
        MOE
        | dict(decoder_sparse_step=2, num_experts_per_tok=1, norm_topk_prob=False, use_sliding_window=True, sliding_window=6),
        (dict(sliding_window=7),),
    ),
}
BY_BATCH = ("dynamic", "longrope", "longrope_short")


def build(family: Family, changes: dict) -> torch.nn.Module:
    """The family's model under its configuration with `changes`, on CPU in float32."""
    config = family.model.config_class(**(family.config | changes), architectures=[family.model.__name__])
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    return family.model(config).to(torch.float32).eval()


def random_weight(label: str, shape: tuple[int, ...], offset_norm: bool) -> np.ndarray:
    """A tensor drawn from its own name, so that adding a family or a parameter changes no other fixture."""
    name = label.split("/")[1]
    draw = np.random.default_rng(zlib.crc32(label.encode())).standard_normal(shape)
    is_embedding = any(part in name for part in ("embed_tokens", ".wte.", ".wpe.", "embed_in"))
    if name.endswith("bias"):
        value = 0.2 * draw
    elif len(shape) == 1:
        value = 0.1 * draw + (0.0 if offset_norm else 1.0)
    elif is_embedding:
        value = 0.5 * draw
    else:
        # Fan-in is the last axis of a linear layer but the first of GPT-2's Conv1D, whose matrices are transposed.
        fan_in = shape[0] if ".c_" in name else shape[-1]
        value = 1.3 * draw / np.sqrt(fan_in)
    return torch.from_numpy(value.astype(np.float32)).to(torch.bfloat16).to(torch.float32).numpy()


def fill(model: torch.nn.Module, weights: dict[str, np.ndarray]) -> torch.nn.Module:
    """The model, holding `weights`."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(weights[name]))
    return model


def run(model: torch.nn.Module, tokens: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and mean next-token loss."""
    ids = torch.from_numpy(tokens).long()
    # The mask is left to the model: an all-ones one could take another path.
    logits = model(input_ids=ids, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
    return logits, loss


def padded(model: torch.nn.Module, tokens: np.ndarray, side: str) -> np.ndarray:
    """Logits of the second row's first tokens, in a batch in which they are padded on one side."""
    rows, mask = np.zeros_like(tokens), np.zeros_like(tokens)
    place = slice(LENGTH - SHORT, LENGTH) if side == "left" else slice(0, SHORT)
    rows[0], mask[0] = tokens[0], 1
    rows[1, place], mask[1, place] = tokens[1, :SHORT], 1
    mask = torch.from_numpy(mask).long()
    at = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(rows).long(), attention_mask=mask, position_ids=at, use_cache=False).logits
    return logits[1, place].numpy()


def on_disk(model: torch.nn.Module) -> tuple[dict[str, np.ndarray], str]:
    """Tensors and config.json as `save_pretrained` writes them."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(Path(folder) / "model.safetensors"), (Path(folder) / "config.json").read_text()


def case(name: str, model: torch.nn.Module, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """The stored outputs of one configuration."""
    config = on_disk(model)[1]
    logits, loss = run(model, tokens)
    loss.backward()
    sides = {} if name in BY_BATCH else {side: padded(model, tokens, side) for side in ("left", "right")}
    for key, parameter in model.named_parameters():
        if parameter.grad is None or not parameter.grad.abs().max() > 1e-5:
            # One chosen expert's gate is 1 whatever its router says.
            if not (name == "one" and key.endswith("gate.weight")):
                raise AssertionError(f"{name}: {key} has no influence on the loss, so the fixture would not test it")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad if parameter.grad is not None else torch.zeros_like(parameter))
    gradients = on_disk(model)[0]
    norms = np.array([np.linalg.norm(gradients[key]) for key in sorted(gradients)], np.float32)
    stored = {"config": np.array(config), "tokens": tokens, "logits": logits.detach().numpy(), "loss": loss.detach().numpy()}
    return {f"{name}/{key}": value for key, value in (stored | {"gradients": norms} | sides).items()}


def make(name: str, family: Family) -> dict[str, np.ndarray]:
    """The arrays of one fixture, after showing that it notices each of the family's probes."""
    empty = build(family, {})
    offset_norm = name.startswith("gemma")
    weights = {
        key: random_weight(f"{name}/{key}", tuple(parameter.shape), offset_norm) for key, parameter in empty.named_parameters()
    }
    tokens = np.random.default_rng(zlib.crc32(name.encode())).integers(3, VOCABULARY, (ROWS, LENGTH), dtype=np.int32)
    model = fill(empty, weights)
    logits = run(model, tokens)[0].detach()
    for probe in family.probes:
        with torch.no_grad():
            moved = (run(fill(build(family, probe), weights), tokens)[0] - logits).abs().max().item()
        print(f"  {name}: {probe} moves a logit by {moved:.4f}")
        if not moved > VISIBLE:
            raise AssertionError(f"{name}: {probe} moves no logit by more than {VISIBLE}, so the fixture would not notice it")
    arrays = {f"w/{key}": value for key, value in on_disk(model)[0].items()}
    for other, changes in ({"base": {}} | family.cases).items():
        model = fill(build(family, changes), weights)
        shown = tokens[:, :12] if other == "longrope_short" else tokens
        if other != "base":
            moved = (run(model, shown)[0] - logits[:, : shown.shape[1]]).abs().max().item()
            print(f"  {name}: case {other} is {moved:.4f} from base")
            assert moved > VISIBLE, other
        arrays |= case(other, model, shown)
    return arrays


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
        spread = arrays["base/logits"].std()
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} kB, loss {arrays['base/loss']:.4f}, spread {spread:.2f}")


if __name__ == "__main__":
    main()
