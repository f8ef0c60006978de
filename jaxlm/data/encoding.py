"""Documents to tokens, group by group and in order, by as many processes as there are."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np

from jaxlm.data.tokenizer import Tokenizer, load_tokenizer
from jaxlm.errors import DataError

_SECTION = 1 << 20  # SentencePiece takes 100 times the memory of what it is given at once
_IN_FLIGHT_PER_WORKER = 4


class Group(NamedTuple):
    """Consecutive documents that are encoded together."""

    splits: list[str]
    texts: list[str]
    wheres: list[str]
    ends_block: bool


Encode = Callable[[Tokenizer, str], Any]


def encode_document(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Return the tokens of `text`, encoding a very long one in sections cut after line ends."""
    sections, start = [], 0
    while len(text) - start > _SECTION:
        end = text.rfind("\n", start, start + _SECTION) + 1 or start + _SECTION
        sections.append(text[start:end])
        start = end
    return np.concatenate(tokenizer.encode_many([*sections, text[start:]]))


def encode_in_order(
    tokenizer_file: Path, groups: Iterable[Group], workers: int, encode: Encode = encode_document
) -> Iterator[tuple[Group, list[Any]]]:
    """Yield each group with what `encode` makes of its documents; with one worker or none it is done in this process.

    DataError where a process died, however early.
    """
    if workers <= 1:
        tokenizer = load_tokenizer(tokenizer_file)
        for group in groups:
            yield group, [encode(tokenizer, text) for text in group.texts]
        return
    free: SimpleQueue[_Worker] = SimpleQueue()

    def encoded(texts: list[str]) -> list[Any]:
        worker = free.get()
        try:
            return worker.encode(texts)
        finally:
            free.put(worker)

    with ExitStack() as running:
        started = [_Worker(tokenizer_file, encode, running) for _ in range(workers)]
        pool = running.enter_context(ThreadPoolExecutor(workers))  # a thread waits for each process
        for worker in started:
            running.callback(worker.kill)  # so that no thread waits any longer
            free.put(worker)
        running.callback(pool.shutdown, wait=False, cancel_futures=True)
        waiting: deque[tuple[Group, Future[list[Any]]]] = deque()
        for group in groups:
            waiting.append((group, pool.submit(encoded, group.texts)))
            if len(waiting) >= workers * _IN_FLIGHT_PER_WORKER:
                first, future = waiting.popleft()
                yield first, future.result()
        for group, future in waiting:
            yield group, future.result()


class _Worker:
    """A process that encodes what it is sent, through a pipe of its own.

    Killed at any moment it leaves nothing to wait for: the pipe ends. A ProcessPoolExecutor has one for all of them, and waits
    for ever where a process is killed while it is started, or amid what it says.
    """

    def __init__(self, tokenizer_file: Path, encode: Encode, running: ExitStack):
        # Spawned, not forked: the parent may hold devices and threads, which do not survive a fork.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        running.enter_context(self._pipe)
        self._process = context.Process(target=_serve, args=(theirs, tokenizer_file, encode), daemon=True)
        try:
            with theirs:
                self._process.start()
        except OSError as error:
            raise _died() from error
        running.callback(self._process.join)
        running.callback(self.kill)

    def encode(self, texts: list[str]) -> list[Any]:
        try:
            self._pipe.send(texts)
            value, fault = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise _died() from error
        if fault is not None:
            raise fault
        return value

    def kill(self) -> None:
        self._process.kill()


def _died() -> DataError:
    return DataError(
        "a process that encodes text died: out of memory, or started by a script without `if __name__ == '__main__':`. "
        "Run it again with fewer workers (1 needs no processes); what was finished is kept"
    )


def _serve(pipe: Connection, tokenizer_file: Path, encode: Encode) -> None:
    """Encode what comes through the pipe until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it and ends this
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tokenizer = load_tokenizer(tokenizer_file)
    with suppress(EOFError, OSError):
        while True:
            texts = pipe.recv()
            try:
                answer = [encode(tokenizer, text) for text in texts], None
            except Exception as fault:
                fault.add_note(traceback.format_exc())
                answer = None, fault
            pipe.send(answer)


def _end_with_parent() -> None:
    # A parent that was killed waits for nothing, and nobody else would end this amid a long document.
    multiprocessing.parent_process().join()
    os._exit(1)
