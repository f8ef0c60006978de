"""The record of a run: one JSON object a line in metrics.jsonl, mirrored to TensorBoard."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from jaxlm.data.storage import write_atomically
from jaxlm.errors import CheckpointError


class MetricsLog:
    """Appends rows; on continuing a run, rows from the restored step on are dropped, for they are computed again."""

    def __init__(self, path: Path | None, next_step: int, tensorboard: Path | None = None):
        """Open the record of a run whose next step is `next_step`; `tensorboard` is the folder to mirror it to.

        Without a path rows are only returned: another process writes them.
        """
        self.rows = keep_rows_before(path, next_step) if path else []
        self._file = path.open("a", encoding="utf-8") if path else None
        self._board = None
        if path and tensorboard is not None:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(tensorboard), purge_step=next_step, flush_secs=10)

    def write(
        self, step: int, split: Literal["train", "validation", "goodput"], values: dict[str, Any], *, keep: bool = True
    ) -> dict[str, Any]:
        """Return one row and, with `keep`, append it. Reading a number back gives the same bits; NaN becomes null.

        A validation row that stands there already (the run was stopped after it) is not written twice.
        """
        row = {"step": step, "split": split} | without_nan(values)
        known = split == "validation" and any(r["step"] == step and r["split"] == split for r in reversed(self.rows))
        if known or not keep:
            return row
        if self._file is None:
            self.rows.append(row)
            return row
        try:
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as fault:
            raise CheckpointError(f"cannot write {self._file.name}: {fault.strerror}; checkpoints so far are kept") from fault
        self.rows.append(row)
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self._board.add_scalar(f"{split}/{name}", value, step)
                elif isinstance(value, list) and all(isinstance(v, (int, float)) for v in value):  # one a mixture layer
                    for layer, number in enumerate(value):
                        self._board.add_scalar(f"{split}/{name}/{layer}", number, step)
        return row

    def sync(self) -> None:
        """Put what has been written on disk: a checkpoint must not be ahead of its record."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Put everything on disk and close."""
        self.sync()
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def without_nan(value: Any) -> Any:
    """Return plain values with every NaN and infinity as None, which JSON has a word for."""
    if isinstance(value, dict):
        return {name: without_nan(v) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a record; a last line cut short by a crash is left out, a broken one before it is an error."""
    return list(each_row(path))


def each_row(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows that `read_rows` returns, one at a time: a long record need not be held whole."""
    if not path.exists():
        return
    fault = None
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith("\n"):  # what follows the last newline was not finished
                return
            if fault is not None:  # it was not the last one
                raise fault
            try:
                row = json.loads(line)
                row["step"], row["split"]
            except (ValueError, KeyError, TypeError):
                fault = CheckpointError(f"{path}, line {number}, is not a metrics row: {line.rstrip()[:80]!r}")
                continue
            yield row


def keep_rows_before(path: Path, next_step: int) -> list[dict[str, Any]]:
    """Keep in the file, and return, the rows that a state about to take `next_step` has behind it.

    A row of training step s comes of that step; a validation row s is of the state that step s begins from. Goodput rows
    stay all: the time was spent.
    """
    rows = read_rows(path)

    def keeps(row: dict[str, Any]) -> bool:
        at_state = row["split"] == "validation" and row["step"] == next_step
        return row["step"] < next_step or at_state or row["split"] == "goodput"

    kept = list(filter(keeps, rows))
    text = "".join(json.dumps(row) + "\n" for row in kept)
    if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:
        write_atomically(path, text)
    return kept
