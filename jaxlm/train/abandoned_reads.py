"""What Orbax leaves of a checkpoint that it could not read, ended in silence: what is to be said was said by the error.

Where one array fails Orbax leaves its reads of the others as they stand, stops their event loop and goes. Each tells of it in
dozens of lines when what it waits for comes to a closed loop, or whenever Python comes to collect it: minutes later it may be,
into the output of a run that has long continued from another checkpoint.
"""

import inspect
import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any


class _WithoutAbandonedReads:
    """`sys.unraisablehook` as it was, but for what comes of reads that Orbax abandoned."""

    def __init__(self, earlier: Callable[[Any], object]):
        self.earlier = earlier

    def __call__(self, said: Any) -> None:
        if not (_ended(said.object, said.exc_value) or _too_late(said.object, said.exc_value)):
            self.earlier(said)


def _ended(by: Any, fault: BaseException | None) -> bool:
    """Say whether a coroutine of Orbax's was collected."""
    theirs = inspect.iscoroutine(by) and "orbax" in by.cr_code.co_filename
    return theirs and fault is not None and isinstance(fault.__cause__, GeneratorExit)


def _too_late(by: Any, fault: BaseException | None) -> bool:
    """Say whether TensorStore, which names no object, brought what it had read to a loop that is closed."""
    return by is None and isinstance(fault, RuntimeError) and str(fault) == "Event loop is closed"


def _heard_by_somebody(record: logging.LogRecord) -> bool:
    """Say whether what asyncio logs is not of a read that failed after another one had, with nobody left to hear of it."""
    return "exception was never retrieved" not in record.getMessage()


def expect_abandoned_reads() -> None:
    """Have what a failed read of Orbax's leaves end without a word; every other fault that Python reports stays."""
    if not isinstance(sys.unraisablehook, _WithoutAbandonedReads):
        sys.unraisablehook = _WithoutAbandonedReads(sys.unraisablehook)
        # No coroutine is ours: neither of the two that follow can hide a fault of this package.
        logging.getLogger("asyncio").addFilter(_heard_by_somebody)
        warnings.filterwarnings("ignore", "coroutine '.*' was never awaited", RuntimeWarning)
