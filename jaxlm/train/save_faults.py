"""Faults of a save in the background, heard before Orbax raises them.

Where a save is of several processes, Orbax lets one whose own part has failed wait for the others, who wait for that part: many
minutes pass until all give up, and then none of them says that a disk was full. Its log says it at once.
"""

import logging
import threading

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
