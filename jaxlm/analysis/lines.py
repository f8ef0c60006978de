"""Files of texts for probes: JSONL, an object of texts a line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxlm.config import read_json
from jaxlm.errors import DataError


def read_lines(path: Path, needed: Sequence[str]) -> list[dict[str, Any]]:
    """Return the objects of a JSONL file, each with a text under every name of `needed`; blank lines are passed over.

    Raises DataError, with file and line, where that is not so or there is none.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as fault:
        raise DataError(f"cannot read the texts of {path}: {fault}") from fault
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = read_json(line)
        except ValueError as fault:
            raise DataError(f"{path}:{number} {fault}") from fault
        if not isinstance(values, dict):
            raise DataError(f"{path}:{number} must be an object, not {type(values).__name__}")
        for name in needed:
            if not isinstance(values.get(name), str) or not values[name]:
                raise DataError(f'{path}:{number} needs a text "{name}": it has {", ".join(values) or "nothing"}')
        found.append(values)
    if not found:
        raise DataError(f"{path} has no line: write one JSON object a line")
    return found
