"""A round of the soak: a job meets its share of faults, is run to its end and compared; and what is promised on the way."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

import jaxlm
from benchmarks import soak_faults, soak_jobs, soak_report
from benchmarks.machine import commit
from benchmarks.soak_faults import Broken, Command, Disk, Fault
from benchmarks.soak_jobs import JOBS, Job, Reached

MEGABYTES = 96  # of a disk; what a job writes is a few
SHARE = 5  # faults of a round


@dataclass(frozen=True)
class Arguments:
    """How much, and where."""

    faults: int = 200
    """In all."""
    seed: int = 0
    """Of moments and kinds."""
    json: Path | None = None
    """Write what happened there, and a page beside it."""
    jobs: tuple[Literal[tuple(job.name for job in JOBS)], ...] = ()
    """Only these jobs; none: all."""
    without_full_disks: bool = False
    """Make do without full disks where nothing can be mounted."""
    parallel: int = 2
    """Jobs at a time."""
    place: Path = Path(tempfile.gettempdir()) / "jaxlm-soak"
    """Where it works; new each time unless it continues."""
    continue_: Annotated[bool, tyro.conf.arg(name="continue")] = False
    """Keep the rounds that are done in that place."""


@dataclass
class Round:
    """A job that met faults, was run to its end, and compared."""

    number: int
    job: str
    faults: list[dict[str, Any]] = field(default_factory=list)
    starts: int = 0
    seconds: float = 0.0
    code: str = ""
    """The digest of the code that ran."""


class Soak:
    """The place where all happens, and the promises."""

    def __init__(self, arguments: Arguments, *, mounted: bool, out: Console):
        """Lay out the inputs and take a copy of the code."""
        self.place, self.mounted, self.out = arguments.place.absolute(), mounted, out
        self.inputs, self.arguments = self.place / "inputs", arguments
        self.kinds = ("kill", "terminate", "disk") if mounted else ("kill", "terminate")
        self.peace: dict[str, dict[str, Any]] = {}
        self.lock, self.stop = threading.Lock(), threading.Event()
        self.left = arguments.faults
        code = self.place / "code"
        for stale in (code, self.inputs, self.place / "disks"):
            shutil.rmtree(stale, ignore_errors=True)
        shutil.copytree(Path(jaxlm.__file__).parent, code / "jaxlm", ignore=shutil.ignore_patterns("__pycache__"))
        soak_jobs.write_inputs(self.inputs)
        self.code, self.commit = soak_report.digest(code), commit()

    def environment(self, home: Path) -> dict[str, str]:
        """Return the environment of a command: this one's, the copied code, and all that it writes on its disk."""
        temporary = home.parent / "tmp"
        temporary.mkdir(exist_ok=True)
        own = {
            "PYTHONPATH": str(self.place / "code"), "JAX_PLATFORMS": "cpu", "JAXLM_CACHE": str(home / "cache"),
            "JAX_COMPILATION_CACHE_DIR": str(self.place / "programs"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",  # tiny models compile longer than they run
            "MPLCONFIGDIR": str(self.place / "matplotlib"), "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1", "COLUMNS": "250",
        }  # fmt: skip
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return kept | own

    def start(self, job: Job, home: Path, mark: str, output: Path) -> Command:
        """Start a job."""
        return Command.start(job.words(self.inputs), home, self.environment(home), mark, output)

    def in_peace(self, job: Job) -> None:
        """Run a job twice undisturbed, and note what comes of it and how long it takes; Broken where the two differ."""
        outcomes = []
        for turn in range(2):  # the first compiles
            disk = Disk(self.place / "disks" / f"peace-{job.name}", MEGABYTES, mounted=False)
            job.begin(self.inputs, disk.home)
            before = soak_jobs.written(disk.home)
            command = self.start(job, disk.home, f"{os.getpid()}-peace-{job.name}", self.place / f"peace-{job.name}.log")
            names: set[str] = set()
            while command.process.poll() is None:
                names |= soak_jobs.written(disk.home)
                time.sleep(0.02)
            if command.wait(0):
                raise Broken(f"{job.name} in peace ended with exit status {command.process.returncode}:\n{command.said}")
            seconds = command.seconds
            outcomes.append(job.outcome(disk.home))
            if job.name == "train" and turn:
                shutil.copytree(disk.home / job.run, self.inputs / "base")
            disk.remove()
        if wrong := soak_jobs.differences(*outcomes):
            raise Broken(f"{job.name} is not the same twice in peace: {'; '.join(wrong)}")
        self.peace[job.name] = {"outcome": outcomes[1], "seconds": seconds, "names": len(names - before)}
        if job.run:
            self.peace[job.name]["row"] = len([row for row in outcomes[1]["rows"][job.run] if row["split"] == "train"])

    def take(self) -> bool:
        """Take one of the faults that are left."""
        with self.lock:
            self.left -= 1
            return self.left >= 0

    def give_back(self) -> None:
        """Return a fault that came too late."""
        with self.lock:
            self.left += 1

    def round(self, number: int, told: Any) -> Round | None:
        """Disturb a job and compare what comes of it; None where no fault is left, or the soak has stopped."""
        chosen = [job for job in JOBS if job.name in self.arguments.jobs or not self.arguments.jobs]
        job, rng = chosen[number % len(chosen)], random.Random(f"{self.arguments.seed}/{number}")
        done = Round(number, job.name, code=self.code)
        disk = Disk(self.place / "disks" / f"round-{number}", MEGABYTES, mounted=self.mounted)
        outputs = self.place / f"round-{number}"
        outputs.mkdir(exist_ok=True)
        try:
            job.begin(self.inputs, disk.home)
            for _ in range(SHARE):
                if self.stop.is_set() or not self.take():
                    break
                count = len(done.faults)
                goes_on = self._disturbed(job, disk, done, rng, outputs)
                if len(done.faults) == count:  # it hit nothing
                    self.give_back()
                else:
                    told(done)
                if not goes_on:
                    break
            if not done.faults or self.stop.is_set():
                return None
            self._to_its_end(job, disk, done, outputs)
        except Exception as fault:
            self.stop.set()
            shutil.copytree(disk.folder, outputs / "disk", symlinks=True, dirs_exist_ok=True)
            last = max(outputs.glob("*.log"), key=lambda path: path.stat().st_mtime, default=None)
            words = (
                f"round {number}, {job.name}: {fault}\nfaults so far: {json.dumps(done.faults, indent=1)}\n"
                f"kept: {outputs} (the disk, the output of every start). The last output:\n"
                f"{last.read_text(errors='replace')[-6000:] if last else ''}"
            )
            self.out.print("BROKEN", words.partition("\n")[0], markup=False)  # at once: others are still at work
            raise Broken(words) from fault
        finally:
            disk.remove()
        shutil.rmtree(outputs)
        return done

    def _disturbed(self, job: Job, disk: Disk, done: Round, rng: random.Random, outputs: Path) -> bool:
        """Start the job and let a fault befall it; return whether it came before the end. Broken where a promise is."""
        peace = self.peace[job.name]
        fault = Fault.draw(rng, peace["seconds"], peace["names"], self.kinds)
        before = Reached.look(disk.home / job.run) if job.run else Reached(0, 0)
        mark = f"{os.getpid()}-{done.number}-{done.starts}"
        command = self.start(job, disk.home, mark, outputs / f"{done.starts}.log")
        done.starts += 1
        try:
            if not fault.await_moment(command, lambda: soak_jobs.written(disk.home)):
                self._ended_well(command, command.wait(0))
                return False
            moment, stepping = command.seconds, self._steps_on(job, command, disk)
            what = fault.strike(command, disk, rng)
            entry = {"kind": fault.kind, "what": what, "when": fault.when, "at": round(moment, 2)}
            done.faults.append(entry)
            status = command.wait(20 * peace["seconds"] + 180)
            entry |= {"status": status, "seconds": round(command.seconds, 2)}
            command.nobody_left()
            self._ended_as_documented(job, command, fault, status)
            soak_jobs.readable(disk.home)
            if job.run:
                entry["redone"] = self._nothing_lost(command, before, Reached.look(disk.home / job.run))
            if stepping and fault.kind == "terminate" and fault.whom != "child" and (status or entry["redone"]):
                raise Broken(f"told to stop amid steps it ended with {status} and {entry['redone']} steps to redo")
            if len(done.faults) == 1:
                self._listed(disk.home)
            if not fault.has_hit(status, command.said):
                done.faults.pop()
                return status != 0
        finally:
            disk.empty()
            command.kill()
        return True

    def _steps_on(self, job: Job, command: Command, disk: Disk) -> bool:
        """Return whether a training has taken a step since this start and has more than one to take."""
        if not job.run or not re.search(r"step \d+/\d+", command.said):
            return False
        row = Reached.look(disk.home / job.run).row
        return row < self.peace[job.name]["row"] - 2

    def _nothing_lost(self, command: Command, before: Reached, now: Reached) -> int:
        """Return how many steps are to be redone; Broken where a start did not go on from the newest checkpoint there was."""
        begun = re.search(r"(continuing at step (\d+)|training), [\d.]+M parameters", command.said)
        if begun and int(begun[2] or 0) != before.saved:
            raise Broken(f"it began at step {begun[2] or 0}, and the newest checkpoint was {before.saved}")
        if now.saved < before.saved:
            raise Broken(f"the newest checkpoint was {before.saved}, and is {now.saved}")
        redone = max(0, now.row - now.saved)
        if redone > 2 * soak_jobs.EVERY:  # one save is under way while the steps up to the next are taken
            raise Broken(f"{redone} steps are to be redone, with a checkpoint every {soak_jobs.EVERY}")
        return redone

    def _to_its_end(self, job: Job, disk: Disk, done: Round, outputs: Path) -> None:
        command = self.start(job, disk.home, f"{os.getpid()}-{done.number}-end", outputs / f"{done.starts}.log")
        done.starts += 1
        try:
            self._ended_well(command, command.wait(20 * self.peace[job.name]["seconds"] + 180))
        finally:
            command.kill()
        soak_jobs.readable(disk.home)
        if wrong := soak_jobs.differences(self.peace[job.name]["outcome"], job.outcome(disk.home)):
            raise Broken("what came of it is not what came of it in peace: " + "; ".join(wrong))
        done.seconds = round(command.seconds, 2)

    def _ended_well(self, command: Command, status: int) -> None:
        if status or "Traceback" in command.said:
            raise Broken(f"without a fault it ended with exit status {status}")
        command.nobody_left()

    def _ended_as_documented(self, job: Job, command: Command, fault: Fault, status: int) -> None:
        """Raise Broken for an exit status, or last words, that the documentation does not know."""
        said = command.said
        if fault.kind == "kill":
            known = {-9, 0} if fault.whom != "child" else {-9, 0, 1, 2}
        elif fault.kind == "terminate":
            known = set(job.terminated) | ({1, 2} if fault.whom == "child" else set())
        else:
            known = {0, 1, 2} if job.name in ("sweep", "analyze") else {0, 2}
        if status not in known:
            raise Broken(f"exit status {status}, of which {sorted(known)} are known")
        if "Traceback" in said and fault.kind != "kill":
            raise Broken("it ended with a traceback")
        lines = [line for line in said.splitlines() if any(word in line for word in ("error:", "fault:", "failed", "stopped"))]
        if status in (1, 2) and not lines:
            raise Broken("it ended with an error and does not say which")
        if fault.kind == "disk" and status == 2 and not any("full" in line or "space" in line for line in lines):
            raise Broken("it does not say that the disk is full")

    def _listed(self, home: Path) -> None:
        """Raise Broken where `jaxlm runs` does not take what lies there."""
        words = [sys.executable, "-m", "jaxlm", "runs", str(home)]
        told = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        asked = soak_faults.run_own(words, cwd=self.place, env=self.environment(home), **told)
        if asked.returncode not in (0, 2) or "Traceback" in asked.stderr or ((home / "run").exists() and asked.returncode):
            raise Broken(f"jaxlm runs ended with exit status {asked.returncode}: {asked.stderr[-2000:]}")
