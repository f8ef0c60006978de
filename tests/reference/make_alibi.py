"""ALiBi by Hugging Face transformers, stored for tests/ops/test_positions.py.

    python tests/reference/make_alibi.py        # in an environment with torch and transformers==5.23.0

alibi.npz:

    slopes/N             float32 [N], of build_alibi_tensor of Bloom and of MPT (which are shown to be the same), N of 1 to 32
    q, k, v              float32 [2, L, HEADS, SIZE]
    real                 int32 [2, L]: 0 for padding, to the left of the second row's tokens
    mixed                float32 [2, L, HEADS, SIZE], what Bloom's attention gives before its output projection
"""

from pathlib import Path

import numpy as np
import torch
from transformers import BloomConfig
from transformers.models.bloom.modeling_bloom import BloomAttention, build_alibi_tensor
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

# Heads that are no power of two, and more tokens than one block of the test's kernel.
LENGTH, HEADS, SIZE, PADDING = 24, 6, 4, 5


def slopes(heads: int) -> np.ndarray:
    """The factor of each head, read off what is added for the second key."""
    bloom = build_alibi_tensor(torch.ones(1, 2, dtype=torch.long), heads, torch.float32)[:, 0, 1].numpy()
    mpt = -build_mpt_alibi_tensor(heads, 2)[:, 0, 0].numpy()
    np.testing.assert_allclose(bloom, mpt, rtol=1e-6)
    return bloom


def main() -> None:
    """Write alibi.npz."""
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 2, LENGTH, HEADS, SIZE)).astype(np.float32)
    real = np.ones((2, LENGTH), np.int32)
    real[1, :PADDING] = 0
    layer = BloomAttention(BloomConfig(hidden_size=HEADS * SIZE, n_head=HEADS), layer_idx=0).eval()
    layer.query_key_value = layer.dense = torch.nn.Identity()
    fused = torch.from_numpy(np.stack([q, k, v], axis=3).reshape(2, LENGTH, -1))
    seen = np.tri(LENGTH, dtype=bool)[None] & (real[:, None] > 0)
    mask = torch.where(torch.from_numpy(seen), 0.0, torch.finfo(torch.float32).min)[:, None]
    alibi = build_alibi_tensor(torch.from_numpy(real), HEADS, torch.float32)
    with torch.no_grad():
        mixed = layer(fused, torch.zeros(2, LENGTH, HEADS * SIZE), alibi, mask)[0].numpy()
    arrays = {f"slopes/{heads}": slopes(heads) for heads in range(1, 33)}
    arrays |= {"q": q, "k": k, "v": v, "real": real, "mixed": mixed.reshape(q.shape)}
    np.savez_compressed(Path(__file__).with_name("alibi.npz"), **arrays)


if __name__ == "__main__":
    main()
