"""What a run that goes on must find as it was besides its configuration: its tokenizer and its data."""

from pathlib import Path
from typing import Any

from jaxlm.data.prepare import Prepared
from jaxlm.errors import CheckpointError, ConfigError
from jaxlm.run.directory import TOKENIZER
from jaxlm.train import checkpoint
from jaxlm.train.saved import saved_steps


def check_inputs_are_the_same(folder: Path, saves: Path, prepared: Prepared, *, allow_change: bool) -> str | None:
    """Return what has changed in the data of a run that goes on, where that is allowed; None where nothing has.

    Sources may have changed under an unchanged configuration: a file more, a newer Python's standard library. Raises
    ConfigError for other data where that is not allowed, and for another tokenizer always: saved embeddings are of the old ids.
    """
    before = _described(saves)
    key = data.get("key") if isinstance(data := before.get("data"), dict) else None
    if before.get("tokenizer") not in (None, prepared.tokenizer.digest):
        raise ConfigError(
            f"{folder} was trained with another tokenizer than its data gets now: one was learnt anew from other sources, or "
            f"named. Keep the old one by --data.tokenizer.path {folder / TOKENIZER} --allow-config-change, or begin anew in "
            "another --run-dir"
        )
    if key in (None, prepared.key):
        return None
    if not allow_change:
        raise ConfigError(
            f"the data of {folder} is not what it was trained on: its sources hold something else now. Bring them back, go on "
            "with other rows by --allow-config-change, or begin anew in another --run-dir"
        )
    return f"changed: what the data's sources hold, prepared as {key} before and as {prepared.key} now"


def _described(saves: Path) -> dict[str, Any]:
    """Return what the newest checkpoint that can be read says of itself; nothing where there is none."""
    for step in reversed(saved_steps(saves)):
        try:
            return checkpoint.description(saves, step)
        except CheckpointError:
            continue
    return {}
