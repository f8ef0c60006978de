"""Measure what analysing a run takes: every probe at 20 checkpoints of the quickstart model.

    python benchmarks/analysis.py [--checkpoints 10] [--run RUN]

Trains experiments/quickstart.py with a checkpoint every 5 steps (or takes the run that is given), analyses it in one process
as `jaxlm analyze RUN` does, once more when all is there, and then each probe alone at three checkpoints, for its memory. Says
how much time of a processor it took, too: on a machine with other work that is what counts. Exit status 1 where a
bar of bars.json is missed or a probe fails; what was measured is shown all the same.
"""

import dataclasses
import os
import sys
import tempfile
from json import dumps
from pathlib import Path

import record
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from timed import jaxlm

from jaxlm.analysis.probe_files import known_probes
from jaxlm.analysis.store import ANALYSIS, read_all, read_faults
from jaxlm.config import to_dict
from jaxlm.experiment import CheckpointConfig
from jaxlm.experiment_file import load_experiment
from jaxlm.run.directory import CHECKPOINTS
from jaxlm.train.saved import saved_steps

EVERY = 5  # steps from a checkpoint to the next
LEAST = 10  # checkpoints that bars are for: the first one's time includes compiling
ALONE = 3  # checkpoints that a probe is measured at by itself
FIELDS = ("config.json", "run.json", "tokenizer.model", CHECKPOINTS)


def main(run: Path | None = None, checkpoints: int = 20, alone: bool = True, json: Path | None = None) -> int:
    """Analyse a run of the quickstart model.

    Args:
        run: One that is there; none trains one.
        checkpoints: Of the run that is trained; fewer than 10 are a trial, without bars.
        alone: Also measure each probe by itself, for its memory.
        json: Write everything measured here.
    """
    out = Console()
    with tempfile.TemporaryDirectory() as folder:
        run = run or trained(Path(folder), checkpoints)
        steps = saved_steps(run / CHECKPOINTS)
        own = copied(run, Path(folder) / "all")
        all_probes, again = (jaxlm("analyze", own, may_fail=True) for _ in range(2))  # faults are listed, and times hold
        faults = read_faults(own)
        table = Table(title=f"{run}: {len(steps)} checkpoints, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", box=None)
        for column in ("probe", "first checkpoint, s", "each further one, s", "alone: peak, MiB"):
            table.add_column(column, justify="left" if column == "probe" else "right")
        found = read_all(own)
        for probe in known_probes():
            if probe not in found:
                table.add_row(probe, "does not suit", "", "")
                continue
            first, *rest = [result["seconds"] for result in found[probe].values()]
            memory = ""
            if alone:
                apart = copied(run, Path(folder) / probe)
                took = jaxlm("analyze", apart, "--probes", probe, "--steps", *map(str, steps[:ALONE]), may_fail=True)
                memory = f"{took.peak_bytes >> 20:,}"
            each = f"{sum(rest) / len(rest):.2f}" if rest else "-"
            table.add_row(probe, f"{first:.2f}", each, memory)
        out.print(table)
        for probe, at in faults.items():
            out.print(f"[red]fault of {probe}[/] at step {', '.join(map(str, at))}: {escape(next(iter(at.values())))}")
    peak = all_probes.peak_bytes / 2**30
    out.print(
        f"all: {all_probes.seconds:.0f} s ({all_probes.core_seconds:.0f} s of a core), {peak:.2f} GiB at the peak; "
        f"again: {again.seconds:.1f} s"
    )
    results = [
        record.measured("all probes, a checkpoint", [all_probes.seconds / len(steps)], "s", "lower"),
        record.measured("their memory", [peak], "GiB", "lower"),
        record.measured("the same command again", [again.seconds], "s", "lower"),
    ]
    seconds = {probe: {step: result["seconds"] for step, result in each.items()} for probe, each in found.items()}
    failure = f"probes failed: {', '.join(faults)}" if faults else None
    return record.finish("analysis", results, json, failure=failure, judged=len(steps) >= LEAST, probes=seconds)


def trained(folder: Path, checkpoints: int) -> Path:
    """Return a run of the quickstart experiment with its checkpoints kept."""
    experiment = load_experiment(Path(__file__).parents[1] / "experiments" / "quickstart.py")
    steps = EVERY * checkpoints
    keep = CheckpointConfig(every=EVERY, keep=checkpoints)
    file, run = folder / "quickstart.json", folder / "run"
    optimizer = dataclasses.replace(experiment.optimizer, warmup_steps=1)
    file.write_text(dumps(to_dict(dataclasses.replace(experiment, steps=steps, checkpoint=keep, optimizer=optimizer))))
    jaxlm("train", file, "--run-dir", run)
    return run


def copied(run: Path, to: Path) -> Path:
    """Return a folder of its own with what a run holds, without its analysis; checkpoints are linked."""
    to.mkdir()
    for name in FIELDS:
        if (run / name).exists():
            (to / name).symlink_to((run / name).absolute(), target_is_directory=(run / name).is_dir())
    assert not (to / ANALYSIS).exists()
    return to


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
