"""What benchmarks/gpu.py measures: shapes in plain numbers, for programs of either framework; nothing is imported."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shape:
    """A Llama-shaped decoder with a tied head, and how many tokens a step takes of it on a GPU of 80 GB."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_size: int
    ffn: int
    vocab: int
    theta: float
    tokens: int
    """Tokens of a step."""
    experts: int = 0
    """Of every second layer, a token visiting one; 0 for a dense model."""

    def rows(self, length: int) -> int:
        """Return how many rows of this length make up a step."""
        return max(1, self.tokens // length)


SHAPES = {
    "125m": Shape(12, 768, 12, 12, 64, 2560, 32_000, 1e4, 65_536),
    "350m": Shape(24, 1024, 16, 16, 64, 2816, 32_000, 1e4, 32_768),
    "1b": Shape(16, 2048, 32, 8, 64, 8192, 128_256, 5e5, 16_384),
    # 350m's active size: 1.7 billion parameters, of which a token meets as many as in 350m, and a router.
    "switch": Shape(24, 1024, 16, 16, 64, 2816, 32_000, 1e4, 32_768, experts=16),
    "tiny": Shape(2, 64, 4, 2, 16, 128, 512, 1e4, 256),
    "tiny-switch": Shape(2, 64, 4, 2, 16, 128, 512, 1e4, 256, experts=4),
}
LENGTHS = (2048, 8192)
TINY_LENGTHS = (64,)
EPSILON = 1e-5
