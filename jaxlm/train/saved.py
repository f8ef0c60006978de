"""Which checkpoints there are, from names alone: asking needs neither Orbax nor JAX."""

from pathlib import Path


def saved_steps(folder: Path) -> list[int]:
    """Return the steps of the complete checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal() and entry.is_dir())
