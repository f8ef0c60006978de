"""Targets with faults, for the tests of what finds them."""

import os
import signal
from pathlib import Path

import numpy as np

from fuzz.target import Target
from jaxlm.errors import DataError


def _fault(folder: Path) -> None:
    kind = (folder / "word").read_text()
    if kind == "KeyError":
        {}["a"]
    elif kind == "slow":
        while True:
            pass
    elif kind == "slow below an except":
        try:
            while True:
                pass
        except BaseException as fault:
            raise DataError("slow") from fault
    elif kind == "large":
        np.ones(300 << 20, np.uint8).sum()
    elif kind == "exit":
        raise SystemExit(0)
    elif kind == "not sane":
        raise AssertionError("three ids of two")
    elif kind == "without words":
        raise DataError(" ")
    elif kind == "not to be printed":
        raise DataError("a \ud800")
    elif kind == "in too many words":
        raise DataError("a" * 20_000)
    elif kind == "refused":
        raise DataError("no such thing: give another")


def _dies(folder: Path) -> None:
    if b"7" in (folder / "word").read_bytes():
        os.kill(os.getpid(), signal.SIGSEGV)
    _fault(folder)


def _word(word: str) -> dict[str, bytes]:
    return {"word": word.encode()}


FAULTS = Target("faults", "nothing", lambda folder: None, lambda rng, seeds: _word("KeyError"), _fault)
DIES = Target("faulty_targets:DIES", "nothing", lambda folder: None, lambda rng, seeds: _word(str(rng.randrange(12))), _dies)
REFUSES = Target("faulty_targets:REFUSES", "nothing", lambda folder: None, lambda rng, seeds: _word("refused"), _fault)
