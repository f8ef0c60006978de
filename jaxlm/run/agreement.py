"""What the processes of a run settle among themselves: going on together, failing together, and who is to blame.

They speak through the key-value store of JAX's coordinator, so that nothing here touches a device.
"""

import itertools
import json
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from jaxlm import errors
from jaxlm.errors import STORAGE, JaxlmError, no_storage
from jaxlm.run import processes
from jaxlm.run.watch import Watch, is_connection

_meetings = itertools.count()
_watch: Watch | None = None


class _Agreed(Exception):
    """The cause of a fault that every process raises."""


@contextmanager
def agreed(name: str, timeout: float = 600.0) -> Iterator[None]:
    """Run the block on every process, then go on together; a JaxlmError on any of them is raised on all.

    The first fault, by process number, is the one that counts. Raises JaxlmError that names the processes that did not come
    to `name` within `timeout` seconds after process 0 did. With one process nothing is added.
    """
    fault: JaxlmError | None = None
    try:
        yield
    except JaxlmError as error:
        if processes.count() == 1:
            raise
        fault = error
    except OSError as error:
        if processes.count() == 1 or error.errno not in STORAGE:
            raise
        fault = no_storage(error)
    if processes.count() > 1:
        _meet(name, fault, None, timeout)


def told(name: str, value: Any, timeout: float = 600.0) -> Any:
    """Return what process 0 has as `value` (JSON); `name` is for messages, as in `agreed`."""
    return value if processes.count() == 1 else _meet(name, None, value, timeout)[0]


def gathered(name: str, value: Any, timeout: float = 600.0) -> list[Any]:
    """Return every process's `value` (JSON), in the order of their numbers."""
    return [value] if processes.count() == 1 else _meet(name, None, value, timeout)


def same(name: str, value: str, advice: str, timeout: float = 600.0) -> None:
    """Raise ConfigError on all processes where `value` is not the same on all."""
    if processes.count() > 1:
        values = _meet(name, None, value, timeout)
        other = next((k for k, v in enumerate(values) if v != values[0]), None)
        if other is not None:
            raise errors.ConfigError(
                f"process {other} has another {name} than process 0 ({values[other]}, {values[0]}): {advice}"
            ) from _Agreed()


def _meet(name: str, fault: JaxlmError | None, value: Any, timeout: float) -> list[Any]:
    """Hand everyone's value to everyone, through process 0; raise the first fault."""
    client, me = processes.client(), processes.index()
    place = f"jaxlm/meetings/{next(_meetings)}"
    mine = {"fault": [type(fault).__name__, str(fault)] if fault else None, "value": value}
    client.key_value_set(f"{place}/{me}", json.dumps(mine))
    until = time.monotonic() + timeout
    if me == 0:
        found = [_wait(f"{place}/{k}", until) for k in range(processes.count())]
        missing = [str(k) for k, said in enumerate(found) if said is None]
        late = ["ProcessError", f'process {", ".join(missing)} did not reach "{name}" within {timeout:.0f} s: see what it says']
        said = [json.loads(text) if text else {"fault": late, "value": None} for text in found]
        client.key_value_set(f"{place}/all", json.dumps(said))
    else:
        text = _wait(f"{place}/all", until + 30)
        if text is None:
            raise errors.ProcessError(f'process 0 did not reach "{name}" within {timeout:.0f} s: see what it says')
        said = json.loads(text)
    for k, words in enumerate(said):
        if words["fault"]:
            kind, message = words["fault"]
            own = k == 0 or message.startswith("process ")
            # Where somebody is missing, there can be no farewell that waits for all.
            cause = None if kind == "ProcessError" else _Agreed()
            raise getattr(errors, kind, JaxlmError)(message if own else f"process {k}: {message}") from cause
    return [words["value"] for words in said]


def _wait(key: str, until: float) -> str | None:
    """Return the value of a key as soon as it is there, None after `until`; ends this process where another has failed."""
    while (left := until - time.monotonic()) > 0:
        began = time.monotonic()
        with suppress(Exception):
            return processes.client().blocking_key_value_get(key, max(1, round(1000 * min(1.0, left))))
        if _watch is not None and _watch.failed is not None:
            _watch.leave()
        if time.monotonic() - began < 0.1:  # not for want of time: the coordinator is gone, which JAX notices presently
            time.sleep(0.1)
    with suppress(Exception):
        return processes.client().key_value_try_get(key)
    return None


@contextmanager
def announced() -> Iterator[None]:
    """Tell the other processes of a fault in the block at once, before anything is cleared up that may wait for them."""
    try:
        yield
    except BaseException as fault:
        if _watch is not None and not isinstance(fault.__cause__, _Agreed):
            _watch.announce(fault)
        raise


def join(settings: processes.Settings) -> None:
    """Join the other processes and begin to watch them."""
    global _watch
    processes.join(settings)
    _watch = Watch()
    _watch.start()


def join_if_asked() -> int | None:
    """Join the others where the environment names any, and return this process's number; None for a run of one process."""
    settings = processes.read_settings()
    if settings is None:
        return None
    join(settings)
    return processes.index()


@contextmanager
def taking_part() -> Iterator[None]:
    """Run a command whose processes end together: all well, all with the fault they agreed on, or all soon after one failed.

    Does nothing to a run of one process. A JaxlmError raised before this process joined is told to the others as well.
    """
    settings = processes.read_settings()
    if settings is None:
        yield
        return
    try:
        try:
            yield
        except (JaxlmError, SystemExit) as fault:
            if _watch is not None or getattr(fault, "code", None) == 0:
                raise
            join(settings)
            with agreed("start"):
                if isinstance(fault, JaxlmError):
                    raise
                raise errors.ConfigError("the command is not understood: its own output says why") from fault
        if _watch is not None:
            with agreed("the end", timeout=3600):
                pass
            _part()
    except Exception as fault:
        if isinstance(fault.__cause__, _Agreed):
            first = processes.index() == 0
            _part()
            if first:
                raise
            raise SystemExit(2) from None
        if _watch is None:
            raise
        _fail(fault)
    except KeyboardInterrupt as fault:
        if _watch is None:
            raise
        _fail(fault)


def _part() -> None:
    import jax

    _watch.stop()
    jax.distributed.shutdown()


def _fail(fault: BaseException) -> None:
    """Say what is wrong, to the others too, and end this process."""
    _watch.announce(fault)
    culprit, _, message = _watch.failed
    if culprit == processes.index() or not (is_connection(fault) or str(fault) == message):
        if not isinstance(fault, JaxlmError) and getattr(fault, "errno", None) not in STORAGE:
            traceback.print_exception(fault)
        print(f"process {processes.index()}: error: {fault or type(fault).__name__}", file=sys.stderr, flush=True)
    _watch.leave()
