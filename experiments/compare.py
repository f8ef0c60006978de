"""Run every arm of a comparison with several seeds, and print what differs, with intervals.

    python experiments/compare.py experiments/switch_vs_dense.py --seeds 3

The file given defines arms(): a dict of names and experiments, the control first. A run lives in RUNS/DIGEST-SEED, after the
digest of its configuration: a finished one is not repeated, an interrupted one continues, and comparisons share what is alike.
The table goes to the screen, it and the curves to RUNS/FILE.md and RUNS/FILE.png.

With --time N nothing is trained: N steps of every arm are taken in turn, in one process, and their times printed. (The step
times of the table are of runs one after the other, and say less.)

An arm is compared with the control seed by seed (the same batches and order); intervals are Student's t over seeds, 95 %.
"""

import argparse
import dataclasses
import importlib.util
import itertools
import math
import statistics
import sys
import time
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

from jaxlm.config import digest
from jaxlm.data.prepare import prepare
from jaxlm.errors import JaxlmError
from jaxlm.experiment import Experiment
from jaxlm.layout import make_mesh
from jaxlm.run.display import quiet_libraries
from jaxlm.run.initial import begin
from jaxlm.run.loop import train
from jaxlm.run.memory import keep_freed_memory
from jaxlm.run.metrics import read_rows
from jaxlm.run.programs import compile_step
from jaxlm.run.setup import set_up


def time_arms(arms: dict[str, Experiment], steps: int) -> list[list[str]]:
    """Return the lines of a table: milliseconds of a step of every arm, from steps taken in turn, and the control's over it."""
    mesh = make_mesh({}, jax.devices()[:1])
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    with jax.set_mesh(mesh):
        running = {}
        for arm, experiment in arms.items():
            setup = set_up(experiment, prepare(experiment.data), mesh)
            state = begin(experiment, setup.model, setup.spec, setup.optimizer, mesh)
            inputs = setup.place(setup.batches("train").at(0)[0]), None, None
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
    """Return where a run lives: by everything that decides its result, but not its name."""
    same = dataclasses.replace(experiment, name="", seed=0)
    return runs / f"{digest(same)}-{experiment.seed}"


def run_arms(arms: dict[str, Experiment], seeds: int, runs: Path) -> dict[str, list[list[dict]]]:
    """Return the metrics rows of every arm and seed; seed by seed, so that an early stop leaves whole comparisons."""
    rows: dict[str, list[list[dict]]] = {arm: [] for arm in arms}
    for seed in range(seeds):
        for arm, experiment in arms.items():
            experiment = dataclasses.replace(experiment, seed=seed, name=f"{experiment.name}: {arm}")
            folder = run_folder(runs, experiment)
            found = read_rows(folder / "metrics.jsonl")
            if not any(r["split"] == "validation" and r["step"] == experiment.steps for r in found):
                found = train(experiment, folder)
            rows[arm].append(found)
    return rows


def interval(values: list[float]) -> str:
    """Return mean and the half-width of its 95 % interval (Student's t)."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.4f}"
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.4f} ± {half:.4f}"


def steps_to(rows: list[dict], loss: float) -> float | None:
    """Return the step at which validation loss first comes down to `loss`, between two evaluations by a straight line."""
    curve = [(r["step"], r["loss"]) for r in rows if r["split"] == "validation"]
    for (before, high), (after, low) in itertools.pairwise(curve):
        if low <= loss:
            return before + (after - before) * (high - loss) / max(high - low, 1e-12)
    return None


def last(rows: list[dict], name: str, split: str = "validation") -> float:
    """Return a metric's last value; the mean over mixture layers where it has one for each."""
    found = [r[name] for r in rows if r["split"] == split and r.get(name) is not None]
    return float(np.mean(found[-1])) if found else math.nan


def over_run(rows: list[dict], name: str) -> float:
    """Return the mean of a metric over training steps and mixture layers."""
    found = [np.mean(r[name]) for r in rows if r["split"] == "train" and r.get(name) is not None]
    return float(np.mean(found)) if found else math.nan


