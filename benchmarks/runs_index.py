"""Seconds that `jaxlm runs` takes at 10 to 10,000 runs: reading all of them, and again when nothing has changed.

    python benchmarks/runs_index.py --counts 10 100 1000 2000 10000

Makes folders of runs as training leaves them, but for arrays: config.json of one of 24 experiments, each run of another seed
or learning rate, 200 rows of metrics, run.json, a checkpoint's folder. Every time is of the whole command within one process
(arguments to the last line of the table, all runs shown; unchanged: the median of five), "process" of a new one. The exponent
is the slope of log seconds over log runs from 100 runs on. Exit status 1 where the table takes longer at 2,000 runs than
bars.json allows.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import math
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import record
from scaling_fit import fit

from jaxlm.cli import main as jaxlm
from jaxlm.config import digest, to_dict
from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.experiment import Experiment
from jaxlm.model.config import ModelConfig
from jaxlm.model.moe_config import MoeConfig
from jaxlm.run.goodput import KINDS, row_of
from jaxlm.sweep.index import INDEX
from jaxlm.train.optimizer import OptimizerConfig

BARRED = 2000  # runs; bars.json says of how many seconds
ROWS = 200


def experiments() -> list[Experiment]:
    """Return 24 experiments: six sizes, each dense and with 4, 8 and 16 experts."""
    made = []
    for layers, width in ((2, 64), (4, 64), (4, 128), (6, 128), (6, 256), (8, 256)):
        for experts in (0, 4, 8, 16):
            model = ModelConfig(
                vocab_size=259, num_layers=layers, hidden_size=width, num_heads=4, intermediate_size=4 * width, max_length=128,
                **({"moe": MoeConfig(num_experts=experts)} if experts else {}),
            )  # fmt: skip
            data = DataConfig(sequence_length=128, tokenizer=TokenizerConfig(kind="byte", vocab_size=259))
            made.append(Experiment(name=f"{layers}x{width}-{experts}", steps=ROWS, batch_size=8, model=model, data=data))
    return made


def rows(seed: int) -> str:
    """Return a record of 200 training rows with a validation every 50 and what the time was spent on."""
    lines = []
    for step in range(ROWS):
        loss = 3 + 2 * math.exp(-step / 60) + 0.01 * math.sin(seed + step)
        lines.append({
            "step": step, "split": "train", "accuracy": 0.3, "gradient_norm": 0.51, "learning_rate": 1e-3, "loss": loss,
            "skipped": 0.0, "skipped_in_a_row": 0.0, "skipped_total": 0.0, "tokens": 1018.0, "update_ratio": 4.3e-4, "z": 164.8,
            "real_tokens": 1024, "batch_hash": f"{seed:08x}{step:08x}", "bits_per_byte": loss / math.log(2),
            "perplexity": math.exp(loss), "tokens_per_second": 4298.2, "step_seconds": 0.238, "data_wait_seconds": 9.3e-05,
        })  # fmt: skip
        if (step + 1) % 50 == 0:
            values = {"loss": loss, "perplexity": math.exp(loss), "bits_per_byte": loss / math.log(2), "accuracy": 0.3}
            lines.append({"step": step + 1, "split": "validation", **values, "tokens": 65530.0})
            spent = dict.fromkeys(KINDS, 0.5) | {"stepping": 0.2 * step}
            lines.append({"step": step + 1, "split": "goodput", **row_of(spent, 0, [])})
    return "".join(json.dumps(line) + "\n" for line in lines)


def make_runs(folder: Path, count: int) -> None:
    """Make folders of runs until there are so many: nine of ten finished, the others stopped."""
    arms = experiments()
    for number in range(sum(1 for _ in folder.glob("*/*")), count):
        experiment = dataclasses.replace(
            arms[number % 24], seed=number // 24, optimizer=OptimizerConfig(learning_rate=1e-3 * (1 + number % 3))
        )
        run = folder / experiment.name / f"{number:05d}"
        (run / "checkpoints" / str(ROWS if number % 10 else ROWS // 2)).mkdir(parents=True)
        (run / "config.json").write_text(json.dumps(to_dict(experiment), indent=2) + "\n")
        start = {"time": "2026-01-01T00:00:00+00:00", "config_digest": digest(experiment), "git_commit": "0" * 40}
        (run / "run.json").write_text(json.dumps({"starts": [start | {"devices": "1 x cpu"}]}, indent=2) + "\n")
        (run / "metrics.jsonl").write_text(rows(number))
        (run / "lock").touch()


def listed(folder: Path, count: int) -> tuple[float, float]:
    """Return the seconds of `jaxlm runs` in this process, all `count` runs shown, and those a processor worked on it."""
    began, worked = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()) as said:
        status = jaxlm(["runs", str(folder), "--limit", "0"])
    seconds = time.perf_counter() - began, time.process_time() - worked
    check(said.getvalue(), count)
    assert status == 0
    return seconds


def check(said: str, count: int) -> None:
    """Raise SystemExit where the table has not a line for each run: what is not read takes no time."""
    shown = {line.split()[0] for line in said.splitlines() if re.match(r"\S+/\d{5} ", line)}
    if len(shown) != count:
        raise SystemExit(f"the table shows {len(shown):,} of {count:,} runs")


def medians(seconds: dict[int, list[float]]) -> dict[int, float]:
    """Return the median of what was measured at each count."""
    return {count: statistics.median(values) for count, values in seconds.items()}


def slope(seconds: dict[int, float]) -> float:
    """Return the exponent of seconds over runs by least squares, from 100 runs on."""
    seconds = {count: value for count, value in seconds.items() if count >= 100}
    return fit([*seconds], [*seconds.values()]).exponent if len(seconds) > 1 else math.nan


def main() -> int:
    """Print a line for every count, and the exponents."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="OUT", help="write everything measured here")
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 100, 1000, 2000, 10000])
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="runs-"))
    cold: dict[int, list[float]] = {}
    warm: dict[int, list[float]] = {}
    try:
        print(f"{'runs':>6} {'all read s':>11} {'unchanged s':>12} {'processor s':>12} {'ms a run':>9} {'process s':>10}")
        for count in sorted(arguments.counts):
            make_runs(folder, count)
            if not cold:
                listed(folder, count)  # the first reading in a process imports JAX
            (folder / INDEX).unlink(missing_ok=True)
            cold[count] = [listed(folder, count)[0]]
            again = [listed(folder, count) for _ in range(5)]
            warm[count], worked = [seconds for seconds, _ in again], statistics.median(each for _, each in again)
            command, began = [sys.executable, "-m", "jaxlm", "runs", str(folder), "--limit", "0"], time.perf_counter()
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            whole, each = time.perf_counter() - began, 1000 * medians(warm)[count] / count
            check(said, count)
            first, then = medians(cold)[count], medians(warm)[count]
            print(f"{count:>6,} {first:>11.2f} {then:>12.3f} {worked:>12.3f} {each:>9.3f} {whole:>10.2f}", flush=True)
        exponents = {"cold": slope(medians(cold)), "warm": slope(medians(warm))}
        print(f"exponent: {exponents['cold']:.2f} all read, {exponents['warm']:.2f} unchanged")
    finally:
        shutil.rmtree(folder)
    results = [
        record.measured(f"{count:,} runs, {what}", seconds[count], "s", "lower")
        for count in cold
        for what, seconds in (("all read", cold), ("unchanged", warm))
    ]
    return record.finish("runs", results, arguments.json, judged=BARRED in cold, exponents=exponents)


if __name__ == "__main__":
    sys.exit(main())
