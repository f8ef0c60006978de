"""How rotary positions are changed for contexts longer than the one a model began with, as values."""

import math
from typing import Annotated, Literal

from jaxlm.config import Range, config
from jaxlm.errors import ConfigError


@config
class RopeScaling:
    """Which frequencies queries and keys are rotated by; names and defaults are those of Hugging Face configurations."""

    kind: Literal["none", "linear", "ntk", "dynamic", "yarn", "longrope", "llama3", "proportional"] = "none"
    """linear: positions divided by `factor` (position interpolation, arXiv:2306.15595); ntk: the base raised, so that the
    longest wavelength grows by `factor` and the shortest stays; dynamic: the same by the row's length; yarn
    (arXiv:2309.00071); longrope (arXiv:2402.13753); llama3 (arXiv:2407.21783); proportional: wavelengths of the whole head."""
    factor: Annotated[float, Range(0)] = 1.0
    """How many times longer contexts become."""
    original_length: Annotated[int, Range(0)] = 0
    """The length before; 0 means model.max_length."""
    low_freq_factor: Annotated[float, Range(0)] = 1.0
    """llama3: pairs that turn less often than this within the original length are divided by `factor`."""
    high_freq_factor: Annotated[float, Range(0)] = 4.0
    """llama3: pairs that turn more often are kept."""
    beta_fast: Annotated[float, Range(0)] = 32.0
    """yarn: pairs that turn more often than this are kept."""
    beta_slow: Annotated[float, Range(0)] = 1.0
    """yarn: pairs that turn less often are divided by `factor`."""
    mscale: Annotated[float, Range(0)] = 0.0
    """yarn: with `mscale_all_dim`, weights of log(factor) in the attention factor (DeepSeek)."""
    mscale_all_dim: Annotated[float, Range(0)] = 0.0
    """yarn: see `mscale`."""
    truncate: bool = True
    """yarn: whole pairs at the borders of the ramp."""
    attention_factor: Annotated[float, Range(0)] | None = None
    """yarn, longrope: times cosines and sines; None for what the method derives from `factor`."""
    short_factor: tuple[Annotated[float, Range(0)], ...] = ()
    """longrope: a divisor for each pair, in rows up to the original length."""
    long_factor: tuple[Annotated[float, Range(0)], ...] = ()
    """longrope: the same in longer rows."""

    def check(self) -> None:
        """Raise ConfigError where fields contradict one another."""
        if not self.factor:
            raise ConfigError(
                "rope_scaling.factor = 0 leaves no positions: give how many times longer contexts become, 2.0 say"
            )
        if self.kind == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise ConfigError(
                f"rope_scaling.low_freq_factor = {self.low_freq_factor:g} must be below high_freq_factor = "
                f"{self.high_freq_factor:g}; Llama 3.1 has 1 and 4"
            )
        if self.kind == "yarn" and not (self.beta_fast and self.beta_slow):
            raise ConfigError("rope_scaling.beta_fast and beta_slow must be above 0; YaRN has 32 and 1")
        if self.kind != "longrope" and (self.short_factor or self.long_factor):
            raise ConfigError('rope_scaling.short_factor and long_factor go with rope_scaling.kind = "longrope"')
        if 0 in self.short_factor or 0 in self.long_factor:
            raise ConfigError("rope_scaling.short_factor and long_factor divide frequencies: none may be 0")

    @property
    def needs_original(self) -> bool:
        """Whether frequencies depend on the length before, `original_length` or what stands for it."""
        return self.kind in ("dynamic", "yarn", "longrope", "llama3")

    @property
    def by_length(self) -> bool:
        """Whether frequencies depend on the length of a row, so that what was rotated before does not stay valid."""
        return self.kind in ("dynamic", "longrope")

    def amplitude(self, original_length: int) -> float:
        """Return the factor on cosines and sines; attention logits grow by its square."""
        if self.kind not in ("yarn", "longrope"):
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.factor <= 1.0:
            return 1.0
        log = math.log(self.factor)
        if self.kind == "longrope":
            return math.sqrt(1.0 + log / math.log(original_length))
        if self.mscale and self.mscale_all_dim:
            return (0.1 * self.mscale * log + 1.0) / (0.1 * self.mscale_all_dim * log + 1.0)
        return 0.1 * log + 1.0


@config
class SelfExtend:
    """Far keys are seen at grouped positions that the model was trained on, near ones where they are (arXiv:2401.01325).

    A way of reading a trained model: nothing is trained with it. Names are those of the paper's code.
    """

    group_size: Annotated[int, Range(1)] = 1
    """How many far positions become one (G)."""
    window_size: Annotated[int, Range(0)] = 0
    """How many of the last keys, the token itself included, are seen where they are (w); 0 is off."""
    scale_base: Annotated[float, Range(0)] = 0.0
    """Queries at position i times max(1, ln(i + 1) / ln scale_base), for far retrieval; the paper has the length trained at;
    0 is off."""
    original_length: Annotated[int, Range(0)] = 0
    """The length trained at; 0 means model.max_length."""

    def check(self) -> None:
        """Raise ConfigError where fields contradict one another."""
        if self.window_size % self.group_size:
            near = self.window_size - self.window_size % self.group_size or self.group_size
            raise ConfigError(
                f"self_extend.window_size = {self.window_size} must be a multiple of group_size = {self.group_size}, or "
                f"relative positions would leap where grouped ones begin: take {near}"
            )
        if self.group_size > 1 and not self.window_size:
            raise ConfigError(
                f"self_extend.group_size = {self.group_size} needs window_size, the keys that are seen where they are: a "
                "quarter of the length trained at, say"
            )
        if 0 < self.scale_base <= 1:
            raise ConfigError(
                f"self_extend.scale_base = {self.scale_base:g} must be above 1: the length trained at, or 0 for none"
            )
        if not self.on and (self.scale_base or self.original_length):
            raise ConfigError("self_extend.window_size = 0 turns Self-Extend off: set it, or leave the other fields out")

    @property
    def on(self) -> bool:
        """Whether anything is grouped."""
        return self.window_size > 0

    def longest(self, original_length: int) -> int:
        """Return the greatest length whose relative positions all stay below the one trained at."""
        return self.group_size * (original_length - self.window_size) + self.window_size

    def reaching(self, length: int, original_length: int) -> "SelfExtend | None":
        """Return the smallest groups from these on, and the widest window up to this one, that reach rows of `length` tokens.

        None where no groups do.
        """
        wider = (_grouped_by(group, self.window_size, original_length) for group in range(self.group_size, original_length))
        return next((each for each in wider if each.longest(original_length) >= length), None)

    def check_length(self, wanted: int, original_length: int) -> None:
        """Raise ConfigError where rows of `wanted` tokens are more than this reaches, and say what would."""
        if wanted <= self.longest(original_length):
            return
        found = self.reaching(wanted, original_length)
        advice = f"group_size = {found.group_size} with window_size = {found.window_size}, or " if found else ""
        raise ConfigError(
            f"model.max_length = {wanted} is more than self_extend.group_size = {self.group_size} and window_size = "
            f"{self.window_size} reach: {self.longest(original_length)} tokens, of a model trained at {original_length}. Take "
            f"{advice}a shorter max_length"
        )


def _grouped_by(group: int, window: int, original_length: int) -> SelfExtend:
    """Return the widest window, of what was asked for or less, with which groups of this size make a row longer."""
    window = max(min(window, original_length - 1) // group * group, group)
    return SelfExtend(group_size=group, window_size=window)
