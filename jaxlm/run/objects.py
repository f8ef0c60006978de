"""Files of a run read with suspicion: whatever lies there, the answer is an object or a fault in words."""

import json
import stat
from pathlib import Path
from typing import Any

LARGEST = 1 << 24  # bytes; no configuration or list of starts comes near it


def check_regular(path: Path) -> None:
    """Raise where a path is something that a reader might wait for for ever, or read for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("is no file")


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; OSError, ValueError or RecursionError, in words, where there is none of fair size."""
    check_regular(path)
    if (size := path.stat().st_size) > LARGEST:
        raise ValueError(f"is too large: {size / 2**20:.0f} MiB")
    try:
        values = json.loads(path.read_bytes())
    except ValueError as fault:
        raise ValueError(f"is not JSON: {fault}") from fault
    if not isinstance(values, dict):
        raise ValueError("is no object of named values")
    return values


def explain(fault: Exception) -> str:
    """Return in a few words why a file was not read."""
    if isinstance(fault, OSError):
        return f"cannot be read: {fault.strerror}"
    return "is nested too deeply" if isinstance(fault, RecursionError) else str(fault)
