"""How a trained model is read at lengths that it was not trained at, as values: nothing of it is trained or changed."""

import dataclasses
from typing import Annotated

from jaxlm.config import Range, config
from jaxlm.errors import ConfigError
from jaxlm.model.config import ModelConfig
from jaxlm.model.rope_config import RopeScaling, SelfExtend


@config
class Extension:
    """What is put in the place of a trained model's positions while it is read."""

    rope_scaling: RopeScaling = RopeScaling()
    """Frequencies for longer contexts; kind "none": as trained."""
    self_extend: SelfExtend = SelfExtend()
    """Grouped positions for far keys; window_size 0: off."""
    attention_window: Annotated[int, Range(0)] = 0
    """Every layer sees this many last tokens alone; through its layers a model still reaches further. 0: as trained."""
    max_length: Annotated[int, Range(0)] = 0
    """The longest sequence to read; 0: what the method reaches (factor times the length trained at, or what Self-Extend's
    groups cover), else as trained."""

    def check(self) -> None:
        """Raise ConfigError where two methods contradict one another."""
        if self.rope_scaling.kind == "none" and self.rope_scaling != RopeScaling():
            raise ConfigError(
                'extend.rope_scaling.kind = "none" leaves positions as trained, and its other fields without effect: set '
                "extend.rope_scaling.kind, yarn or ntk say"
            )
        if self.attention_window and self.self_extend.on:
            raise ConfigError("extend.attention_window hides the far keys that extend.self_extend groups: take one of them")

    @property
    def changes(self) -> bool:
        """Whether a model is read otherwise than it was trained."""
        return self != Extension()

    @property
    def label(self) -> str:
        """A name for tables, "yarn x4" or "self-extend 4/1024" (group size and window)."""
        parts = []
        if self.rope_scaling.kind != "none":
            factor = f" x{self.rope_scaling.factor:g}" if self.rope_scaling.kind != "longrope" else ""
            parts.append({"linear": "pi"}.get(self.rope_scaling.kind, self.rope_scaling.kind) + factor)
        if self.self_extend.on:
            logarithm = ", log-length" if self.self_extend.scale_base else ""
            parts.append(f"self-extend {self.self_extend.group_size}/{self.self_extend.window_size}{logarithm}")
        if self.attention_window:
            parts.append(f"last {self.attention_window}")
        return " + ".join(parts) or "plain"

    def applied(self, model: ModelConfig) -> ModelConfig:
        """Return the model as it is to be read; ConfigError where it cannot be read so.

        Its parameters stay as they are. Lengths before, where not given, are the model's max_length.
        """
        if not self.changes:
            return model
        changed: dict[str, object] = {}
        reach, scaling = model.max_length, model.rope_scaling
        if self.rope_scaling.kind != "none":
            self._check_rope(model)
            scaling = self._scaling_of(model)
            reach = max(reach, int(scaling.factor * scaling.original_length))
        elif not scaling.original_length and scaling.needs_original:
            # What "0" stood for must not move with max_length.
            scaling = dataclasses.replace(scaling, original_length=model.max_length)
        changed["rope_scaling"] = scaling
        if self.self_extend.on:
            original = self.self_extend.original_length or reach
            changed["self_extend"] = dataclasses.replace(self.self_extend, original_length=original)
            reach = self.self_extend.longest(original)
        if self.attention_window:
            self._check_window(model)
            changed |= {"attention_pattern": ("sliding",), "sliding_window": self.attention_window}
        length = self.max_length or reach
        if model.positions == "learned" and length > model.max_length:
            raise ConfigError(
                f"extend.max_length = {length}: this model has learned positions, {model.max_length} of them, and none beyond; "
                "only models with RoPE, ALiBi or no positions read longer rows"
            )
        return dataclasses.replace(model, max_length=length, **changed)

    def _scaling_of(self, model: ModelConfig) -> RopeScaling:
        """Return the scaling to read by: of a model that has this kind already its own, but for what is given here."""
        wanted, plain = self.rope_scaling, RopeScaling()
        if model.rope_scaling.kind == wanted.kind:
            names = [field.name for field in dataclasses.fields(wanted)]
            given = {name: getattr(wanted, name) for name in names if getattr(wanted, name) != getattr(plain, name)}
            wanted = dataclasses.replace(model.rope_scaling, **given)
        return dataclasses.replace(wanted, original_length=wanted.original_length or model.max_length)

    def _check_rope(self, model: ModelConfig) -> None:
        if model.positions != "rope":
            raise ConfigError(
                f"extend.rope_scaling.kind = {self.rope_scaling.kind!r} changes rotary frequencies; this model has positions "
                f"= {model.positions!r}: leave it out"
            )
        if model.rope_scaling.kind not in ("none", self.rope_scaling.kind):
            raise ConfigError(
                f"extend.rope_scaling.kind = {self.rope_scaling.kind!r}: this model was trained with "
                f"{model.rope_scaling.kind!r}, which this would undo; change the factor of that one"
            )

    def _check_window(self, model: ModelConfig) -> None:
        if "sliding" in model.attention_pattern and self.attention_window > model.sliding_window:
            raise ConfigError(
                f"extend.attention_window = {self.attention_window} would widen layers that were trained to see "
                f"{model.sliding_window} tokens: take that or less"
            )
        if model.sliding_rope_theta:
            raise ConfigError(
                "extend.attention_window would give every layer the rotary frequencies of the sliding ones "
                "(sliding_rope_theta): leave it out"
            )
