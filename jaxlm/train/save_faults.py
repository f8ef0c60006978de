"""Faults of a save in the background, heard before Orbax raises them.

Where a save is of several processes, Orbax lets one whose own part has failed wait for the others, who wait for that part: many
minutes pass until all give up, and then none of them says that a disk was full. Its log says it at once.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any

LOOK = 0.2  # seconds


class SaveFaults(logging.Handler):
    """Hears of this process's part of a save that failed."""

    def __init__(self) -> None:
        """Listen from now on."""
        super().__init__(logging.ERROR)
        self._heard: BaseException | None = None
        self._logger = logging.getLogger("absl")
        self._logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the error that Orbax's background thread logs before it goes on to wait."""
        if record.module == "async_checkpointer" and record.exc_info and record.exc_info[1] is not None:
            self._heard = record.exc_info[1]

    def until_done(self, saving: threading.Thread) -> BaseException | None:
        """Wait until `saving` ends, or something was heard; return what."""
        while saving.is_alive() and self._heard is None:
            saving.join(LOOK)
        return self._heard if saving.is_alive() else None

    def close(self) -> None:
        """Listen no more."""
        self._logger.removeHandler(self)
        super().close()


def without_late_writes(shown: Callable[[Any], object]) -> Callable[[Any], object]:
    """Return a `sys.unraisablehook` that is silent where a file of a save that failed by then comes to its end.

    Nobody waits for it any more; TensorStore would print a trace for each such file.
    """

    def hook(unraisable: Any) -> None:
        if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"):
            shown(unraisable)

    return hook
