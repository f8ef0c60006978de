"""What a step of every arm of a sweep takes, from steps taken in turn; and the tables and run folders of other experiments.

    python experiments/compare.py experiments/switch_vs_dense.py --time 40

The file defines sweep(); of every arm the first seed is taken, and nothing is trained. Step times of runs that were made one
after the other say less: a machine's speed drifts. What arms have learnt is compared by `jaxlm sweep` and `jaxlm report`.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import jax
from rich.console import Console
from rich.table import Table
from scipy import stats

from jaxlm.commands.start import start_jax
from jaxlm.data.prepare import prepare
from jaxlm.errors import JaxlmError
from jaxlm.experiment import Experiment
from jaxlm.layout import make_mesh
from jaxlm.run.initial import begin
from jaxlm.run.programs import compile_step
from jaxlm.run.setup import set_up
from jaxlm.sweep.read import load_sweep
from jaxlm.sweep.trials import digest


def time_arms(arms: dict[str, Experiment], steps: int) -> list[list[str]]:
    """Return the lines of a table: milliseconds of a step of every arm, from steps taken in turn, and the control's over it."""
    mesh = make_mesh({}, jax.devices()[:1])
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    with jax.set_mesh(mesh):
        running = {}
        for arm, experiment in arms.items():
            setup = set_up(experiment, prepare(experiment.data), mesh)
            digest = setup.prepared.tokenizer.digest
            state = begin(experiment, setup.model, setup.spec, setup.optimizer, mesh, digest)
            inputs = setup.inputs(0, *setup.reader("train")(0), stop=False)
            running[arm] = [compile_step(setup, state, inputs), state, inputs]
        for turn in range(steps + 3):
            for arm, (program, state, inputs) in running.items():
                start = time.perf_counter()
                running[arm][1], _ = jax.block_until_ready(program(state, inputs))
                if turn >= 3:
                    times[arm].append(time.perf_counter() - start)
    control = times[next(iter(arms))]
    lines = [["arm", "step ms", "least", f"{next(iter(arms))} over it"]]
    for arm, taken in times.items():
        ratio = statistics.median(c / t for c, t in zip(control, taken, strict=True))
        lines.append([arm, f"{1000 * statistics.median(taken):.1f}", f"{1000 * min(taken):.1f}", f"{ratio:.2f}"])
    return lines


def run_folder(runs: Path, experiment: Experiment) -> Path:
    """Return where a run lives: by everything that decides its result, code and data included, but not its name."""
    return runs / digest(experiment)


def interval(values: list[float]) -> str:
    """Return mean and the half-width of its 95 % interval (Student's t)."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.4f}"
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.4f} ± {half:.4f}"


def main() -> int:
    """Time the arms of the sweep named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--time", type=int, default=40, metavar="N", help="steps of every arm, taken in turn")
    arguments = parser.parse_args()
    start_jax(1)
    arms: dict[str, Experiment] = {}
    for trial in load_sweep(arguments.file).trials:
        arms.setdefault(trial.arm, trial.experiment)
    lines = time_arms(arms, arguments.time)
    show(lines, f"{arguments.file.stem}: {arguments.time} steps of each arm in turn")
    return 0


def command(main: Callable[[], int]) -> NoReturn:
    """Run a script's main and end with its status; an error of jaxlm's is a line and status 2, not a trace."""
    try:
        sys.exit(main())
    except JaxlmError as fault:
        print(f"error: {fault}", file=sys.stderr)
        sys.exit(2)


def show(lines: list[list[str]], title: str) -> None:
    """Print a table whose first line is its heading."""
    table = Table(title=title)
    for name in lines[0]:
        table.add_column(name, justify="left" if name == "arm" else "right")
    for line in lines[1:]:
        table.add_row(*line)
    Console(width=200).print(table)


if __name__ == "__main__":
    command(main)
