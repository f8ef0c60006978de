"""What `jaxlm eval --probe` measures, as values."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Literal

from jaxlm.config import Range, config
from jaxlm.errors import ConfigError
from jaxlm.model.config import ModelConfig
from jaxlm.model.extension import Extension

TEXT = ("positions", "short")
RETRIEVAL = ("passkey", "needle", "copy", "tasks")
# Which probes an option has a part in.
_USED_BY = {
    "stride": ("positions",), "whole_documents": TEXT, "rows": TEXT, "trials": ("passkey", "needle", "copy"),
    "depths": ("passkey", "needle", "copy"), "chat": ("passkey", "needle"),
}  # fmt: skip


@config
class Probes:
    """What to measure of a long context, and on what."""

    probe: tuple[Literal["positions", "short", "passkey", "needle", "copy", "tasks"], ...] = ()
    """positions: perplexity by position, memory and time; short: what the extension changes where it is not needed; passkey:
    five digits told once; needle: one of four keys of the same digits; copy: random tokens; tasks: your own (--tasks)."""
    lengths: tuple[Annotated[int, Range(2)], ...] = ()
    """Tokens of a row, each length by itself; none: half the length trained at, doubled up to what the model reads."""
    depths: tuple[Annotated[float, Range(0, 1)], ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Where in the text the answer stands, 0 the beginning."""
    trials: Annotated[int, Range(1)] = 3
    """Tasks for each length and depth."""
    tasks: str = ""
    """A file of JSON lines {"prompt": TEXT, "answer": TEXT, "depth": 0 to 1} for the probe tasks; depth may be left out."""
    chat: bool = False
    """Put passkeys and needles through the chat template, as what a user says."""
    rows: Annotated[int, Range(1)] = 4
    """Rows of text for positions and short."""
    stride: Annotated[int, Range(0)] = 0
    """positions: also windows of each length, moved by this over the longest rows, of which the last `stride` tokens count."""
    whole_documents: bool = False
    """A row is the beginning of one document; else documents are laid end to end."""
    seed: Annotated[int, Range(0)] = 0
    """The same seed gives the same tasks."""
    out: str = ""
    """Folder for probes.json and pictures; empty: probes/ in the run's, and there one named after what is measured."""

    def check(self) -> None:
        """Raise ConfigError where options have nothing to act on."""
        given = [field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]
        if given and not self.probe:
            option = f"--{given[0].replace('_', '-')}"
            raise ConfigError(f"{option} says how --probe measures: give --probe too, --probe positions passkey say")
        if ("tasks" in self.probe) != bool(self.tasks):
            raise ConfigError("--probe tasks and --tasks FILE go together: give both or none")
        if len(set(self.probe)) < len(self.probe) or len(set(self.lengths)) < len(self.lengths):
            raise ConfigError("--probe and --lengths name each thing once: leave out what is there twice")
        for name, probes in _USED_BY.items():
            if name in given and not set(probes) & set(self.probe):
                raise ConfigError(
                    f"--{name.replace('_', '-')} has a part in --probe {' or '.join(probes)} alone: leave it out, or name one"
                )
        if not self.depths or len(set(self.depths)) < len(self.depths):
            raise ConfigError("--depths takes one depth or more, each of them once: 0 0.5 1 say")

    def check_alone(self, others: Mapping[str, object]) -> None:
        """Raise ConfigError where one of these options is set: they say how to evaluate without probes."""
        for option, value in others.items():
            if value:
                raise ConfigError(f"{option} has no part in --probe: leave out one of them")

    def lengths_of(self, trained: ModelConfig, extended: ModelConfig) -> tuple[int, ...]:
        """Return the lengths to measure at, ascending."""
        if self.lengths:
            return tuple(sorted(self.lengths))
        lengths = [max(2, trained.max_length // 2)]
        while 2 * lengths[-1] <= extended.max_length:
            lengths.append(2 * lengths[-1])
        return tuple(lengths)


def window_of(extension: Extension, trained: ModelConfig) -> int:
    """Return up to which length the extension must leave every loss as it is, to the bit; 0 where it may change any."""
    if extension.rope_scaling.kind != "none":
        return 0
    grouped, limits = extension.self_extend, [trained.max_length]
    if grouped.on:
        limits.append(grouped.window_size)
    if grouped.scale_base:
        limits.append(max(0, int(grouped.scale_base) - 1))
    if extension.attention_window:
        limits.append(extension.attention_window)
        # Layers that slid already then see more, or less, than they did.
        limits += [trained.sliding_window] if "sliding" in trained.attention_pattern else []
    return min(limits)


def short_lengths(lengths: tuple[int, ...], extension: Extension, trained: ModelConfig) -> list[int]:
    """Return the lengths of rows in which the probe `short` compares: those up to the length trained at, and what must fit."""
    return sorted({length for length in (*lengths, window_of(extension, trained)) if 2 <= length <= trained.max_length})
