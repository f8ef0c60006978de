"""Measure what the data pipeline delivers against what a training step consumes, in turn in one process.

    python benchmarks/data.py experiments/quickstart.py

Prints tokens a second of reading alone (shuffled batches with their content hashes, one thread) and of training alone (the
experiment's own compiled step), round by round, and their ratio.
"""

import sys
import time
from pathlib import Path

import jax
import record
import tyro
from rich.console import Console
from rich.table import Table

from jaxlm.data.prepare import prepare
from jaxlm.experiment_file import load_experiment
from jaxlm.experiment_mesh import check_devices
from jaxlm.layout import make_mesh
from jaxlm.run.programs import compile_step
from jaxlm.run.setup import set_up
from jaxlm.train.step import init_state


def main(file: tyro.conf.Positional[Path], /, rounds: int = 5, seconds: float = 3.0, json: Path | None = None) -> int:
    """Compare reading with training.

    Args:
        file: The experiment.
        rounds: How often each takes its turn.
        seconds: Length of a turn.
        json: Write everything measured here.
    """
    experiment = load_experiment(file)
    jax.config.update("jax_num_cpu_devices", experiment.mesh.cpu_devices)
    mesh = make_mesh(check_devices(experiment, jax.device_count()))
    prepared = prepare(experiment.data)
    tokens = experiment.batch_size * experiment.data.sequence_length
    with jax.set_mesh(mesh):
        setup = set_up(experiment, prepared, mesh)
        state = jax.jit(lambda: init_state(setup.spec, setup.optimizer, experiment.layout, experiment.seed))()
        batches, next_batch = setup.batches("train"), 0
        placed = setup.inputs(0, *setup.reader("train")(0), stop=False)
        step = compile_step(setup, state, placed)
        speeds: list[tuple[float, float]] = []
        for _ in range(rounds):
            began, read = time.monotonic(), 0
            while time.monotonic() - began < seconds:
                batches.at(next_batch)
                next_batch, read = next_batch + 1, read + tokens
            delivered = read / (time.monotonic() - began)
            began, trained = time.monotonic(), 0
            while time.monotonic() - began < seconds:
                state, metrics = step(state, placed)
                jax.block_until_ready(metrics)
                trained += tokens
            speeds.append((delivered, trained / (time.monotonic() - began)))
    table = Table(title=f"{experiment.name}: {jax.devices()[0].device_kind}, batches of {experiment.batch_size} rows", box=None)
    for column in ("round", "delivered, tokens/s", "consumed, tokens/s", "ratio"):
        table.add_column(column, justify="right")
    for number, (delivered, consumed) in enumerate(speeds, 1):
        table.add_row(str(number), f"{delivered:,.0f}", f"{consumed:,.0f}", f"{delivered / consumed:.0f}")
    delivered, consumed = map(list, zip(*speeds, strict=True))
    result = record.compared("delivered / consumed", delivered, consumed, "tokens/s", "higher")
    table.add_row("median", "", "", f"{result['ratio']:.0f}")
    Console().print(table)
    return record.finish("data", [result], json, judged=file.stem == "quickstart", experiment=experiment.name)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
