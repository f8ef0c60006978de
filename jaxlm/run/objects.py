"""Files of a run read with suspicion: whatever lies there, the answer is an object or a fault in words."""

import stat
from pathlib import Path
from typing import Any

from jaxlm.config import read_json

LARGEST = 1 << 24  # bytes; no configuration or list of starts comes near it


def check_regular(path: Path) -> None:
    """Raise where a path is something that a reader might wait for for ever, or read for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("is no file")


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; OSError or ValueError, in words, where there is none of fair size."""
    check_regular(path)
    if (size := path.stat().st_size) > LARGEST:
        raise ValueError(f"is too large: {size / 2**20:.0f} MiB")
    values = read_json(path.read_bytes())
    if not isinstance(values, dict):
        raise ValueError("is no object of named values")
    return values


def explain(fault: Exception) -> str:
    """Return in a few words why a file was not read."""
    return f"cannot be read: {fault.strerror}" if isinstance(fault, OSError) else str(fault)
