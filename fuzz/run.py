"""Files of strangers against every parser that they can reach.

    python -m fuzz.run                                   # 100,000 inputs a target, one target after another
    python -m fuzz.run gguf chat-template --inputs 2000 --jobs 2
    python -m fuzz.run run-folder --input 4711           # one input again, with its traceback, and no bounds but those of time

Inputs are valid files changed at random, and texts of a grammar; input n of a seed is the same on every machine. Each target is
read by a process of its own, whose end is noticed, and laid to the input that it was at. What fails is made smaller and kept
under --found. Exit status 1 where anything failed.
"""

import dataclasses
import json
import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.live import Live
from tyro.conf import Positional

from benchmarks.machine import commit, machine
from fuzz import record
from fuzz.record import Result
from fuzz.target import find

ROOT = Path(__file__).parents[1]
PATIENCE = 900.0
"""Seconds of wall time without a word after which a process is taken to hang where no alarm of its own reaches it."""


def main(
    targets: Positional[Annotated[tuple[str, ...], tyro.conf.arg(help="Their names, or MODULE:NAME; all without any.")]] = (),
    *,
    inputs: Annotated[int, tyro.conf.arg(help="How many of each target.")] = 100_000,
    seed: int = 0,
    jobs: Annotated[int, tyro.conf.arg(help="Targets that are read at a time.")] = 1,
    nice: Annotated[int, tyro.conf.arg(help="How much other work goes before.")] = 10,
    seconds: Annotated[float, tyro.conf.arg(help="Wall time that a target may take; 0: as long as it takes.")] = 0.0,
    json: Annotated[Path | None, tyro.conf.arg(help="Put the results into this record, and a table beside it.")] = None,
    found: Annotated[Path, tyro.conf.arg(help="Where inputs that fail are kept.")] = Path("runs/fuzz"),
    input: Annotated[int | None, tyro.conf.arg(help="Read this input of one target alone, and show what comes of it.")] = None,
) -> int:
    """Read changed files, and say which came out as anything but an error that a user can mend.

    Status 1 says that one did, 3 that the time was over before all were read.
    """
    from fuzz.targets import TARGETS

    chosen = [find(name) for name in targets or TARGETS]
    if input is not None:
        if len(chosen) != 1:
            raise SystemExit(f"--input {input} is an input of one target: name one of {', '.join(TARGETS)}")
        return show(chosen[0], seed, input)
    results = {target.name: Result(target.name, target.about, seed, commit=str(commit() or "")[:10]) for target in chosen}
    out = Console(stderr=True)
    with Live(console=out, auto_refresh=False) as live, ThreadPoolExecutor(jobs) as pool:
        begun = [pool.submit(read_target, results[target.name], inputs, seconds, found, nice) for target in chosen]
        written = 0
        while not all(each.done() for each in begun):
            time.sleep(1.0)
            live.update(record.table(results.values()), refresh=out.is_terminal)
            done = [result for result in results.values() if result.date]
            if json is not None and len(done) > written:
                _write(json, done)
                written = len(done)
        for each in begun:
            each.result()
        live.update(record.table(results.values()), refresh=True)
    if json is not None:
        _write(json, list(results.values()))
    for result in results.values():
        for cause in result.found:
            out.print(f"{result.target}: {cause}", markup=False, soft_wrap=True)
    short = [result.target for result in results.values() if result.inputs < inputs]
    if short:
        out.print(f"time was over before {inputs:,} inputs of {', '.join(short)}", markup=False, soft_wrap=True)
    return 1 if any(result.failures for result in results.values()) else 3 if short else 0


def _write(path: Path, results: list[Result]) -> None:
    from fuzz.examine import GROWTH_MIB, SECONDS, SPARE_MIB

    facts = machine()
    said = ", ".join(f"{name} {value}" for name, value in facts.items() if isinstance(value, (str, int, float)))
    limits = {"seconds": SECONDS, "growth_mib": GROWTH_MIB, "spare_mib": SPARE_MIB}
    record.merge(path, results, {"limits": limits, "machine": said})


def read_target(result: Result, inputs: int, seconds: float, found: Path, nice: int) -> None:
    """Have a process read the inputs of a target, and another one after each that ends early; `result` is kept up to date."""
    began, first, before = time.monotonic(), 0, Result("", "", 0)
    while first < inputs and not (seconds and time.monotonic() - began > seconds):
        with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None, prefix="fuzz-") as name:
            left = seconds - (time.monotonic() - began) if seconds else 0.0
            ended = _Process(result, before, first, inputs, Path(name), found, nice).follow(began, left)
        before = dataclasses.replace(result)
        if ended is None:
            break
        first = ended + 1
    result.seconds = time.monotonic() - began
    result.date = datetime.now(UTC).date().isoformat()