def tabulate(rows: dict[str, list[list[dict]]]) -> list[list[str]]:
    """Return the table's lines, the heading first."""
    control = next(iter(rows))
    reference = [last(run, "loss") for run in rows[control]]
    heading = ["arm", "validation loss", f"minus {control}", f"steps to {control}'s loss: speed-up", "dropped %", "load CV",
               "load max", "dead", "entropy", "step ms"]  # fmt: skip
    lines = [heading]
    for arm, seeds in rows.items():
        losses = [last(run, "loss") for run in seeds]
        reached = [steps_to(run, loss) for run, loss in zip(seeds, reference, strict=True)]
        speed_up = "-"
        if all(reached) and arm != control:
            speed_up = interval([run[-1]["step"] / step for run, step in zip(seeds, reached, strict=True)])
        step_ms = statistics.median(1000 * r["step_seconds"] for run in seeds for r in run if r["split"] == "train")
        routers = [
            interval([over_run(run, name) * scale for run in seeds]) if seeds[0][0].get(name) is not None else "-"
            for name, scale in (("router_dropped", 100), ("router_load_cv", 1), ("router_load_max", 1))
        ]
        ends = [f"{statistics.mean(last(run, name, 'train') for run in seeds):.2f}" if routers[0] != "-" else "-"
                for name in ("router_dead", "router_entropy")]  # fmt: skip
        against = interval([a - b for a, b in zip(losses, reference, strict=True)]) if arm != control else "-"
        lines.append([arm, interval(losses), against, speed_up, *routers, *ends, f"{step_ms:.0f}"])
    return lines


def draw(rows: dict[str, list[list[dict]]], path: Path, title: str) -> None:
    """Draw validation loss and, of routers, load variation and drops against the step; one line a seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = (("validation", "loss", "validation loss"), ("train", "router_load_cv", "load CV"),
              ("train", "router_dropped", "fraction dropped"))  # fmt: skip
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    for color, (arm, seeds) in enumerate(rows.items()):
        for index, run in enumerate(seeds):
            for ax, (split, name, label) in zip(axes, panels, strict=True):
                points = [(r["step"], np.mean(r[name])) for r in run if r["split"] == split and r.get(name) is not None]
                points = points if split == "validation" else points[:: max(1, len(points) // 60)]
                if points:
                    ax.plot(*zip(*points, strict=True), color=f"C{color}", lw=1, alpha=0.7, label=arm if not index else None)
                ax.set(title=label, xlabel="step")
                ax.grid(alpha=0.25)
    axes[0].legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> int:
    """Run the comparison named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/comparisons"))
    parser.add_argument("--time", type=int, default=0, metavar="N", help="take N steps of every arm in turn, and train nothing")
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 1)
    quiet_libraries()
    keep_freed_memory()
    sys.path.insert(0, str(arguments.file.parent.absolute()))
    spec = importlib.util.spec_from_file_location(arguments.file.stem, arguments.file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        if arguments.time:
            show(time_arms(module.arms(), arguments.time), f"{arguments.file.stem}: {arguments.time} steps of each arm in turn")
            return 0
        rows = run_arms(module.arms(), arguments.seeds, arguments.runs)
    except JaxlmError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return 2
    lines = tabulate(rows)
    show(lines, f"{arguments.file.stem}, {arguments.seeds} seeds")
    text = ["| " + " | ".join(line) + " |" for line in lines]
    text.insert(1, "|---|" + "---:|" * (len(lines[0]) - 1))
    (arguments.runs / f"{arguments.file.stem}.md").write_text("\n".join(text) + "\n")
    draw(rows, arguments.runs / f"{arguments.file.stem}.png", arguments.file.stem)
    return 0


def show(lines: list[list[str]], title: str) -> None:
    """Print a table whose first line is its heading."""
    table = Table(title=title)
    for name in lines[0]:
        table.add_column(name, justify="left" if name == "arm" else "right")
    for line in lines[1:]:
        table.add_row(*line)
    Console(width=200).print(table)


if __name__ == "__main__":
    sys.exit(main())
