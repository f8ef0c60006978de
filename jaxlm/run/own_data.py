"""What a run reads after training: its own data, or other sources as its tokenizer and settings have it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from jaxlm.data.forms import Form
from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig, load_tokenizer
from jaxlm.errors import ConfigError
from jaxlm.experiment import Experiment
from jaxlm.run.directory import TOKENIZER


def data_of(folder: Path, experiment: Experiment, sources: Sequence[str], form: Form | None = None) -> DataConfig:
    """Return what to read: the data of the run in `folder`, or `sources`, with the tokenizer that it was trained with.

    `form` is that of the rows of `sources`; None: text where all of them are, else the run's. ConfigError where it is not that
    of the run's own data.
    """
    data = experiment.data
    if sources or data.tokenizer.path:
        data = dataclasses.replace(data, tokenizer=own_tokenizer(folder, experiment))
    if not sources:
        if form not in (None, data.form):
            raise ConfigError(f"{folder} has data of form {data.form!r}: name {form} to evaluate on with --source")
        return data
    text = all(source.partition(":")[0] in ("stdlib", "text") for source in sources)
    form = form or ("text" if text else data.form)
    return dataclasses.replace(
        data, sources=tuple(sources), weights=(), validation_sources=(), validation_fraction=0.0, form=form
    )


def own_tokenizer(folder: Path, experiment: Experiment) -> TokenizerConfig:
    """Return a configuration that loads the tokenizer which the run was trained with."""
    config, path = experiment.data.tokenizer, str((folder / TOKENIZER).absolute())
    if config.kind == "byte":
        return config
    return dataclasses.replace(config, path=path, vocab_size=load_tokenizer(path).vocab_size)
