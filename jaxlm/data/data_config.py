"""What to train on, and how it is made into rows of tokens."""

from typing import Annotated, Literal

from jaxlm.config import Range, config
from jaxlm.data.example_config import ExampleConfig
from jaxlm.data.forms import Form
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.errors import ConfigError


@config
class DataConfig:
    """What text to train on, and how it is made into rows of tokens."""

    sources: tuple[str, ...] = ("stdlib",)
    """Where text comes from: stdlib, text:GLOB, jsonl:GLOB#field, arrayrecord:GLOB, parquet:GLOB#column or tfds:name:split."""
    weights: tuple[float, ...] = ()
    """How much of the training rows each source gives; empty: in proportion to their sizes."""
    validation_sources: tuple[str, ...] = ()
    """Sources of the validation text; empty: documents are split off from `sources`."""
    validation_fraction: Annotated[float, Range(0, 0.5)] = 0.05
    """Share of the documents split off for validation, chosen by a hash of their names; 0: none."""
    form: Form = "text"
    """What a source holds: text to read; conversations (messages, or a prompt and its response); preferences (prompt, chosen,
    rejected); or labels (prompt, response, label). All but text come from jsonl:, parquet:, arrayrecord: (of JSON) or tfds:."""
    examples: ExampleConfig = ExampleConfig()
    """How conversations, preferences and labels become tokens."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """How text becomes tokens."""
    sequence_length: Annotated[int, Range(2)] = 256
    """Tokens in a row."""
    on_bad_document: Literal["error", "skip"] = "error"
    """Whether a bad document (not UTF-8, binary, cut short) stops the preparation, or is skipped and counted."""
    cache: str = ""
    """Folder for prepared data; empty: $JAXLM_CACHE, else $XDG_CACHE_HOME/jaxlm, else ~/.cache/jaxlm."""

    def check(self) -> None:
        if not self.sources:
            raise ConfigError("DataConfig.sources is empty: name at least one, for example ('stdlib',)")
        if self.weights and len(self.weights) != len(self.sources):
            raise ConfigError(
                f"DataConfig.weights has {len(self.weights)} numbers for {len(self.sources)} sources: give one each, or none"
            )
        if self.form != "text" and self.examples.max_prompt_length >= self.sequence_length:
            raise ConfigError(
                f"DataConfig.examples.max_prompt_length = {self.examples.max_prompt_length} leaves no room for a response in "
                f"sequence_length = {self.sequence_length}: set it to {self.sequence_length // 2}, or 0 for half a row"
            )
        if self.form in ("preferences", "labels") and "assistant" not in self.examples.train_on:
            raise ConfigError(
                f"DataConfig.examples.train_on = {self.examples.train_on} lacks 'assistant', whose messages alone count where "
                f"form = {self.form!r}: set it to ('assistant',)"
            )
        if not all(0 < weight < float("inf") for weight in self.weights):
            raise ConfigError(f"DataConfig.weights = {self.weights} must all be above 0: leave out a source that is not wanted")
