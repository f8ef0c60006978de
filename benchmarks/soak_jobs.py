"""The commands that the soak interrupts, what they begin from, and what must come out of them whatever happened."""

import hashlib
import json
import os
import shutil
import signal
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from benchmarks.soak_faults import Broken
from jaxlm.run.metrics import read_rows
from jaxlm.run.standing import standing
from jaxlm.sweep.index import INDEX
from jaxlm.train import checkpoint, checksums
from jaxlm.train.saved import saved_steps

TIMES = {"tokens_per_second", "step_seconds", "data_wait_seconds"}
TERM = -signal.SIGTERM


@dataclass(frozen=True)
class Job:
    """A command that is interrupted."""

    name: str
    arguments: tuple[str, ...]
    """Of jaxlm; INPUTS stands for the folder of what it reads."""
    outcome: Callable[[Path], dict[str, Any]]
    """Parts of what came out, from the folder where it worked: equal whatever happened on the way."""
    terminated: frozenset[int] = frozenset({0, TERM})
    """Exit statuses after SIGTERM: it has saved and stopped, or the signal came before it could or when nothing was left to
    save."""
    run: str = ""
    """The run that it trains, in the folder where it works."""
    begin: Callable[[Path, Path], None] = lambda inputs, home: None
    """Lays out, from the inputs, what it changes."""
    based: bool = False
    """Whether it reads the run of the first job."""

    def words(self, inputs: Path) -> list[str]:
        """Return the whole command."""
        return [sys.executable, "-m", "jaxlm", *(word.replace("INPUTS", str(inputs)) for word in self.arguments)]


def rows(home: Path) -> dict[str, Any]:
    """Return all of every run's rows that does not tell of time."""
    return {
        str(path.parent.relative_to(home)): [
            {name: value for name, value in row.items() if name not in TIMES}
            for row in read_rows(path)
            if row["split"] != "goodput"
        ]
        for path in sorted(home.rglob("metrics.jsonl"))
    }


def names(home: Path) -> list[str]:
    """Return the names of all files, but for those that an interruption may add to or choose.

    These are TensorBoard's, one a start, and which checkpoints are kept beside the last: one that was saved when the run was
    told to stop counts as one of the newest. Of each run it is said how many there are.
    """
    found = set()
    for path in home.rglob("*"):
        parts = path.relative_to(home).parts
        if path.is_file() and not {"tensorboard", "checkpoints"} & set(parts) and path.name != INDEX:
            found.add("/".join(parts))
    for saves in home.rglob("checkpoints"):
        steps = saved_steps(saves)
        others = len(list(saves.iterdir())) - len(steps)
        found.add(f"{saves.relative_to(home)}: {len(steps)}, the last {max(steps, default=None)}, {others} other entries")
    return sorted(found)


def digests(folder: Path, pattern: str = "**/*") -> dict[str, str]:
    """Return a hash of every file but locks."""
    files = (path for path in folder.glob(pattern) if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}


def arrays(home: Path) -> dict[str, str]:
    """Return a hash of every array of the last checkpoint of every run."""
    found = {}
    here = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    for saves in sorted(home.rglob("checkpoints")):
        step = max(saved_steps(saves))
        metadata = ocp.checkpointables_metadata((saves / str(step)).absolute()).metadata
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), metadata)
        for place, leaf in jax.tree_util.tree_leaves_with_path(checkpoint.read(saves, step, shapes)):
            name = f"{saves.parent.relative_to(home)}{jax.tree_util.keystr(place)}"
            found[name] = hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()
    return found


def kept(home: Path) -> dict[str, Any]:
    """Return what every run leaves beside its record: arrays, configuration and tokenizer to the bit."""
    files = {name: digests(home, f"**/{name}") for name in ("config.json", "tokenizer.model")}
    return {"rows": rows(home), "arrays": arrays(home), "files": names(home)} | files


def trained(home: Path) -> dict[str, Any]:
    """Return what trainings leave: rows, arrays and reference tables to the bit, and which files."""
    return kept(home) | {"reference": digests(home / "cache" / "references", "*.npy")}


def prepared(home: Path) -> dict[str, Any]:
    """Return prepared data to the byte; the list of known files' hashes beside it tells of times, and is left out."""
    return {"data": digests(home / "cache", "*/**/*"), "files": names(home)}


def swept(home: Path) -> dict[str, Any]:
    """Return a sweep's tables to the byte, and what its trials leave."""
    return kept(home) | {"tables": digests(home / "sweeps", "*/table.*")}


def analysed(home: Path) -> dict[str, Any]:
    """Return the results of probes, but for their seconds."""
    results = {}
    for path in sorted((home / "run" / "analysis").glob("*/*.json")):
        result = json.loads(path.read_text())
        result.pop("seconds")
        results[str(path.relative_to(home))] = result
    return {"results": results, "files": names(home)}


def copy_base(inputs: Path, home: Path) -> None:
    """Bring the run that is analysed."""
    shutil.copytree(inputs / "base", home / "run")


