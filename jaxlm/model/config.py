"""What a decoder is made of, as values: every difference between published families is one of these fields."""

import dataclasses
import math
from typing import Annotated, Literal

from jaxlm.config import Function, Range, config
from jaxlm.errors import ConfigError
from jaxlm.function_file import names_function
from jaxlm.model.moe_config import MoeConfig
from jaxlm.model.rope_config import RopeScaling, SelfExtend

Size = Annotated[int, Range(1)]
Fraction = Annotated[float, Range(0, 1)]


@config
class ModelConfig:
    """A transformer decoder."""

    vocab_size: Size
    """Rows of the embedding; at least the tokenizer's vocabulary."""
    num_layers: Annotated[int, Range(1, 10_000)]
    """Blocks, each an attention and a feed-forward sub-layer."""
    hidden_size: Size
    """Width of the residual stream (D)."""
    num_heads: Size
    """Query heads (N)."""
    num_kv_heads: Annotated[int, Range(0)] = 0
    """Key-value heads (K), a divisor of num_heads: fewer is grouped-query, 1 multi-query attention; 0 means num_heads."""
    head_dim: Annotated[int, Range(0)] = 0
    """Size of a head (H); 0 means hidden_size / num_heads."""
    intermediate_size: Size
    """Hidden width of the feed-forward sub-layer (F)."""
    max_length: Size = 2048
    """The longest sequence: rows of learned positions, and the limit of a cache."""

    activation: Literal["swiglu", "geglu", "geglu_exact", "reglu", "gelu", "gelu_tanh", "silu", "relu", "relu2"] = "swiglu"
    """Feed-forward non-linearity; those in -glu are gated by a third matrix (geglu: tanh form, geglu_exact: erf), relu2 is
    ReLU squared."""
    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm (arXiv:1910.07467) or LayerNorm (arXiv:1607.06450)."""
    norm_bias: bool = False
    """LayerNorm with a bias."""
    norm_plus_one: bool = False
    """Scale by 1 + w, w starting at zero (Gemma)."""
    norm_position: Literal["before", "after", "both"] = "before"
    """Norm at the input of each sub-layer, at its output before the residual sum, or at both."""
    parallel_residual: bool = False
    """Attention and feed-forward sub-layer both read the block's input (GPT-NeoX), instead of one after the other."""
    norm_epsilon: Annotated[float, Range(0, 1)] = 1e-5
    """Added to the variance (or mean square) under the root."""

    positions: (
        Literal["rope", "alibi", "learned", "sinusoidal", "none"]
        | Annotated[str, Function("rotate(x_BLNH, positions_BL, part)")]
    ) = "rope"
    """How the order of tokens is known; alibi: attention falls with distance, by a slope for each head (arXiv:2108.12409);
    FILE.py:NAME: queries and keys are rotated by a function of your own (model/functions.py)."""
    rope_theta: Annotated[float, Range(1)] = 10_000.0
    """Base of the rotary frequencies."""
    rope_fraction: Fraction = 1.0
    """The part of each head that is rotated (partial RoPE)."""
    rope_scaling: RopeScaling = RopeScaling()
    """How frequencies are changed for longer contexts."""
    self_extend: SelfExtend = SelfExtend()
    """Grouped positions for far keys, where a trained model reads rows that are longer than it was trained on."""
    sliding_rope_theta: Annotated[float, Range(0)] = 0.0
    """Base of the rotary frequencies in sliding layers, unscaled (Gemma 3); 0 means as in all others."""
    attention_pattern: tuple[Literal["global", "sliding"], ...] = ("global",)
    """Kinds of attention, repeated over the layers."""
    sliding_window: Annotated[int, Range(0)] = 0
    """Positions that a sliding layer sees, the token itself included."""
    causal: bool = True
    """Attend to no later position; False makes an encoder's bidirectional attention."""
    qk_norm: Literal["none", "head", "all"] = "none"
    """Norm of queries and keys: over each head (Qwen3), or over all heads together (OLMo-2)."""
    query_scale: Annotated[float, Range(0)] = 0.0
    """Factor on the attention logits; 0 means head_dim ** -0.5."""
    attention_softcap: Annotated[float, Range(0)] = 0.0
    """Attention logits x become c tanh(x / c); 0 is off (Gemma-2, arXiv:2408.00118)."""
    logit_softcap: Annotated[float, Range(0)] = 0.0
    """The same for the output logits."""
    biases: tuple[Literal["q", "k", "v", "o", "gate", "up", "down"], ...] = ()
    """The projections that have a bias."""

    moe: MoeConfig = MoeConfig()
    """Mixture-of-experts layers, where it has experts."""

    tie_embeddings: bool = True
    """The output head is the embedding."""
    scale_embeddings: bool = False
    """Multiply embeddings by sqrt(hidden_size)."""
    dropout: Annotated[float, Range(0, 0.99)] = 0.0
    """On the embedding and on the output of each sub-layer, in training."""
    init_std: Annotated[float, Range(0)] = 0.0
    """Standard deviation of initial matrices; 0: sqrt(init_scale / fan in). Residual outputs start at 1 / sqrt(2 num_layers)
    of it."""
    init_scale: Annotated[float, Range(0)] = 1.0
    """Variance of initial matrices, times their fan in (Switch: 0.1)."""
    embedding_init_std: Annotated[float, Range(0)] = 0.02
    """Standard deviation of initial embeddings."""

    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of activations and matrix products; auto: bfloat16 on GPU and TPU, float32 on a CPU. Parameters are float32."""
    attention_kernel: Literal["auto", "plain", "blocked", "cudnn", "splash"] = "auto"
    """auto: cuDNN on a GPU, splash on a TPU, blocked on a CPU."""

    def check(self) -> None:
        """Raise ConfigError where fields contradict one another."""
        if not self.head_dim and self.hidden_size % self.num_heads:
            raise ConfigError(
                f"model.hidden_size = {self.hidden_size} does not divide by model.num_heads = {self.num_heads}: "
                f"take {_near_divisor(self.hidden_size, self.num_heads)} heads, or set model.head_dim"
            )
        if self.num_heads % self.kv_heads:
            raise ConfigError(
                f"model.num_heads = {self.num_heads} does not divide by model.num_kv_heads = {self.num_kv_heads}: "
                f"take {_near_divisor(self.num_heads, self.num_kv_heads)} key-value heads"
            )
        if self.positions == "rope":
            self._check_rope()
        if self.positions == "sinusoidal" and self.hidden_size % 2:
            raise ConfigError(
                f"model.positions = 'sinusoidal' takes a sine and a cosine of each frequency, and model.hidden_size = "
                f"{self.hidden_size} is odd: set --model.hidden-size {self.hidden_size + 1}"
            )
        if names_function(self.positions) and self.rope_scaling.kind != "none":
            raise ConfigError(
                f"model.rope_scaling changes the frequencies of RoPE, and model.positions = {self.positions!r} is another "
                "scheme: leave it out"
            )
        if self.self_extend.on:
            self._check_self_extend()
        if not self.attention_pattern:
            raise ConfigError('model.attention_pattern is empty: name at least one kind, for example ("global",)')
        if "sliding" in self.attention_pattern and not self.sliding_window:
            raise ConfigError('model.attention_pattern has "sliding" layers: set model.sliding_window, the positions they see')
        if self.sliding_window and "sliding" not in self.attention_pattern:
            raise ConfigError('model.sliding_window is set but model.attention_pattern has no "sliding" layer: add one')
        if self.norm_bias and self.norm == "rms":
            raise ConfigError('model.norm_bias needs model.norm = "layer": RMSNorm has no bias')
        if "gate" in self.biases and not self.gated:
            raise ConfigError(f'model.biases has "gate", but activation {self.activation!r} has no gate: take it out')
        if self.moe.num_experts:
            self._check_moe()

    def _check_rope(self) -> None:
        if self.rope_theta <= 1:
            raise ConfigError(f"model.rope_theta = {self.rope_theta:g} must be above 1, 10000 for example")
        if 0 < self.sliding_rope_theta <= 1:
            raise ConfigError(f"model.sliding_rope_theta = {self.sliding_rope_theta:g} must be above 1, or 0 for rope_theta")
        if self.sliding_rope_theta and "sliding" not in self.attention_pattern:
            raise ConfigError('model.sliding_rope_theta is set but model.attention_pattern has no "sliding" layer: add one')
        kind, pairs = self.rope_scaling.kind, -(-self.rotary_dim // 2)
        # As in transformers: of an odd number of features one more is rotated, at frequencies made for the odd number.
        odd = (kind == "yarn" and self.rotary_dim % 2) or (kind == "proportional" and self.head_size % 2)
        if odd or not 0 < 2 * pairs <= self.head_size:
            raise ConfigError(
                f"model.rope_fraction = {self.rope_fraction} rotates {self.rotary_dim} of a head's {self.head_size} features: "
                "they are rotated in pairs, one pair at least and no more than there are; take an even number"
            )
        for name in ("short_factor", "long_factor"):
            factors = getattr(self.rope_scaling, name)
            if kind == "longrope" and len(factors) != pairs:
                raise ConfigError(
                    f"model.rope_scaling.{name} has {len(factors)} entries: longrope takes one for each of the {pairs} rotated "
                    "pairs of a head"
                )
        if kind in ("ntk", "dynamic") and self.rotary_dim < 3:
            raise ConfigError(
                f"model.rope_scaling.kind = {kind!r} needs 3 rotated features or more, a head has {self.rotary_dim}"
            )

    def _check_self_extend(self) -> None:
        extend, length = self.self_extend, self.self_extend.original_length or self.max_length
        reason = None
        if self.positions != "rope":
            reason = f"it groups the positions of RoPE, and this model has positions = {self.positions!r}"
        elif "sliding" in self.attention_pattern:
            reason = "its sliding layers never see the far keys that would be grouped, and were trained so"
        elif not self.causal:
            reason = "it groups keys behind a query, and bidirectional attention looks ahead, too"
        elif self.rope_scaling.by_length:
            reason = f"rope_scaling.kind = {self.rope_scaling.kind!r} changes positions by length already: choose one of them"
        elif extend.window_size > length:
            reason = f"window_size = {extend.window_size} is more than the length trained at, {length}: half of that is usual"
        if reason:
            raise ConfigError(f"model.self_extend cannot be used: {reason}")
        extend.check_length(self.max_length, length)

    def _check_moe(self) -> None:
        outside = [layer for layer in self.moe.dense_layers if not 0 <= layer < self.num_layers]
        if outside:
            raise ConfigError(f"model.moe.dense_layers names layer {outside[0]}: the layers are 0 to {self.num_layers - 1}")
        if not self.moe_layers and self.moe.dense_layers:
            raise ConfigError(
                "model.moe.dense_layers leaves no layer a mixture: take some out, or set model.moe.num_experts = 0"
            )
        if self.moe.every > self.num_layers:
            raise ConfigError(
                f"model.moe.every = {self.moe.every} makes none of num_layers = {self.num_layers} layers a mixture: set it to "
                f"{self.num_layers} or less"
            )
        if self.causal and self.moe.has_leaks() and not self.moe.allow_leaks:
            what = (
                f"router = {self.moe.router!r}" if self.moe.router == "expert_choice" else f"priority = {self.moe.priority!r}"
            )
            instead = "router = 'softmax'" if self.moe.router == "expert_choice" else "priority = 'token'"
            raise ConfigError(
                f"model.moe.{what} lets a token's output depend on later tokens, which a causal decoder must not see: use "
                f"{instead}, or --model.moe.allow-leaks for analysis"
            )

    @property
    def kv_heads(self) -> int:
        """Key-value heads (K)."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_size(self) -> int:
        """Size of a head (H)."""
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def attention_scale(self) -> float:
        """Factor on the attention logits."""
        return self.query_scale or self.head_size**-0.5

    @property
    def gated(self) -> bool:
        """Whether the feed-forward sub-layer has a gate matrix."""
        return "glu" in self.activation

    @property
    def rotary_dim(self) -> int:
        """Features of a head that RoPE rotates."""
        return int(self.head_size * self.rope_fraction)

    @property
    def period(self) -> int:
        """Layers after which the kinds of blocks repeat."""
        if self.moe.num_experts and self.moe.dense_layers:
            return self.num_layers
        return math.lcm(len(self.attention_pattern), self.moe.every if self.moe.num_experts else 1)

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """The layers that are mixtures of experts."""
        return tuple(layer for layer in range(self.num_layers) if self.is_moe(layer))

    def is_moe(self, layer: int) -> bool:
        """Return whether this layer is a mixture of experts."""
        return self.moe.num_experts > 0 and (layer + 1) % self.moe.every == 0 and layer not in self.moe.dense_layers

    def attention_kind(self, layer: int) -> Literal["global", "sliding"]:
        """Return what this layer's attention sees."""
        return self.attention_pattern[layer % len(self.attention_pattern)]

    def window(self, layer: int) -> int:
        """Return the window of the attention in this layer; 0 where it sees everything."""
        return self.sliding_window if self.attention_kind(layer) == "sliding" else 0

    def for_platform(self, platform: str) -> "ModelConfig":
        """Return the configuration with every "auto" settled for "cpu", "gpu" (or "cuda") or "tpu"."""
        dtype = self.compute_dtype
        if dtype == "auto":
            dtype = "float32" if platform == "cpu" else "bfloat16"
        kernel = self.attention_kernel
        if kernel == "auto":
            kernel = {"cpu": "blocked", "tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}.get(platform, "plain")
        moe_kernel = self.moe.kernel
        if moe_kernel == "auto":
            moe_kernel = {"cpu": "loop", "tpu": "megablox"}.get(platform, "ragged")
        moe = dataclasses.replace(self.moe, kernel=moe_kernel)
        return dataclasses.replace(self, compute_dtype=dtype, attention_kernel=kernel, moe=moe)


def _near_divisor(number: int, wanted: int) -> int:
    # As far as anyone has heads: the square root of a stranger's number may take seconds to reach.
    small = [n for n in range(1, min(math.isqrt(number), 10_000) + 1) if number % n == 0]
    return min({*small, *(number // n for n in small)}, key=lambda n: abs(n - wanted))
