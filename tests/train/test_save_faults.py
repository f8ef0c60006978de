"""What a save leaves behind in the background when it fails: its error is heard, its other files end in silence."""

import asyncio
import logging
import sys
import threading
import time

import tensorstore

from jaxlm.train.save_faults import SaveFaults, without_late_writes


def test_a_file_that_ends_after_its_save_has_failed_is_not_spoken_of(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)

    def late(hook):
        monkeypatch.setattr(sys, "unraisablehook", hook)
        promise, future = tensorstore.Promise.new()

        async def wait():
            return await future

        loop = asyncio.new_event_loop()
        waits = loop.create_task(wait())
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        writer = threading.Thread(target=lambda: promise.set_result(1))
        writer.start()
        writer.join()
        waits._log_destroy_pending = False

    late(seen.append)
    assert [str(told.exc_value) for told in seen] == ["Event loop is closed"]
    seen.clear()
    late(without_late_writes(seen.append))
    assert not seen
    hook = without_late_writes(seen.append)
    hook(type("Unraisable", (), {"exc_value": RuntimeError("another")}))
    assert [str(told.exc_value) for told in seen] == ["another"]


def test_an_error_of_the_background_is_heard_while_the_save_waits():
    faults, over = SaveFaults(), threading.Event()
    waiting = threading.Thread(target=over.wait)
    waiting.start()
    try:
        logger = logging.getLogger("absl")
        record = logger.makeRecord("absl", logging.ERROR, "/orbax/async_checkpointer.py", 1, "failed", (), None)
        threading.Timer(0.3, lambda: logger.callHandlers(record)).start()  # without an error it says nothing of the save
        began = time.monotonic()
        record_of_fault = logger.makeRecord(
            "absl", logging.ERROR, "/orbax/async_checkpointer.py", 1, "failed", (), (OSError, OSError(28, "no space"), None)
        )
        threading.Timer(0.6, lambda: logger.callHandlers(record_of_fault)).start()
        assert faults.until_done(waiting).errno == 28 and time.monotonic() - began > 0.5
    finally:
        over.set()
        waiting.join()
        faults.close()
    assert faults not in logging.getLogger("absl").handlers
    assert faults.until_done(waiting) is None
