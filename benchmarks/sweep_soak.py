"""Whether a sweep that is killed at random ends with the same table: 12 runs, SIGKILL to all of its processes, twice.

    python benchmarks/sweep_soak.py                     # 4 arms of 3 seeds, two at a time
    python benchmarks/sweep_soak.py --kills 5 --seed 7

One sweep is left in peace. Another, in a folder of its own, is started again and again, and the sweep with the trials that it
is training then gets SIGKILL, all within a moment, at a random point of what is still to be done; the last start is left in
peace. Then table.json, table.md and table.csv of both are compared byte for byte, and so is every validation loss. Models are
tiny: the time goes into starting processes.

Exit status 1 where anything differs, or where a kill found no trial running, which would prove nothing.
"""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro

SWEEP = '''
"""Four widths, three seeds."""
from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.experiment import CheckpointConfig, EvaluationConfig, Experiment, LogConfig, SampleConfig
from jaxlm.model.config import ModelConfig
from jaxlm.sweep.combine import grid, trials
from jaxlm.train.optimizer import OptimizerConfig


def sweep():
    base = Experiment(
        name="soak",
        steps=STEPS,
        batch_size=8,
        model=ModelConfig(vocab_size=259, num_layers=2, hidden_size=32, num_heads=4, intermediate_size=64, max_length=64),
        data=DataConfig(
            sources=("text:TEXT/*.txt",), validation_fraction=0.3, sequence_length=32,
            tokenizer=TokenizerConfig(kind="byte", vocab_size=259),
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=3),
        evaluation=EvaluationConfig(every=10, batches=2),
        checkpoint=CheckpointConfig(every=10),
        sample=SampleConfig(tokens=0),
        log=LogConfig(tensorboard=False),
    )
    return trials(base, grid({"model.intermediate_size": (32, 64, 96, 128)}), seeds=3)
'''


@dataclasses.dataclass(frozen=True)
class Arguments:
    """How it is killed."""

    kills: int = 2
    """Times."""
    parallel: int = 2
    """Trials at a time."""
    steps: int = 60
    """Of each trial."""
    seed: int = -1
    """Of the moments; -1 draws one."""


def start(file: Path, runs: Path, parallel: int) -> subprocess.Popen:
    """Start the sweep in a session of its own."""
    command = [sys.executable, "-m", "jaxlm", "sweep", str(file), "--runs", str(runs), "--max-parallel", str(parallel)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, start_new_session=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip


def steps_taken(runs: Path) -> int:
    """Return how many rows all trials' records have."""
    return sum(path.read_bytes().count(b"\n") for path in runs.glob("trials/*/metrics.jsonl"))


def kill_all(sweep: subprocess.Popen) -> int:
    """Send SIGKILL to the sweep and the trials that it has started; return how many there were."""
    parents = {}
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            parents[int(entry)] = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    started = [pid for pid, parent in parents.items() if parent == sweep.pid]
    for pid in (sweep.pid, *started):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    sweep.wait()
    return len(started)


def losses(runs: Path) -> dict[str, list[tuple[int, float]]]:
    """Return every validation of every run."""
    from jaxlm.run.metrics import read_rows

    found = {}
    for path in sorted(runs.glob("trials/*/metrics.jsonl")):
        found[path.parent.name] = [(row["step"], row["loss"]) for row in read_rows(path) if row["split"] == "validation"]
    return found


def disturbed(file: Path, runs: Path, arguments: Arguments, rng: random.Random, rows: int) -> tuple[float, int]:
    """Run the sweep to its end with the kills on the way.

    Returns the seconds of the last start, and how many kills found trials running.
    """
    hit = 0
    for kill in range(arguments.kills):
        done = steps_taken(runs)
        sweep, target = start(file, runs, arguments.parallel), done + rng.uniform(0.02, 0.6) * (rows - done)
        while sweep.poll() is None and steps_taken(runs) < target:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 3))  # between trials, too, and while processes start
        running = kill_all(sweep)
        hit += running > 0
        print(f"kill {kill + 1}: after {steps_taken(runs)} of {rows} rows, with {running} trials running", flush=True)
    began = time.monotonic()
    if status := start(file, runs, arguments.parallel).wait():
        raise SystemExit(f"the last start of the killed sweep ended with exit status {status}")
    return time.monotonic() - began, hit


def main(arguments: Arguments) -> int:
    """Run both sweeps and compare them."""
    seed = arguments.seed if arguments.seed >= 0 else time.time_ns() % 10_000
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        (folder / "text").mkdir()
        for k in range(8):
            (folder / "text" / f"{k}.txt").write_text(" ".join(f"{n * k % 97} bottles of {n % 7}" for n in range(400)))
        file = folder / "soak.py"
        file.write_text(SWEEP.replace("STEPS", str(arguments.steps)).replace("TEXT", str(folder / "text")))
        began = time.monotonic()
        if status := start(file, folder / "whole", arguments.parallel).wait():
            raise SystemExit(f"the sweep that was left in peace ended with exit status {status}")
        whole = time.monotonic() - began
        print(f"in peace: {whole:.0f} s", flush=True)
        last, hit = disturbed(file, folder / "killed", arguments, random.Random(seed), steps_taken(folder / "whole"))
        print(f"killed {arguments.kills} times: {time.monotonic() - began - whole:.0f} s, the last start {last:.0f} s of them")
        names = [f"table.{form}" for form in ("json", "md", "csv")]
        tables = [[(folder / kind / "soak" / name).read_bytes() for name in names] for kind in ("whole", "killed")]
        curves = losses(folder / "whole"), losses(folder / "killed")
        same = tables[0] == tables[1] and curves[0] == curves[1] and len(curves[0]) == 12
        print(tables[0][1].decode())
        print(f"{len(curves[0])} runs, {sum(map(len, curves[0].values()))} validations: {'the same' if same else 'DIFFERENT'}")
        if hit < arguments.kills:
            print(f"{arguments.kills - hit} of {arguments.kills} kills found no trial running: take more --steps")
        return 0 if same and hit == arguments.kills else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, description=__doc__)))
