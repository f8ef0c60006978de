"""The record of a run: one JSON object a line in metrics.jsonl, mirrored to TensorBoard."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

from jaxlm.data.storage import Appended, write_atomically
from jaxlm.errors import CheckpointError
from jaxlm.run.tail import parse_row
from jaxlm.run.tensorboard import Events


class MetricsLog:
    """Appends rows; on continuing a run, rows from the restored step on are dropped, for they are computed again."""

    def __init__(self, path: Path | None, next_step: int, tensorboard: Path | None = None):
        """Open the record of a run whose next step is `next_step`; `tensorboard` is the folder to mirror it to.

        Without a path rows are only returned: another process writes them. No row is kept in memory: a run may be long.
        """
        kept = keep_rows_before(path, next_step) if path else []
        self._path, self._validated = path, {row["step"] for row in kept if row["split"] == "validation"}
        self._file = Appended(path) if path else None
        self._board = Events(tensorboard, next_step) if path and tensorboard is not None else None

    def write(
        self, step: int, split: Literal["train", "validation", "goodput"], values: dict[str, Any], *, keep: bool = True
    ) -> dict[str, Any]:
        """Return one row and, with `keep`, append it. Reading a number back gives the same bits; NaN becomes null.

        A validation row that stands there already (the run was stopped after it) is not written twice.
        """
        row = {"step": step, "split": split} | without_nan(values)
        known = split == "validation" and step in self._validated
        if known or not keep or self._file is None:
            return row
        with self._explained():
            self._file.write((json.dumps(row, allow_nan=False) + "\n").encode())
            if self._board is not None:
                self._board.add(numbers(split, values), step)
        if split == "validation":
            self._validated.add(step)
        return row

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn a failure to write into a CheckpointError."""
        try:
            yield
        except OSError as fault:
            raise CheckpointError(
                f"cannot write {self._path} or what TensorBoard reads beside it: {fault.strerror}. Checkpoints are kept: "
                "make room, then run the same command to continue from the newest"
            ) from fault

    def read(self) -> list[dict[str, Any]]:
        """Return all rows of the record, read anew; none without a path."""
        return read_rows(self._path) if self._path else []

    def sync(self) -> None:
        """Put what has been written on disk: a checkpoint must not be ahead of its record."""
        if self._file is not None:
            with self._explained():
                self._file.sync()

    def close(self) -> None:
        """Put everything on disk and close."""
        with ExitStack() as closing:
            for part in (self._file, self._board):
                if part is not None:
                    closing.callback(part.close)
            closing.enter_context(self._explained())
            self.sync()
            if self._board is not None:
                self._board.flush()


def numbers(split: str, values: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a row by the names that TensorBoard shows; of a list, one a mixture layer, each by its place."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, (int, float)):
            found[f"{split}/{name}"] = value
        elif isinstance(value, list) and all(isinstance(v, (int, float)) for v in value):
            found |= {f"{split}/{name}/{layer}": number for layer, number in enumerate(value)}
    return found


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
    try:
        lines = path.open("rb")
    except OSError as unread:
        raise CheckpointError(f"{path} cannot be read: {unread.strerror}") from unread
    with lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):  # what follows the last newline was not finished
                return
            if fault is not None:  # it was not the last one
                raise fault
            row = parse_row(line)
            if row is None:
                said = line.rstrip()[:80].decode(errors="replace")
                fault = CheckpointError(f"{path}, line {number}, is not a metrics row: {said!r}")
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
