"""Whether anything is lost when commands are killed, told to stop, or find the disk full, at random moments of their lives.

    python -m benchmarks.soak --faults 200 --seed 0 --json docs/proof/soak.json
    python -m benchmarks.soak --faults 200 --seed 0 --json docs/proof/soak.json --continue     # after an interruption

Training (dense, with experts, DPO with its table of the reference, two processes), preparing data, a sweep and an analysis are
each run in peace, twice. Then, in rounds, one of them meets its share of faults; after each it is simply run again, at last to
its end, and what came of it must be what came in peace: every row of a record but its times, prepared data and tables of a
sweep to the byte, results of probes but for their seconds, and the same files. After every fault there is no process left,
every file can be read, no checkpoint is gone, the exit status is a documented one, and a command that found no room says so in
a line.

A fault is SIGKILL or SIGTERM to all processes of a command, to the one that was started, or to one of those that it started;
or a disk that is full but for a few bytes: a real one, a small tmpfs, for which the soak takes a mount namespace of its own. It
comes at a random time of a command's life, or just when the n-th new file or folder appears.

The code that runs is a copy taken at the start. At the first promise that is broken the soak stops with status 1, and keeps
the folder, the output and the list of faults. Linux alone.
"""

import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks import soak_faults, soak_report
from benchmarks.soak_faults import Broken
from benchmarks.soak_jobs import JOBS
from benchmarks.soak_round import Arguments, Round, Soak
from jaxlm.data.storage import write_atomically


def run(soak: Soak, finished: list[Round]) -> None:
    """Run all in peace, then rounds until no fault is left; `finished` grows by each, and is written down."""
    chosen = [job for job in JOBS if job.name in soak.arguments.jobs or not soak.arguments.jobs]
    based = any(job.based for job in chosen)
    first = [job for job in JOBS if job.name == "train" and (based or job in chosen)]  # others begin from its run
    record = soak.place / "rounds.json"
    with Progress(
        TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        console=soak.out,
    ) as progress, ThreadPoolExecutor(soak.arguments.parallel) as pool:  # fmt: skip
        peace = progress.add_task("in peace", total=len({job.name for job in (*first, *chosen)}))
        for job in first:
            soak.in_peace(job)
            progress.advance(peace)
        for _ in pool.map(soak.in_peace, [job for job in chosen if job not in first]):
            progress.advance(peace)
        task = progress.add_task("faults", total=soak.arguments.faults, completed=soak.arguments.faults - soak.left)

        def told(done: Round) -> None:
            entry = done.faults[-1]
            progress.advance(task)
            soak.out.print(
                f"{time.strftime('%H:%M:%S')}  round {done.number:3}  {done.job:15} {entry['what']}, {entry['when']}: "
                f"exit status {entry['status']}" + (f", {entry['redone']} steps to redo" if entry.get("redone") else ""),
            )  # fmt: skip

        def rounds(numbers: Any) -> None:
            while not soak.stop.is_set() and soak.left > 0:
                with soak.lock:
                    number = next(numbers)
                done = soak.round(number, told)
                with soak.lock:
                    finished.extend([done] if done else [])
                    write_atomically(record, json.dumps([asdict(each) for each in finished]))

        numbers = iter(range(max((done.number for done in finished), default=-1) + 1, 1_000_000))
        workers = [pool.submit(rounds, numbers) for _ in range(soak.arguments.parallel)]
        try:
            for worker in workers:
                worker.result()
        except (KeyboardInterrupt, SystemExit):
            soak.stop.set()
            soak_faults.end_all(f"{os.getpid()}-")
            raise


def main(arguments: Arguments) -> int:
    """Soak, and write down what happened."""
    out = Console(stderr=True, highlight=False, soft_wrap=True)
    os.environ["JAX_PLATFORMS"] = "cpu"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    mounted = soak_faults.enter_namespace()
    soak_faults.adopt()
    if not mounted:
        out.print("no full disks: nothing can be mounted here, neither as root nor in a user namespace", markup=False)
        if not arguments.without_full_disks:
            out.print("--without-full-disks makes the other faults", markup=False)
            return 2
    record = arguments.place / "rounds.json"
    finished: list[Round] = []
    if arguments.continue_ and record.exists():
        finished = [Round(**each) for each in json.loads(record.read_text())]
    elif arguments.place.exists():
        shutil.rmtree(arguments.place)
    began = time.monotonic()
    soak = Soak(arguments, mounted=mounted, out=out)
    soak.left -= sum(len(done.faults) for done in finished)
    try:
        run(soak, finished)
    except Broken as fault:
        out.print("BROKEN", fault, markup=False)
        return 1
    soak_report.show(finished, out)
    if arguments.json:
        facts = {
            "seed": arguments.seed,
            "asked": arguments.faults,
            "seconds": round(time.monotonic() - began),
            "full_disks": mounted,
            "commit": soak.commit,
        }
        peace = {name: {"seconds": round(found["seconds"], 2)} for name, found in soak.peace.items()}
        soak_report.write(arguments.json, finished, facts | {"peace": peace})
    faults = Counter(fault["kind"] for done in finished for fault in done.faults)
    out.print(f"{faults.total()} faults in {len(finished)} rounds, every promise kept")
    shutil.rmtree(soak.place)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, description=__doc__)))