class _Process:
    """One process that reads inputs of a target."""

    def __init__(self, result: Result, before: Result, first: int, inputs: int, folder: Path, found: Path, nice: int):
        self.result, self.before, self.folder, self.found, self.heard = result, before, folder, found, time.monotonic()
        command = [sys.executable, "-m", "fuzz.worker", result.target, str(result.seed), str(first), str(inputs), str(folder)]
        self.first, self.inputs, self.next = first, inputs, first
        self.process = subprocess.Popen(
            ["nice", "-n", str(nice), *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=(folder / "stderr").open("wb")
        )

    def follow(self, began: float, left: float) -> int | None:
        """Listen until it ends; return the input at which it died, None where it read all or its time was over."""
        listener = threading.Thread(target=self._listen, args=(began,))
        listener.start()
        until, over, hung = time.monotonic() + left, False, False
        while self.process.poll() is None:
            time.sleep(0.2)
            over, hung = bool(left) and time.monotonic() > until, time.monotonic() - self.heard > PATIENCE
            if over or hung:
                self.process.kill()
                self.process.wait()
        listener.join()
        if self.process.returncode == 0 or over:
            return None
        at = self.folder / "at"
        how = "hung" if hung else f"ended with status {self.process.returncode}"
        said = (self.folder / "stderr").read_text(errors="replace")[-2000:]
        if not at.exists():
            raise RuntimeError(f"the process of {self.result.target} does not start: {said}")
        number, accepted, refused, failures = struct.unpack("<4Q", at.read_bytes())
        # Told last may be less than was read: what it had come to stands in the file.
        self.result.accepted, self.result.refused = self.before.accepted + accepted, self.before.refused + refused
        self.result.inputs = self.before.inputs + number - self.first + 1
        self.result.failures = self.before.failures + failures + 1
        self._keep({"number": number, "what": f"the process {how}", "trace": said, "files": None})
        return number

    def _listen(self, began: float) -> None:
        for line in self.process.stdout:
            self.heard, said = time.monotonic(), json.loads(line)
            if "failure" in said:
                self._keep(said["failure"])
                continue
            counts, self.next = said["counts"], said["next"]
            self.result.inputs = self.before.inputs + self.next - self.first
            self.result.accepted = self.before.accepted + counts["accepted"]
            self.result.refused = self.before.refused + counts["refused"]
            self.result.failures = self.before.failures + counts["failure"]
            self.result.peak_mib = max(self.before.peak_mib, said["peak"])
            self.result.seconds = time.monotonic() - began

    def _keep(self, failure: dict) -> None:
        """Note a failure, and keep its input where it is made smaller; how to make it again is its number."""
        name = f"{self.result.target}-{self.result.seed}-{failure['number']}.json"
        what = " ".join(failure["what"].replace(str(self.folder), "FOLDER").split())[:300]
        self.result.found.append(f"input {failure['number']} of seed {self.result.seed}: {what}")
        self.found.mkdir(parents=True, exist_ok=True)
        (self.found / name).write_text(json.dumps({"target": self.result.target, **failure}, indent=1) + "\n")


def show(target: object, seed: int, number: int) -> int:
    """Read one input, print what comes of it and where it lies, and return 1 where it fails."""
    from fuzz.examine import Examiner
    from fuzz.worker import input_of

    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        (folder / "seeds").mkdir()
        files = input_of(target, target.seeds(folder / "seeds"), seed, number)
        outcome = Examiner(target, folder / "input").examine(files)
    out = Console(highlight=False)
    for name, content in files.items():
        out.print(f"{name}: {len(content)} bytes: {content[:300]!r}", markup=False, soft_wrap=True)
    out.print(f"{outcome.kind} {outcome.what}\n{outcome.trace}", markup=False, soft_wrap=True)
    return 1 if outcome.kind == "failure" else 0


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from jaxlm.errors import JaxlmError

    try:
        sys.exit(tyro.cli(main, prog="python -m fuzz.run", description=__doc__))
    except JaxlmError as fault:
        Console(stderr=True).print(f"error: {fault}", markup=False, soft_wrap=True)
        sys.exit(2)
