"""Rotary frequencies of every kind of scaling by Hugging Face transformers, stored for tests/model/test_rope.py.

    python tests/reference/make_rope.py        # in an environment with torch and transformers==5.23.0

rope.json: a list of cases, each the configuration's values, the length of a row, the frequencies and the attention factor.
"""

import json
from pathlib import Path

import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

SHORT, LONG = [1.0, 1.1, 1.25, 1.5, 2.0, 2.5, 3.0, 3.5], [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0]
# Heads of 16 features, 64 positions unless said otherwise; `length` is that of the row.
CASES = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "linear", "factor": 3.0, "rope_theta": 500_000.0, "partial_rotary_factor": 0.5},
    *({"rope_type": "dynamic", "factor": 4.0, "length": length} for length in (1, 63, 64, 65, 128, 256)),
    {"rope_type": "dynamic", "factor": 2.0, "length": 100, "partial_rotary_factor": 0.5},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 0.7},
    {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512, "beta_fast": 16, "beta_slow": 2},
    {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512, "truncate": False, "attention_factor": 1.3},
    {"rope_type": "yarn", "factor": 0.5, "original_max_position_embeddings": 64},
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
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.32},  # an odd number of features
    {"rope_type": "proportional", "partial_rotary_factor": 0.32},
    {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
    {"rope_type": "proportional", "partial_rotary_factor": 0.75, "factor": 2.0},
]  # fmt: skip


def measured(case: dict) -> dict:
    """Return the case with what transformers computes of it."""
    parameters = {"rope_theta": 10_000.0} | {key: value for key, value in case.items() if key != "length"}
    if case["rope_type"] == "longrope":
        parameters |= {"short_factor": SHORT, "long_factor": LONG}
    config = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=4, head_dim=16, max_position_embeddings=64, rope_parameters=parameters
    )
    found, factor = ROPE_INIT_FUNCTIONS[case["rope_type"]](config, device="cpu", seq_len=case.get("length"))
    return {
        "rope": parameters, "length": case.get("length", 1), "frequencies": found.tolist(), "attention_factor": factor,
    }  # fmt: skip


if __name__ == "__main__":
    text = ",\n".join(json.dumps(measured(case)) for case in CASES)
    Path(__file__).with_name("rope.json").write_text(f"[\n{text}\n]\n")
