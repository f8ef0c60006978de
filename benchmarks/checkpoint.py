"""What a checkpoint costs the steps of a run: the wait for a save to begin, and steps that are slower while it is written.

    python benchmarks/checkpoint.py --json out.json

Trains models with about 50 and 300 MB of parameters (each checkpoint holds three times that: AdamW keeps two moments) and
reads the run's own record. The loop waits at a save (`saving` of its goodput rows) until the state is copied and its writing
has begun; the rest is written beside the steps, and slows them on a processor that computes as well. Disturbance is by how much
the steps between a save and the next take longer than the median of the steps before the first save. Stall is both, in seconds
and in steps; the first save is left out, for it also sets up what all use.
"""

import dataclasses
import itertools
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

import record
import tyro
from rich.console import Console
from rich.table import Table
from timed import jaxlm

from jaxlm.config import to_dict
from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.experiment import CheckpointConfig, EvaluationConfig, Experiment, LogConfig
from jaxlm.layout import MeshConfig
from jaxlm.model.config import ModelConfig
from jaxlm.model.transformer import spec
from jaxlm.param import count
from jaxlm.train.optimizer import OptimizerConfig

SHAPES = {"50 MB": (3, 512), "300 MB": (4, 1024)}  # layers, width


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to train, and how often to save."""

    sizes: tuple[Literal[tuple(SHAPES)], ...] = tuple(SHAPES)
    every: int = 15
    """Steps from a save to the next."""
    saves: int = 3
    """That are measured, after a first one."""
    json: Path | None = None
    """Write everything measured here."""


def experiment(size: str, arguments: Arguments) -> Experiment:
    """Return a run of few tokens a step: a step that is short beside its state makes saves look as dear as they get."""
    layers, width = SHAPES[size]
    return Experiment(
        name="checkpoints", steps=arguments.every * (arguments.saves + 2), batch_size=1,
        model=ModelConfig(
            vocab_size=259, num_layers=layers, hidden_size=width, num_heads=width // 64, intermediate_size=4 * width,
            max_length=128,
        ),
        data=DataConfig(sources=("stdlib",), sequence_length=128, tokenizer=TokenizerConfig(kind="byte", vocab_size=259)),
        optimizer=OptimizerConfig(learning_rate=1e-4), mesh=MeshConfig(cpu_devices=1),
        checkpoint=CheckpointConfig(every=arguments.every, keep=1), evaluation=EvaluationConfig(every=0),
        log=LogConfig(tensorboard=False),
    )  # fmt: skip


def rows_of(run: Experiment, folder: Path) -> list[dict[str, Any]]:
    """Train, and return the record."""
    file = folder / "experiment.json"
    file.write_text(json.dumps(to_dict(run)))
    jaxlm("train", file, "--run-dir", folder / "run")
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def costs(rows: list[dict[str, Any]], every: int) -> dict[str, list[float]]:
    """Return, for each save but the first and the last: seconds of waiting, of disturbance, and both over a step.

    The last save is of the run's end, and no step comes after it.
    """
    step_seconds = {row["step"]: row["step_seconds"] for row in rows if row["split"] == "train"}
    # A goodput row is written right behind a save; the loop's waiting is summed there over the start so far.
    waited = {row["step"]: row["seconds"]["saving"] for row in rows if row["split"] == "goodput"}
    saved = sorted(step for step in waited if step % every == 0)
    calm = statistics.median(seconds for step, seconds in step_seconds.items() if 2 <= step < every)
    found: dict[str, list[float]] = {"waiting": [], "disturbance": [], "stall": [], "step": []}
    for before, step in itertools.pairwise(saved[:-1]):
        found["waiting"].append(waited[step] - waited[before])
        found["disturbance"].append(sum(step_seconds[each] - calm for each in range(step, step + every)))
        found["stall"].append((found["waiting"][-1] + max(0.0, found["disturbance"][-1])) / calm)
        found["step"].append(calm)
    return found


def main(arguments: Arguments) -> int:
    """Measure each size, and return 1 where a bar is missed."""
    results, details = [], {}
    table = Table("parameters", "step, s", "waiting, s", "disturbance, s", "stall, steps", box=None)
    for size in arguments.sizes:
        run = experiment(size, arguments)
        with tempfile.TemporaryDirectory() as folder:
            found = costs(rows_of(run, Path(folder)), arguments.every)
        details[size] = found | {"parameters": count(spec(run.model))}
        results.append(record.compared(f"{size}: waiting / step", found["waiting"], found["step"], "s", "lower"))
        results.append(record.measured(f"{size}: stall of a save", found["stall"], "steps", "lower"))
        cells = (f"{statistics.median(found[name]):.2f}" for name in ("step", "waiting", "disturbance", "stall"))
        table.add_row(f"{details[size]['parameters'] * 4 / 1e6:.0f} MB", *cells)
    Console().print(table)
    standard = arguments.sizes == tuple(SHAPES) and arguments.every == Arguments.every
    return record.finish("checkpoint", results, arguments.json, judged=standard, saves=details)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, description=__doc__)))
