"""Documents to tokens, group by group and in order, by as many processes as there are."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from pathlib import Path
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
    """Yield each group with what `encode` makes of its documents; with one worker or none it is done in this process."""
    if workers <= 1:
        tokenizer = load_tokenizer(tokenizer_file)
        for group in groups:
            yield group, [encode(tokenizer, text) for text in group.texts]
        return
    # Spawned, not forked: the parent may hold devices and threads, which do not survive a fork.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(tokenizer_file, encode))
    try:
        with closing(_in_order(pool, groups, workers * _IN_FLIGHT_PER_WORKER)) as encoded:
            yield from encoded
    except BrokenProcessPool as error:
        raise DataError(
            "a process that encodes text died: out of memory, or started by a script without `if __name__ == '__main__':`. "
            "Run it again with fewer workers (1 needs no processes); what was finished is kept"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(pool: ProcessPoolExecutor, groups: Iterable[Group], most: int) -> Iterator[tuple[Group, list[Any]]]:
    waiting = deque()
    for group in groups:
        try:
            waiting.append((group, pool.submit(_encode_texts, group.texts)))
        except BrokenPipeError as error:  # it died while it was being started, and is not in the pool yet
            raise BrokenProcessPool from error
        if len(waiting) >= most:
            first, future = waiting.popleft()
            yield first, future.result()
    for group, future in waiting:
        yield group, future.result()


_worker_tokenizer: Tokenizer
_worker_encode: Encode


def _start_worker(tokenizer_file: Path, encode: Encode) -> None:
    global _worker_tokenizer, _worker_encode
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it and ends the pool
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker_tokenizer, _worker_encode = load_tokenizer(tokenizer_file), encode


def _end_with_parent() -> None:
    # A pool's workers outlive a parent that was killed, waiting for work for ever.
    multiprocessing.parent_process().join()
    os._exit(1)


def _encode_texts(texts: list[str]) -> list[Any]:
    return [_worker_encode(_worker_tokenizer, text) for text in texts]
