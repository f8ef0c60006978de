"""TensorBoard's file of events, written by the thread that has the numbers.

tensorboardX writes from a thread of its own: on a full disk that thread ends, and whoever hands it numbers then waits for ever.
"""

import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlm.data.storage import Appended

_FLUSH_SECONDS = 10.0


class Events:
    """A new file of events in a folder."""

    def __init__(self, folder: Path, next_step: int):
        """Begin it; of earlier files in the folder TensorBoard then shows what came before `next_step`. OSError on failure."""
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        self._file = Appended(folder / f"events.out.tfevents.{int(time.time())}.{os.getpid()}")
        self._waiting, self._flushed = bytearray(), time.monotonic()
        self._put(Event(file_version="brain.Event:2"))
        self._put(Event(step=next_step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Note numbers at a step; every ten seconds what was noted is written, with OSError where that fails."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._put(Event(step=step, summary=summary))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def _put(self, event: Any) -> None:
        from tensorboardX.record_writer import masked_crc32c

        event.wall_time = time.time()
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        for part in (length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data))):
            self._waiting += part

    def flush(self) -> None:
        """Write what was noted; OSError where that fails."""
        waiting, self._waiting, self._flushed = self._waiting, bytearray(), time.monotonic()
        self._file.write(bytes(waiting))

    def close(self) -> None:
        """Write what was noted, and close."""
        try:
            self.flush()
        finally:
            self._file.close()