EVERY = 5
"""Steps between checkpoints of the runs that a job trains."""
EXPERIMENTS = "INPUTS/soak_experiments.py"
JOBS = (
    Job("train", ("train", f"{EXPERIMENTS}:dense", "--run-dir", "run"), trained, run="run"),
    Job("prepare", ("data", "prepare", f"{EXPERIMENTS}:text"), prepared),
    Job(
        "DPO", ("train", f"{EXPERIMENTS}:preferences", "--run-dir", "run", "--init-from", "INPUTS/base"), trained, run="run",
        based=True,
    ),
    Job("train, experts", ("train", f"{EXPERIMENTS}:mixture", "--run-dir", "run"), trained, run="run"),
    Job(
        "sweep", ("sweep", f"{EXPERIMENTS}:sweep", "--runs", "sweeps", "--max-parallel", "2"), swept,
        terminated=frozenset({0, 1, 130, TERM}),
    ),
    Job(
        "analyze", ("analyze", "run", "--probes", "loss", "weights", "attention", "--rows", "4"), analysed, begin=copy_base,
        based=True,
    ),
    Job("prepare, pairs", ("data", "prepare", f"{EXPERIMENTS}:pairs", "--workers", "2"), prepared),
    Job(
        "two processes", ("launch", f"{EXPERIMENTS}:pair", "--run-dir", "run", "--processes", "2", "--devices", "1"), trained,
        terminated=frozenset({0, 2, TERM}), run="run",
    ),
)  # fmt: skip


def write_inputs(folder: Path) -> None:
    """Write what the jobs read: texts, pairs, and their experiments."""
    folder.mkdir(parents=True)
    shutil.copy(Path(__file__).parent / "soak_experiments.py", folder)
    (folder / "text").mkdir()
    for k in range(8):
        (folder / "text" / f"{k}.txt").write_text(" ".join(f"{n * k % 97} bottles of {n % 7}" for n in range(400)))
    (folder / "books").mkdir()
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:80]  # real text, and the same at every start
    for k in range(8):
        (folder / "books" / f"{k}.txt").write_bytes(b"".join(path.read_bytes()[:16384] for path in sources[k::8]))

    def write_pairs(path: Path, count: int, words: int) -> None:
        with path.open("w") as out:
            for n in range(count):
                a, b = n % 97, n // 97
                why = " ".join(f"{a}+{k}={a + k}" for k in range(words))
                out.write(json.dumps({"prompt": f"{a}+{b}=", "chosen": f"{a + b} {why}", "rejected": f"{a + b + 7}"}) + "\n")

    write_pairs(folder / "sums.jsonl", 400, 0)
    for k in range(2):
        write_pairs(folder / f"answers-{k}.jsonl", 20_000, 10)


def readable(home: Path) -> None:
    """Raise Broken where a file that has its final name cannot be read as what it is, by our own readers."""
    for path in home.rglob("*.json"):
        if path.is_file() and "tmp" not in str(path.relative_to(home)) and path.name != INDEX:  # of its own form
            try:
                json.loads(path.read_text())
            except ValueError as fault:
                raise Broken(f"{path} is no JSON: {fault}") from fault
    for saves in home.rglob("checkpoints"):
        found = standing(saves.parent)
        if found.kind in ("broken", "foreign"):
            raise Broken(f"{saves.parent} is {found.kind}: {found.why}")
        read_rows(saves.parent / "metrics.jsonl")
        for step in saved_steps(saves):
            if wrong := checksums.damage(saves / str(step)):
                raise Broken(f"checkpoint {saves / str(step)}: {wrong}")
            checkpoint.description(saves, step)
        if (saves.parent / "damaged").exists():
            raise Broken(f"{saves.parent / 'damaged'}: a checkpoint was set aside")


@dataclass(frozen=True)
class Reached:
    """How far a run has come."""

    row: int
    """The newest training row's step and one; 0 without any."""
    saved: int
    """The newest checkpoint's step; 0 without any."""

    @classmethod
    def look(cls, run: Path) -> "Reached":
        """Read it from a run's folder."""
        steps = [row["step"] + 1 for row in read_rows(run / "metrics.jsonl") if row["split"] == "train"]
        return cls(max(steps, default=0), max(saved_steps(run / "checkpoints"), default=0))


def differences(expected: dict[str, Any], found: dict[str, Any], path: str = "") -> list[str]:
    """Return where two outcomes differ, in words: the first few places."""
    if isinstance(expected, dict) and isinstance(found, dict):
        places = [
            place
            for name in sorted(expected.keys() | found.keys())
            for place in differences(expected.get(name), found.get(name), f"{path}/{name}")
        ]
        return places[:8]
    if isinstance(expected, list) and isinstance(found, list) and all(isinstance(each, str) for each in expected + found):
        more, less = sorted(set(found) - set(expected)), sorted(set(expected) - set(found))
        return [f"{path}: more {more[:8]}, less {less[:8]}"] if more or less else []
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        places = [
            place for k, pair in enumerate(zip(expected, found, strict=True)) for place in differences(*pair, f"{path}/{k}")
        ]
        return places[:8]
    if isinstance(expected, list) and isinstance(found, list):
        return [f"{path}: {len(found)} entries, {len(expected)} in peace"]
    return [] if expected == found else [f"{path}: {str(found)[:200]}, in peace {str(expected)[:200]}"]


def written(home: Path) -> set[str]:
    """Return the names of all files and folders, whatever becomes of them meanwhile."""
    found, waiting = set(), [str(home)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    found.add(entry.path)
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except OSError:  # it was moved or removed
            continue
    return found
