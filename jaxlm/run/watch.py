"""Signs of life, the first fault of any process, and an end within seconds for all the others.

They pass through the key-value store of JAX's coordinator. Where that goes with process 0, JAX itself ends the others.
"""

import itertools
import json
import os
import sys
import threading
import time
from contextlib import suppress

from jaxlm import errors
from jaxlm.errors import JaxlmError
from jaxlm.run import processes

# Seconds that a process has to end by itself once it has failed, or has heard that another did.
OWN_GRACE, GRACE = 15.0, 5.0
# Seconds between signs of life, and how long after a broken connection one must be missing to count as dead.
BEAT, SILENT = 0.5, 4.0
FAULT, BEATS, GONE = "jaxlm/fault", "jaxlm/beats", "jaxlm/gone"


class Watch(threading.Thread):
    """Gives signs of life, hears of the first fault of any process, and sees to it that this one then ends in time."""

    def __init__(self) -> None:
        super().__init__(name="jaxlm-watch", daemon=True)
        self.failed: tuple[int, str, str] | None = None  # process, kind of fault, message
        self._deadline, self._over = float("inf"), threading.Event()
        self._me, self._client = processes.index(), processes.client()

    def run(self) -> None:
        for beat in itertools.count():
            with suppress(Exception):
                self._client.key_value_set(f"{BEATS}/{self._me}", str(beat), allow_overwrite=True)
            if self.failed is None:
                with suppress(Exception):
                    self._learn(self._client.key_value_try_get(FAULT))
            if time.monotonic() > self._deadline:
                self.leave()
            if self._over.wait(BEAT):
                return

    def stop(self) -> None:
        """End the thread."""
        self._over.set()
        self.join()

    def announce(self, fault: BaseException) -> None:
        """Tell the others that this process has failed, or who has where the fault is a connection that broke."""
        if self.failed is None and is_connection(fault):
            silent = self._silent()
            if silent is not None and self.failed is None:
                self._publish(silent, "Exception", "it died without a word (killed, out of memory, or its machine is lost)")
        if self.failed is None:
            kind = type(fault).__name__
            self._publish(self._me, kind, str(fault) if isinstance(fault, JaxlmError) else f"{kind}: {fault}")

    def _publish(self, culprit: int, kind: str, message: str) -> None:
        with suppress(Exception):  # whoever is first is heard
            self._client.key_value_set(FAULT, json.dumps([culprit, kind, message[:4000]]))
        with suppress(Exception):
            self._learn(self._client.key_value_try_get(FAULT))
        if self.failed is None:  # the coordinator is gone
            self._learn(json.dumps([culprit, kind, message]))

    def _learn(self, text: str) -> None:
        culprit, kind, message = json.loads(text)
        self._deadline = time.monotonic() + (OWN_GRACE if culprit == self._me else GRACE)
        if self.failed is None and culprit != self._me:
            print(f"process {self._me}: stopping, for process {culprit} has failed: {message}", file=sys.stderr, flush=True)
        self.failed = culprit, kind, message

    def _silent(self) -> int | None:
        """Return the first process that shows no sign of life for a while, None where all do or a fault is announced."""
        before, until = self._beats(), time.monotonic() + SILENT
        while time.monotonic() < until:
            if self.failed is not None:
                return None
            time.sleep(0.1)
        after = self._beats()
        return next((k for k in range(processes.count()) if before.get(k) == after.get(k)), None)

    def _beats(self) -> dict[int, str]:
        with suppress(Exception):
            return {int(key.rsplit("/", 1)[1]): beat for key, beat in self._client.key_value_dir_get(BEATS)}
        return {}

    def leave(self) -> None:
        """End this process without the farewells in which JAX would wait for others; process 0 last, for it coordinates."""
        sys.stdout.flush()
        sys.stderr.flush()
        until = time.monotonic() + GRACE + 2
        with suppress(Exception):
            self._client.key_value_set(f"{GONE}/{self._me}", "", allow_overwrite=True)
        while self._me == 0 and time.monotonic() < until:
            with suppress(Exception):
                gone = {int(key.rsplit("/", 1)[1]) for key, _ in self._client.key_value_dir_get(GONE)}
                if len(gone | {self.failed[0] if self.failed else 0}) >= processes.count():
                    time.sleep(0.2)
                    break
            time.sleep(0.1)
        kind = self.failed[1] if self.failed else ""
        known = kind != "ProcessError" and isinstance(getattr(errors, kind, None), type)
        os._exit(2 if known else 130 if kind == "KeyboardInterrupt" else 1)


def is_connection(fault: BaseException | None) -> bool:
    """Return whether a fault may be the echo of another process's: whatever JAX reports but for a lack of memory."""
    import jax

    while fault is not None:
        if isinstance(fault, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(fault):
            return True
        fault = fault.__cause__ or fault.__context__
    return False
