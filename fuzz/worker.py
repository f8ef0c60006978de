"""A process that reads the inputs of one target: `python -m fuzz.worker TARGET SEED FIRST LAST FOLDER`.

It says on standard output, in lines of JSON, how far it is and what failed; the number of the input that it reads stands in the
file `at` of its folder, so that who started it knows which input ended it. Input n of a seed is the same on every machine.
"""

import json
import logging
import mmap
import os
import struct
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

TELL_SECONDS = 0.5
# Inputs of a process that are read before its memory is bounded: what is loaded when it is first needed is no growth of theirs.
WARM = 20


def input_of(target: Any, seeds: Any, seed: int, number: int) -> dict[str, bytes]:
    """Return one input of a target."""
    return target.make(Random(f"{target.name} {seed} {number}"), seeds)


def main(name: str, seed: int, first: int, last: int, folder: Path) -> None:
    """Read inputs `first` to `last` - 1, and tell of them."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    tell = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries write from below Python
    from fuzz.examine import Examiner, limit_memory
    from fuzz.shrink import shrunk
    from fuzz.target import find

    logging.getLogger("absl").setLevel(logging.CRITICAL)  # what Orbax says of every damaged file
    target = find(name)
    (folder / "seeds").mkdir(exist_ok=True)
    seeds = target.seeds(folder / "seeds")
    examiner = Examiner(target, folder / "input")
    at = folder / "at"
    at.write_bytes(bytes(32))
    with at.open("r+b") as file:
        place = mmap.mmap(file.fileno(), 32)
    counts = {"accepted": 0, "refused": 0, "failure": 0}
    known: set[str] = set()
    told = 0.0
    for number in range(first, last):
        if number == first + WARM:
            limit_memory()
        place[:] = struct.pack("<4Q", number, *counts.values())
        files = input_of(target, seeds, seed, number)
        found = examiner.examine(files)
        if number < first + WARM and found.what.startswith("memory"):  # what is loaded when it is first needed is no growth
            found = examiner.examine(files)
        counts[found.kind] += 1
        if found.kind == "failure" and found.signature not in known and len(known) < 40:
            known.add(found.signature)
            known_as, slow = found.signature, found.what.startswith(("more than", "memory"))
            small = files if slow else shrunk(files, lambda made, same=known_as: examiner.examine(made).signature == same)
            again = examiner.examine(small)
            found = again if again.kind == "failure" else found
            spelled = {name: content.hex() for name, content in small.items()}
            said = {"number": number, "what": found.what, "trace": found.trace, "files": spelled}
            print(json.dumps({"failure": said}), file=tell, flush=True)
        if time.monotonic() - told > TELL_SECONDS or number == last - 1:
            told = time.monotonic()
            print(json.dumps({"next": number + 1, "counts": counts, "peak": examiner.peak_mib}), file=tell, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
