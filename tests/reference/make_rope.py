"""Rotary frequencies of every kind of scaling by Hugging Face transformers, stored for tests/model/test_rope.py.

    python tests/reference/make_rope.py        # in an environment with torch and transformers==5.23.0

rope.json: a list of cases, each the configuration's values, the size of a head, the length of a row, the frequencies and the
attention factor. transformers computes in float32; here it is made to compute in float64, which is shown to be the same to
float32's precision, so that what is stored is nearer to the formulas than either implementation.
"""

import contextlib
import json
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

SHORT, LONG = [1.0, 1.1, 1.25, 1.5, 2.0, 2.5, 3.0, 3.5], [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0]
# Heads of 16 features and 64 positions, unless said otherwise; `length` is that of the row.
CASES = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "linear", "factor": 3.0, "rope_theta": 500_000.0, "partial_rotary_factor": 0.5},
    *({"rope_type": "dynamic", "factor": 4.0, "length": length} for length in (1, 63, 64, 65, 112, 128, 256, 5000)),
    {"rope_type": "dynamic", "factor": 2.0, "length": 100, "partial_rotary_factor": 0.5},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 0.7},
    {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512, "beta_fast": 16, "beta_slow": 2},
    {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512, "truncate": False, "attention_factor": 1.3},
    {"rope_type": "yarn", "factor": 0.5, "original_max_position_embeddings": 64},
    {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096, "head_dim": 128},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "partial_rotary_factor": 0.5},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "mscale": 1.0, "mscale_all_dim": 1.0},
    *(
        {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 64, "length": length}
        for length in (64, 65)
    ),
    {"rope_type": "longrope", "factor": 1.0, "original_max_position_embeddings": 64, "length": 70},
    {"rope_type": "longrope", "factor": 2.0, "original_max_position_embeddings": 64, "length": 9, "attention_factor": 1.2},
    {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_theta": 500_000.0,
    },
    {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "head_dim": 128,
        "original_max_position_embeddings": 8192, "rope_theta": 500_000.0,
    },
    {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.32},  # an odd number of features
    {"rope_type": "proportional", "partial_rotary_factor": 0.32},
    {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
    {"rope_type": "proportional", "partial_rotary_factor": 0.75, "factor": 2.0},
]  # fmt: skip


@contextlib.contextmanager
def double():
    """Let float32 mean float64 in what transformers computes."""
    single = torch.float32
    torch.float = torch.float32 = torch.float64
    try:
        yield
    finally:
        torch.float = torch.float32 = single


def measured(case: dict) -> dict:
    """Return the case with what transformers computes of it."""
    ours = ("length", "head_dim")
    parameters = {"rope_theta": 10_000.0} | {key: value for key, value in case.items() if key not in ours}
    if case["rope_type"] == "longrope":
        parameters |= {"short_factor": SHORT, "long_factor": LONG}
    size = case.get("head_dim", 16)
    config = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=4, head_dim=size, max_position_embeddings=64, rope_parameters=parameters
    )
    make = ROPE_INIT_FUNCTIONS[case["rope_type"]]
    single, _ = make(config, device="cpu", seq_len=case.get("length"))
    with double():
        found, factor = make(config, device="cpu", seq_len=case.get("length"))
    assert single.dtype == torch.float32 and found.dtype == torch.float64
    np.testing.assert_allclose(single.numpy(), found.numpy(), rtol=1e-6)
    return {
        "rope": parameters, "head_dim": size, "length": case.get("length", 1), "frequencies": found.tolist(),
        "attention_factor": factor,
    }  # fmt: skip


if __name__ == "__main__":
    text = ",\n".join(json.dumps(measured(case)) for case in CASES)
    Path(__file__).with_name("rope.json").write_text(f"[\n{text}\n]\n")
